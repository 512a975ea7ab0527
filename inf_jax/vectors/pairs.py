"""Reads pairs to mine for, and numbers the different passages of a corpus and of the pairs."""

import array
import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.core.json_text import parse_json
from inf_jax.data.records import pairs, text_hash
from inf_jax.data.tokenise import read_examples
from inf_jax.io.atomic import atomic_file
from inf_jax.text.checks import check_text
from inf_jax.text.templates import document_text
from inf_jax.vectors.texts import TextSource

PAIR_FIELDS = {  # the first that a row has
    "query": ("query", "anchor", "question"),
    "passage": ("passage", "positive", "pos", "document", "answer", "text"),
    "instruction": ("instruction",),
    "id": ("id", "_id"),
}


class PairRow(NamedTuple):
    """A pair of the file; id and instruction are "" where it has none."""

    id: str
    instruction: str
    query: str
    passage: str


def read_pair_rows(path: Path, fields: Mapping[str, str], split: str = "") -> list[PairRow]:
    """The pairs of a file (.jsonl, .tsv, .parquet, `TextSource`), or of a built dataset.

    A row whose passage is a list of texts is as many pairs; those after the first have the row's id
    with their number. A title goes before the passage. A line of .tsv is query, tab, passage.

    Args:
      fields: part of `PAIR_FIELDS` -> the field's name, for unusual ones.
      split: of a built dataset.

    Raises:
      UserError: a row that cannot be used, no pairs; names the row.
    """
    found = []
    for where, row in _pairs(path, fields, split):
        for part, text in row._asdict().items():
            check_text(text, f"{where}: {part}")
        if not row.query.strip() or not row.passage.strip():
            part = "passage" if row.query.strip() else "query"
            raise UserError(f"{where}: the {part} is empty; complete the row or remove it")
        found.append(row._replace(passage=row.passage.strip()))
    if not found:
        raise UserError(f"{path}: holds no pairs")
    return found


def _pairs(path: Path, fields: Mapping[str, str], split: str) -> Iterator[tuple[str, PairRow]]:
    if path.is_dir():
        if not split or not (path / "dataset_info.json").is_file():
            raise UserError(
                f"{path}: pairs are read from a file, or from a built dataset (the directory with "
                "dataset_info.json) with --split=train"
            )
        for example in read_examples(path, split):
            for number, pair in enumerate(pairs(example)):
                if pair is not None:
                    id = f"{example.id}:{number}" if number else example.id
                    yield example.id, PairRow(id, *pair[:3])
        return
    for where, record in TextSource(path).records():
        if isinstance(record, bytes):
            record = parse_json(record, where, kind=dict, remedy="correct that line")
        elif isinstance(record, list):
            record = dict(zip(("query", "passage"), record, strict=True))
        query, passages = (_field(where, record, part, fields) for part in ("query", "passage"))
        others = (
            _field(where, record, part, fields, optional=True) for part in ("id", "instruction")
        )
        name, instruction = ("" if value is None else value for value in others)
        if isinstance(name, int):
            name = str(name)
        if passages == []:
            raise UserError(f"{where}: the passage is an empty list; complete the row or remove it")
        title = record.get("title") or ""
        for number, text in enumerate(passages if isinstance(passages, list) else [passages]):
            if isinstance(title, str) and title and isinstance(text, str):
                text = document_text(title, text)
            id = f"{name}:{number}" if name and number else name
            yield where, PairRow(id, instruction, query, text)


def _field(
    where: str, record: dict, part: str, fields: Mapping[str, str], *, optional: bool = False
) -> Any:
    names = (fields[part],) if part in fields else PAIR_FIELDS[part]
    for name in names:
        if record.get(name) is not None:
            return record[name]
    if optional and (part not in fields or fields[part] in record):
        return None
    raise UserError(
        f"{where}: no {' or '.join(names)} among its fields ({', '.join(map(str, record))}); name "
        f"the field of the {part}, --fields={part}=NAME"
    )


class MiningTexts:
    """The different texts of a task of mining, by number.

    Copies of a passage (Unicode's composed form, white space collapsed, `text_hash`) are one.
    Memory: some 150 bytes a passage.

    Args:
      rows: the pairs.
      corpus: passages; those of the pairs are added. Empty ones are left out.
      directory: gets queries.jsonl and passages.jsonl, whose ids are the numbers.
      write: whether to write them, or only to count.

    Attributes:
      queries: [(query, instruction)], each different one once: the same query under another
        instruction is another.
      query_of: int64[rows], the number of each row's query.
      passage_of: int64[rows], of its passage.
      same: int64[passages], equal for passages that differ in case only.
      own: int64[queries], that of a passage which is the query's text; -1: there is none.
      passages: `TextSource` of passages.jsonl.
      query_source: likewise.
    """

    def __init__(self, rows: list[PairRow], corpus: Iterable[str], directory: Path, *, write: bool):
        numbers: dict[int, int] = {}
        folded, self._offsets = array.array("Q"), array.array("Q", [0])
        self.passages = TextSource(directory / "passages.jsonl")
        self.query_source = TextSource(directory / "queries.jsonl", "query")
        with _file(self.passages.path, write) as file:
            for text in (text for part in (corpus, (r.passage for r in rows)) for text in part):
                if not text.strip() or text_hash(text) in numbers:
                    continue
                number = numbers[text_hash(text)] = len(folded)
                folded.append(text_hash(text.casefold()))
                size = file.write(_line({"_id": str(number), "text": text}))
                self._offsets.append(self._offsets[-1] + size)
        self.passage_of = np.array([numbers[text_hash(row.passage)] for row in rows])
        known: dict[tuple[str, str], int] = {}
        asked = [known.setdefault((r.query, r.instruction), len(known)) for r in rows]
        self.queries, self.query_of = list(known), np.array(asked)
        with _file(self.query_source.path, write) as file:
            for number, (query, instruction) in enumerate(self.queries):
                record = {"_id": str(number), "text": query, "instruction": instruction}
                file.write(_line(record))
        values, self.same = np.unique(np.frombuffer(folded, np.uint64), return_inverse=True)
        own = np.array([text_hash(q.casefold()) for q, _ in self.queries], np.uint64)
        place = np.minimum(np.searchsorted(values, own), len(values) - 1)
        self.own = np.where(values[place] == own, place, -1)

    def passage_texts(self, numbers: Iterable[int]) -> Iterator[str]:
        """The texts of passages, one after another read from the disk."""
        with self.passages.path.open("rb") as file:
            for number in numbers:
                file.seek(self._offsets[number])
                yield json.loads(file.readline())["text"]


def _file(path: Path, write: bool) -> contextlib.AbstractContextManager[BinaryIO]:
    return atomic_file(path) if write else open(os.devnull, "wb")


def _line(record: dict) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode()
