"""Where instructions stand: the text of an instructed query, per model and benchmark."""

from typing import Any

from inf_jax.benchmarks.task import BenchmarkTask
from inf_jax.retriever.settings import RetrieverConfig

PLACEMENTS = ("benchmark", "mteb", "model")
_AFTER = "{query} {instruction}"
# The order of each benchmark's own code or paper. mteb joins query and instruction in the order of
# _AFTER for all of them, and gives a task's prompt to instruct models alone.
INSTRUCTION_ORDERS = {
    "beir": _AFTER,
    "bright": "{instruction} {query}",  # arXiv 2407.12883: the prompt precedes the query
    "followir": _AFTER,  # arXiv 2403.15246
    "ifir": _AFTER,
    "infosearch": _AFTER,  # its code is FollowIR's
    "instructir": "{instruction} [SEP] {query}",  # arXiv 2402.14334
    "local": _AFTER,
    "mair": "{instruction}{query}",  # its code gives the instruction as a prompt
    "mfollowir": _AFTER,  # arXiv 2501.19264, as FollowIR
    "mteb": _AFTER,
    "nanobeir": _AFTER,
    "nevir": _AFTER,
}


def only_prompts(template: str) -> bool:
    """Whether a template is a prompt, or nothing, before "{query} {instruction}"."""
    return template.endswith(_AFTER)


def prompt_of_task(metadata: Any) -> str:
    """The prompt for queries of a task of mteb, of its metadata; "" if it has none."""
    prompt = metadata.prompt
    return ((prompt.get("query") if isinstance(prompt, dict) else prompt) or "").strip()


def query_template(own: str, suite: str, placement: str) -> str:
    """The template of an instructed query.

    A model's template that ends in "{query} {instruction}" is a prompt and no more: behind it the
    benchmark's order is kept. Any other is what the model was trained with and stays as it is.

    Args:
      own: the model's template.
      suite: a key of `INSTRUCTION_ORDERS`.
      placement: "benchmark", "mteb" (its order for all benchmarks) or "model" (always its own).
    """
    if placement == "model" or not only_prompts(own):
        return own
    return own.removesuffix(_AFTER) + (_AFTER if placement == "mteb" else INSTRUCTION_ORDERS[suite])


def task_template(config: RetrieverConfig, task: BenchmarkTask, placement: str) -> str:
    """`query_template` for a model and a task; "" for a model that encodes the two separately."""
    if not config.queries.pooled:
        return ""
    return query_template(config.text.query_template, task.suite, placement)


def instructions(task: BenchmarkTask, template: str) -> tuple[list[str], str]:
    """The instruction of each query, and in words whose it is.

    The prompt of a task whose queries have no instructions is given to models whose template has a
    place for it, as that of BRIGHT's order, and to those that encode the two separately ("").
    """
    given = [instruction for _, instruction in task.queries.values()]
    if any(given):
        return given, "each query's"
    if not task.prompt:
        return given, "none"
    if only_prompts(template):
        return given, "none"
    return [task.prompt] * len(given), f"the task's: {task.prompt}"
