"""Writes inspect.html of `inf_jax.benchmark`: what changed between models and instructions."""

from collections.abc import Sequence

from inf_jax.benchmarks.report.rows import Compared
from inf_jax.benchmarks.task import BenchmarkTask, TaskSource
from inf_jax.inspection.cards import Card, TaskTexts, card_of
from inf_jax.inspection.changes import (
    MOST,
    RankChange,
    between_instructions,
    between_models,
    largest,
)
from inf_jax.inspection.page import Histogram, Section, render_page
from inf_jax.inspection.rankings import DOCUMENT_KINDS, KeptRun, of_any_instruction
from inf_jax.io.storage import AnyPath, new_file

_Kept = dict[str, KeptRun]  # by task


def write_inspection(path: AnyPath, compared: Compared, sources: Sequence[TaskSource]) -> None:
    """Writes the page of models whose runs were kept (`ModelOptions.inspect`).

    Of several seeds it shows the first. The tasks of the queries shown are read again for their
    texts, so that those of all tasks need not be in memory.
    """
    ours, *others = compared.scores
    kept = {
        label: {task: seeds[0].kept for task, seeds in compared.scores[label].items()}
        for label in (ours, *others[:1])
    }
    changes: dict[str, list[RankChange]] = {
        "instructions": largest(
            change
            for task, each in kept[ours].items()
            for change in between_instructions(task, each.rankings, each.groups)
        )
    }
    if others:
        before = kept[others[0]]
        changes["models"] = largest(
            change
            for task, each in kept[ours].items()
            for change in between_models(task, before[task].rankings, each.rankings)
        )
    cards = _cards(changes, kept[ours], kept[others[0]] if others else {}, sources)
    sections = []
    if others:
        about = (
            f"The queries, at most {MOST}, in which the rank of a relevant passage doubled or "
            "halved most often from A to B."
        )
        title = "What changed between the models"
        sections.append(Section(title, about, (others[0], ours), cards["models"]))
    if any(each.groups for each in kept[ours].values()):
        about = (
            f"{ours}: the queries, at most {MOST}, in which the rank of a passage that is relevant "
            "under A or B doubled or halved most often from A to B. Words that differ are marked."
        )
        title, names = "What another instruction changed", ("one instruction", "another")
        sections.append(Section(title, about, names, cards["instructions"]))
    facts = {"model": ours, "tasks": ", ".join(kept[ours])}
    if others:
        facts = {"compared with": others[0]} | facts
    spreads = [
        Histogram(task, label, each.spread)
        for task in kept[ours]
        for label, by_task in reversed(kept.items())
        for each in [by_task[task]]
        if each.spread.counts
    ]
    with new_file(path) as file:
        file.write(render_page("Queries whose ranks changed most", facts, sections, spreads))


def _cards(
    changes: dict[str, list[RankChange]], ours: _Kept, theirs: _Kept, sources: Sequence[TaskSource]
) -> dict[str, list[Card]]:
    """The cards of the changes, in their order."""
    wanted = {change.task for each in changes.values() for change in each}
    found: dict[tuple[str, int], Card] = {}
    for source in sources:
        if source.name not in wanted:
            continue
        texts = _texts(source.load())
        for kind, each in changes.items():
            for place, change in enumerate(each):
                if change.task == source.name:
                    first, second = change.queries
                    before = (theirs if kind == "models" else ours)[source.name].rankings[first]
                    after = ours[source.name].rankings[second]
                    found[kind, place] = card_of(change, texts, before, after)
    return {kind: [found[kind, n] for n in range(len(each))] for kind, each in changes.items()}


def _texts(task: BenchmarkTask) -> TaskTexts:
    relevant = task.relevant
    interesting = of_any_instruction(relevant, task.instruction_groups)

    def label(qid: str, document: str) -> str:
        if document in relevant[qid]:
            return DOCUMENT_KINDS[0]
        if document in interesting[qid]:
            return DOCUMENT_KINDS[1]
        return "not relevant" if document in task.qrels[qid] else "not judged"

    return TaskTexts(task.queries, task.corpus, label)
