"""Items of the triplet factory as its stages leave them, made by hand."""

import dataclasses

from data_pipeline.items import INSTRUCTED_QUERIES, PASSAGES, Item, Judgement
from inf_jax.data.records import Example

GENERATE = {"model": "gpt-4o-mini", "prompt": "generate_v1", "prompt_hash": "0123456789ab"}
JUDGE = {"model": "o3-mini", "prompt": "judge_v1", "prompt_hash": "ba9876543210"}
USAGE = {
    "stages": {
        "generate": {
            "model": "gpt-4o-mini",
            "mode": "async",
            "requests": 9,
            "answers": 6,
            "prompt_tokens": 9000,
            "completion_tokens": 3000,
            "usd": 0.25,
            "usd_unknown": 0.125,
            "failed": {"refusal": 1, "in flight at a kill": 2},
        },
        "judge": {
            "model": "o3-mini",
            "mode": "batch",
            "requests": 90,
            "answers": 90,
            "prompt_tokens": 50000,
            "completion_tokens": 8000,
            "usd": 0.5,
            "usd_unknown": 0.0,
            "failed": {},
        },
    },
    "usd": 0.75,
    "usd_unknown": 0.125,
    "runs": 3,
    "in_flight_at_kills": 2,
}


def example(id: str, **fields: str) -> Example:
    """An example in which every text names its pair."""
    return dataclasses.replace(
        Example(
            id=id,
            query_positive=f"query of {id}",
            instruction_positive="Only what is good for children.",
            document_positive=f"The first passage of {id} has these eight words.",
            instruction_negative="Only what is good for their doctors.",
            hard_negative_document_1=f"The second passage of {id} has these eight words.",
            query_negative=f"another query than {id}",
            hard_negative_document_2="Quite different, and longer.",
        ),
        **fields,
    )


def made(id: str, *reasons: str, type: str = "audience", passage: str = "", **fields: str) -> Item:
    """An item after the stage generate; `passage` is the source's, the positive one by default."""
    one = example(id, **fields)
    return Item(
        id,
        one.query_positive,
        passage or one.document_positive,
        instruction_type=type,
        example=one,
        provenance={"generate": GENERATE},
        reasons=list(reasons),
    )


def judged(item: Item, *wrong: tuple[str, str], judge: str = "judge") -> Item:
    """The item with a full table of a judge; `wrong` are the combinations it got wrong."""
    for query in INSTRUCTED_QUERIES:
        for passage in PASSAGES:
            answer = Judgement(judge, query, passage, True, f"Because of {passage}.")
            relevant = answer.expected != ((query, passage) in wrong)
            item.judgements.append(dataclasses.replace(answer, relevant=relevant))
    item.provenance[judge] = JUDGE
    item.drop(judge, *(f"{query}|{passage}" for query, passage in wrong))
    return item


def corpus() -> list[Item]:
    """Eight pairs: two kept, and one dropped by each stage, two by the judges."""
    rewritten = judged(made("b", type="length", passage="What the source said."))
    for item in (kept := [judged(made("a")), rewritten]):
        judged(item, judge="judge_2")
        item.scores = {"positive": 0.75, "poisoned_instruction": 0.5, "poisoned_query": 0.25}
        item.scores |= {"margin_poisoned_instruction": 0.25, "margin_poisoned_query": 0.5}
    one_judge = judged(made("e", type="length"), ("I+Q+", "P-1"), ("I-Q+", "P+"))
    other_judge = judged(judged(made("f")), ("I+Q+", "P-1"), judge="judge_2")
    score = judged(made("g"))
    score.scores = {"positive": 0.25, "margin_poisoned_instruction": -0.5}
    return [
        *kept,
        Item("c", "query of c", "passage", "format", reasons=["generate:refusal"]),
        made("d", "filter:too_short:query_negative", "filter:too_short:query_positive"),
        one_judge,
        other_judge,
        score.drop("score", "too_hard:hard_negative_document_1"),
        judged(made("h")).drop("review", "rejected"),
    ]
