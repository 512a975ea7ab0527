"""The generate stage: a model turns a pair into an example (a positive and two poisoned triplets).

"Towards Better Instruction Following Retrieval Models" (arXiv 2505.21439), section 3.
"""

from data_pipeline.items import Item
from data_pipeline.llm.ask import AskFn
from data_pipeline.llm.request import RequestTemplate
from data_pipeline.llm.schemas import QueryAnswer, TripletAnswer
from inf_jax.data.records import Example


async def generate(
    item: Item, ask: AskFn, *, query: RequestTemplate, triplet: RequestTemplate
) -> Item:
    """Generates a query if the pair has none, then the triplets.

    Returns:
      The item with its example; or dropped, `generate:<failure>` or `generate:query_<failure>`.
    """
    text = item.query
    if not text:
        result = await ask(query.request({"passage": item.passage}))
        if result.failure:
            return item.drop("generate", f"query_{result.failure}")
        item.provenance["query"] = query.provenance()
        text = QueryAnswer.model_validate_json(result.text).query
    result = await ask(triplet.request(triplet_payload(item, text)))
    if result.failure:
        return item.drop("generate", result.failure)
    item.provenance["generate"] = triplet.provenance()
    item.example = example_of(item, text, result.text)
    return item


def example_of(item: Item, query: str, answer_json: str) -> Example:
    """The example of a pair and the answer of the stage generate to it."""
    answer = TripletAnswer.model_validate_json(answer_json)
    answer.document_positive = answer.document_positive or item.passage
    return Example(id=item.id, query_positive=query, **answer.model_dump())


def triplet_payload(item: Item, query: str) -> dict[str, str]:
    """The payload of the stage generate's prompt."""
    return {"query": query, "passage": item.passage, "instruction_type": item.instruction_type}
