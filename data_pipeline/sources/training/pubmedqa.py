"""Reads PubMedQA (arXiv 1909.06146): a question, and the abstract that answers it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipeline.sources.files import (
    Row,
    file_type,
    id_field,
    json_members,
    read_rows,
    text_field,
)
from data_pipeline.sources.pairs import SourcePair
from inf_jax.core.errors import UserError


def read(path: str | Path, *, dropped: Counter[str] | None = None) -> Iterator[SourcePair]:
    """Yields a pair per question; the passage is the abstract without its conclusion.

    Args:
      path: the authors' `ori_pqal.json`, one object of PubMed ids with QUESTION and CONTEXTS; or
        the Hub's parquet or jsonl, with pubid, question and context.contexts.
      dropped: incremented for each question without a text.

    Raises:
      UserError: the file is missing or damaged, or a row lacks a field.
    """
    dropped = Counter() if dropped is None else dropped
    members = file_type(Path(path)) == ".json"
    for row in json_members(path) if members else read_rows(path):
        question = text_field(row, "QUESTION", "question")
        id = row.where.rpartition(":")[2] if members else id_field(row, "pubid")
        if question:
            yield SourcePair(id, question, " ".join(_contexts(row)))
        else:
            dropped["empty query"] += 1


def _contexts(row: Row) -> Iterator[str]:
    contexts: Any = row.values.get("context")
    if isinstance(contexts, Mapping):
        contexts = contexts.get("contexts")
    contexts = row.values.get("CONTEXTS", contexts)
    if not isinstance(contexts, list):
        raise UserError(
            f"{row.where}: no list CONTEXTS or context.contexts; the row has: "
            f"{', '.join(row.values) or 'no fields'}; give a file of PubMedQA"
        )
    for number, text in enumerate(contexts):
        name = f"contexts[{number}]"
        yield text_field(Row(row.where, {name: text}), name)
