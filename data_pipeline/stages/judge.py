"""The judge stage: a model checks the relevance of each passage to each instructed query.

The relevance table has nine combinations of an instructed query and a passage: the three on the
diagonal, (I+Q+, P+), (I-Q+, P-1), (I+Q-, P-2), must be relevant, the six crossed ones must not
(arXiv 2505.21439, section 3, asks for the first five of them).
"""

import asyncio
import dataclasses
import itertools

from data_pipeline.items import INSTRUCTED_QUERIES, PASSAGES, Item, Judgement
from data_pipeline.llm.ask import AskFn
from data_pipeline.llm.request import RequestTemplate
from data_pipeline.llm.schemas import JudgeAnswer
from inf_jax.data.records import Example, pairs, text_hash

Combination = tuple[str, str]  # of INSTRUCTED_QUERIES and PASSAGES
DIAGONAL: tuple[Combination, ...] = tuple(zip(INSTRUCTED_QUERIES, PASSAGES, strict=True))
CROSSED: tuple[Combination, ...] = tuple(
    c for c in itertools.product(INSTRUCTED_QUERIES, PASSAGES) if c not in DIAGONAL
)


@dataclasses.dataclass(frozen=True)
class Judges:
    """Templates of the judges, and how much they judge."""

    first: RequestTemplate
    second: RequestTemplate | None = None  # no second judge if None
    share: float = 1.0  # of the examples that the second judge sees, chosen by their ids
    full_table: bool = False  # judge the crossed combinations even if the diagonal has failed

    def of(self, item: Item) -> dict[str, RequestTemplate]:
        """Name -> template of the item's judges."""
        judges = {"judge": self.first}
        if self.second and text_hash(f"second judge\x1f{item.id}") < self.share * 2.0**64:
            judges["judge_2"] = self.second
        return judges


async def judge(item: Item, ask: AskFn, *, judges: Judges) -> Item:
    """Has all judges of an example judge its relevance table.

    Returns:
      The item with its judgements; dropped for each wrong one, `judge:<query>|<passage>`, and for
      each judge without an answer, `judge:<failure>` (`judge_2:...` for the second judge).
    """
    templates = judges.of(item)
    await _judge_all(item, ask, templates, DIAGONAL)
    if item.alive or judges.full_table:
        await _judge_all(item, ask, templates, CROSSED)
    return item


async def _judge_all(
    item: Item,
    ask: AskFn,
    judges: dict[str, RequestTemplate],
    combinations: tuple[Combination, ...],
) -> None:
    asked = [(name, *c) for name in judges for c in combinations]
    results = await asyncio.gather(
        *(ask(judges[name].request(judge_payload(item.example, q, p))) for name, q, p in asked)
    )
    for (name, query, passage), result in zip(asked, results, strict=True):
        if result.failure:
            reason = f"{name}:{result.failure}"
        else:
            answer = JudgeAnswer.model_validate_json(result.text)
            judgement = Judgement(name, query, passage, answer.relevant, answer.reason)
            item.judgements.append(judgement)
            item.provenance[name] = judges[name].provenance()
            reason = "" if answer.relevant == judgement.expected else f"{name}:{query}|{passage}"
        if reason and reason not in item.reasons:
            item.reasons.append(reason)


def judge_payload(example: Example, query: str, passage: str) -> dict[str, str]:
    """The payload of the stage judge's prompt for one combination."""
    diagonal = pairs(example)
    asked = diagonal[INSTRUCTED_QUERIES.index(query)]
    judged = diagonal[PASSAGES.index(passage)].passage
    return {"instruction": asked.instruction, "query": asked.query, "passage": judged}
