"""The triplet factory: its stages in order, each from the file of the one before.

    pairs     the source's pairs: checked, sampled, each with a type of instruction    pairs.jsonl
    generate  a model makes triplets of them                                       generated.jsonl
    filter    rules, near duplicates, texts of the evaluation                       filtered.jsonl
    judge     a model checks each relevance table                                     judged.jsonl
    score     cosines by a model of our own, where one is named                       scored.jsonl
    corpus    the human review, where there is one; one outcome a pair              outcomes.jsonl
              and what is kept, with InF-IR's field names                       corpus/train.jsonl
    report    report.json, audit.html, DATA_CARD.md
    build     the TFDS dataset data/inf_ir/factory, which training reads

All but journal.sqlite is made from what is before it: any stage can be run again, at any time.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.config import FactoryConfig
from data_pipeline.items import Item
from data_pipeline.llm.journal import Journal
from data_pipeline.quality.contamination import Evaluation
from data_pipeline.quality.filters import FilterSettings, ItemFilter
from data_pipeline.quality.rules import Limits
from data_pipeline.report.audit import write_audit
from data_pipeline.report.data_card import CardInfo, write_data_card
from data_pipeline.report.sample import AuditSample
from data_pipeline.report.summary import summarise, write_report
from data_pipeline.sources.pair_readers import read_pairs
from data_pipeline.stages.estimate import Estimator, StageEstimate
from data_pipeline.stages.model_stages import Asking, Models
from data_pipeline.stages.pairs import make_items
from data_pipeline.stages.review import apply_review, read_review
from data_pipeline.stages.score import score_items
from data_pipeline.stages.stage_files import StageFile, state_of
from inf_jax.config.command_line import command_line
from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_file
from inf_jax.io.json_files import sha256_of_file

STAGES = ("pairs", "generate", "filter", "judge", "score", "corpus", "report", "build")
_ASKING = ("generate", "filter", "judge")
# stage -> its file; each is made from the one before
_FILES = {
    "pairs": "pairs",
    "generate": "generated",
    "filter": "filtered",
    "judge": "judged",
    "score": "scored",
    "corpus": "outcomes",
}


class Factory:
    """One corpus.

    Args:
      config: checked.
      max_usd: cap on its whole cost, over all runs; None for none.
      forget_batches: give up the batches of earlier runs.

    Raises:
      UserError: a prompt or a price is missing, two stages give a model two prices, the key is not
        set, another run has the journal, or the journal is damaged.
    """

    def __init__(
        self, config: FactoryConfig, *, max_usd: float | None = None, forget_batches: bool = False
    ):
        self._config = config
        self.report: dict[str, Any] | None = None  # of the stage report
        self.dataset: Path | None = None  # of the stage build
        self.out_dir = Path(config.out_dir)
        self._models = Models(config)
        self.files = self._stage_files()
        self.journal = Journal(self.out_dir / "journal.sqlite")
        self._asking = Asking(
            config,
            out_dir=self.out_dir,
            journal=self.journal,
            models=self._models,
            max_usd=max_usd,
            forget_batches=forget_batches,
        )

    def run(self, stages: Sequence[str]) -> None:
        """Runs the stages that are named, or finds that they are done.

        Raises:
          UserError: bad input, an endpoint that refuses, a full disk; what stages have written
            before stays. BudgetReached, at the end: what the cap allowed is done.
        """
        if set(stages) & set(_ASKING):
            self._asking.connect()
        try:
            for group in _groups(stages):
                if group[0] in _ASKING:
                    self._ask(group)
                else:
                    getattr(self, f"_{group[0]}")()
        except UserError as error:
            if self._asking.cap:  # e.g. too few examples for two splits: this is why
                raise self._asking.cap from error
            raise
        if self._asking.cap:
            raise self._asking.cap

    def estimate(self) -> list[StageEstimate]:
        """What the run still has to ask, after the stage pairs."""
        batch, max_attempts = self._config.llm.mode == "batch", self._config.llm.max_attempts
        prices = self._models.prices
        estimator = Estimator(self.journal, prices, batch=batch, max_attempts=max_attempts)
        return estimator.estimate(
            self.files["pairs"].read(),
            query=self._models.query,
            triplet=self._models.triplet,
            judges=self._models.judges,
        )

    def close(self) -> None:
        """Lets another process have the journal."""
        self.journal.close()

    def _stage_files(self) -> dict[str, StageFile]:
        config, asked = self._config, self._models.settings()
        source, evaluation = (
            dataclasses.asdict(config.source),
            dataclasses.asdict(config.evaluation),
        )
        own: dict[str, Any] = {
            "pairs": [
                config.seed,
                source,
                state_of(source["path"]),
                evaluation,
                [state_of(path) for path in evaluation["paths"]],
                config.generate.types,
                config.generate.type_weights,
            ],
            "generate": [*asked["generate"], config.llm.max_attempts],
            "filter": [dataclasses.asdict(config.filter)],
            "judge": [*asked["judge"], config.llm.max_attempts],
            # a model that was trained anew in its directory is another one
            "score": [dataclasses.asdict(config.score), _model_state(config.score.model)],
            "corpus": [dataclasses.asdict(config.review), state_of(config.review.path)],
        }
        if not config.score.model:
            del own["score"]
        files: dict[str, StageFile] = {}
        fingerprint = ""
        for stage, settings in own.items():
            files[stage] = StageFile(
                self.out_dir, _FILES[stage], settings=settings, source=fingerprint
            )
            fingerprint = files[stage].fingerprint
        return files

    def _before(self, stage: str) -> StageFile:
        """The file that a stage is made from; raises UserError where it is not there."""
        names = list(self.files)
        source = names[names.index(stage) - 1] if stage in names else names[-1]
        file = self.files[source]
        if not file.found():
            raise UserError(
                f"{file.path} is missing, damaged or of other settings; run without --stages, or "
                f"first --stages={source}"
            )
        return file

    def _done(self, stage: str) -> bool:
        found = self.files[stage].found()
        done = bool(found and found["complete"])
        if done:
            print(f"{stage}: reusing {self.files[stage].path} ({found['items']:,} pairs)")
        return done

    def _pairs(self) -> None:
        if self._done("pairs"):
            return
        config, source, dropped = self._config, self._config.source, Counter()
        options: dict[str, Any] = {}
        if source.kind in ("beir", "msmarco"):
            options = {
                name: getattr(source, name) for name in ("split", "min_score", "passages_only")
            }
        elif source.kind == "fields":
            options = {"fields": {k: v for k, v in dataclasses.asdict(source.fields).items() if v}}
        types, weights = config.generate.types, config.generate.type_weights
        items = make_items(
            read_pairs(source.kind, source.path, dropped=dropped, **options),
            dropped=dropped,
            limits=Limits(
                query_words=tuple(source.query_words), document_words=tuple(source.passage_words)
            ),
            evaluation=self._evaluation(),
            count=source.count or None,
            seed=config.seed,
            types=dict(zip(types, weights or [1.0] * len(types), strict=True)),
        )
        with self.files["pairs"].writing(lambda: {"dropped": dict(dropped)}) as write:
            for item in tqdm(items, desc="pairs", unit=" pairs", disable=None):
                write(item)

    def _evaluation(self) -> Evaluation | None:
        evaluation = self._config.evaluation
        if not evaluation.paths:
            return None
        return Evaluation.read(evaluation.paths, threshold=evaluation.threshold)

    def _ask(self, stages: list[str]) -> None:
        while stages and self._done(stages[0]):
            stages = stages[1:]
        if not stages:
            return
        before = self._before(stages[0])
        check = self._item_filter() if "filter" in stages else None
        files = {stage: self.files[stage] for stage in stages}
        self._asking.run(before.read(), before.found()["items"], files, check=check)

    def _item_filter(self) -> ItemFilter:
        own, source = self._config.filter, self._config.source
        settings = FilterSettings(
            limits=Limits(
                query_words=tuple(source.query_words),
                instruction_words=tuple(own.instruction_words),
                document_words=tuple(own.document_words),
            ),
            languages=tuple(own.languages),
            near_duplicate=own.near_duplicate,
            near_same=own.near_same,
            leak_words=own.leak_words,
        )
        return ItemFilter(settings, self._evaluation())

    def _score(self) -> None:
        if "score" not in self.files or self._done("score"):
            return
        score = self._config.score
        items = self._before("score").read()
        with self.files["score"].writing() as write:
            for item in tqdm(
                score_items(items, model=score.model, band=(score.low, score.high), batch=32),
                desc="score",
                unit=" pairs",
                disable=None,
            ):
                write(item)

    def _corpus(self) -> None:
        path = self.out_dir / "corpus" / "train.jsonl"
        found = self.files["corpus"].found()
        whole = found and path.exists() and found["extra"].get("corpus") == sha256_of_file(path)
        if whole and self._done("corpus"):
            return
        items = self._before("corpus").read()
        review = self._config.review
        if review.path:
            items = apply_review(
                items, read_review(review.path), accept_overrides=review.accept_overrides
            )
        # the outcomes' own note of being whole is written last
        with (
            self.files["corpus"].writing(lambda: {"corpus": sha256_of_file(path)}) as write,
            atomic_file(path) as corpus,
        ):
            for item in items:
                write(item)
                if item.alive:
                    corpus.write(_row(item).encode() + b"\n")

    def _report(self) -> None:
        outcomes, config = self._before("report"), self._config
        # what became of the source's pairs before they were items
        source = (self.files["pairs"].found() or {"extra": {}})["extra"]
        sample = AuditSample(kept=config.audit.count, dropped=config.audit.count, seed=config.seed)
        self.report = report = summarise(
            outcomes.read(), self.journal.usage(), pairs_report=source, tap=sample.add
        )
        name = config.corpus.name or self.out_dir.name
        write_report(self.out_dir / "report.json", report)
        write_audit(self.out_dir / "audit.html", report, sample.items(), title=name)
        info = CardInfo(
            name=name,
            source=f"`{config.source.kind}`: {Path(config.source.path).name}",
            licence=config.source.license,
            languages=tuple(config.filter.languages),
            config=dataclasses.asdict(config),
            command=command_line(),
        )
        write_data_card(self.out_dir / "DATA_CARD.md", report, info)

    def _build(self) -> None:
        from data_pipeline.dataset.build import build  # imports TFDS, which is slow

        outcomes, corpus = self._before("build").found(), self._config.corpus
        if not outcomes["alive"]:
            reasons = Counter(item.reasons[0] for item in self.files["corpus"].read())
            most = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(3))
            raise UserError(f"nothing was kept of {outcomes['items']:,} pairs: {most}")
        data_dir = corpus.data_dir or self.out_dir / "data"
        options = {
            "path_train": self.out_dir / "corpus" / "train.jsonl",
            "dev_fraction": corpus.dev_fraction,
        }
        try:
            self.dataset, _ = build("factory", data_dir, **options)
        except UserError:
            if corpus.data_dir:
                raise
            # our own directory: an older corpus' dataset is ours to replace
            self.dataset, _ = build("factory", data_dir, **options, overwrite=True)


def _groups(stages: Sequence[str]) -> list[list[str]]:
    """The stages one by one, but those that ask, where they follow each other, together."""
    groups: list[list[str]] = []
    for stage in stages:
        before = STAGES[STAGES.index(stage) - 1]
        if groups and stage in _ASKING and before in _ASKING and groups[-1][-1] == before:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


def _model_state(name: str) -> list:
    return state_of(name) if name and Path(name).is_dir() else []


def _row(item: Item) -> str:
    """A line of the corpus: InF-IR's fields, and where they come from."""
    row = dataclasses.asdict(item.example) | {
        "instruction_type": item.instruction_type,
        "provenance": item.provenance,
        "scores": item.scores,
    }
    return json.dumps(row, ensure_ascii=False)
