"""Reads the texts of a corpus, or queries, with their ids: JSON lines, TSV, parquet, TFRecords.

| path | what is read |
|---|---|
| FILE.jsonl, FILE.jsonl.gz | an object a line |
| FILE.tsv, FILE.tsv.gz | id, tab, text, as MS MARCO's collection.tsv and queries.tsv |
| FILE.parquet | needs pyarrow |
| directory with corpus.* or queries.* of these kinds | BEIR's layout |
| directory with dataset_info.json | passages of a built dataset, with the ids of `evaluate` |

A first line of a TSV file whose two columns are names of fields, such as id and text, is its header
and no record. Records are read one after another and never held together. Those of an object have
the fields `TEXT_FIELDS`; a passage's title goes before its text with a space, as in BEIR and for
benchmarks.
"""

import array
import codecs
import contextlib
import dataclasses
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inf_jax.core.errors import UserError, first_line
from inf_jax.core.json_text import parse_json
from inf_jax.data.records import pairs, text_hash
from inf_jax.data.tokenise import read_examples
from inf_jax.io.paths import is_url
from inf_jax.text.checks import check_text
from inf_jax.text.templates import document_text

ROLES = ("passage", "query")
TEXT_FIELDS = {  # the first that a record has
    "id": ("_id", "id", "docid", "doc_id", "pid", "passage_id", "qid", "query_id"),
    "passage": ("text", "contents", "passage", "body", "document"),
    "query": ("text", "query", "question"),
}
# What a header calls the columns of a TSV file, in the order that they must have; also of pairs.
_HEADER = dict.fromkeys((*TEXT_FIELDS["id"], "docno"), 0)
_HEADER |= dict.fromkeys((*TEXT_FIELDS["query"], "anchor"), 1)
_HEADER |= dict.fromkeys((*TEXT_FIELDS["passage"], "title", "positive", "pos", "answer"), 2)
_ENDINGS = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz", ".parquet")
_STANDARD = {"passage": "corpus", "query": "queries"}  # BEIR's names
_INFO = "dataset_info.json"
_ROWS = 4096  # of parquet, decoded at once


class TextRecord(NamedTuple):
    """A passage, or a query with its instruction; "" where it has none."""

    id: str
    text: str
    instruction: str = ""

    def as_bytes(self) -> bytes:
        """All fields, for hashes."""
        return b"\0".join((*(field.encode() for field in self), b"\n"))


class Checked(NamedTuple):
    """What a first reading of all records gives.

    Attributes:
      count: of the records.
      fingerprint: 16 hexadecimal digits of ids, texts and instructions.
      sums: uint32[count], CRC-32 of each record's.
    """

    count: int
    fingerprint: str
    sums: np.ndarray


@dataclasses.dataclass(frozen=True)
class TextSource:
    """Where texts are read from.

    Args:
      path: a file or directory, see the module.
      role: "passage" or "query".
      id_field, text_field: of the objects, in place of `TEXT_FIELDS`; titles are then left out.
      split: of a built dataset.
      instruction: of queries without one of their own.
    """

    path: Path
    role: str = "passage"
    id_field: str = ""
    text_field: str = ""
    split: str = ""
    instruction: str = ""

    def check(self) -> Checked:
        """Reads all records, before any long work; of each it keeps 12 bytes.

        Raises:
          UserError: a record that cannot be used, an id that two records share, no records.
        """
        digest, hashes, sums = hashlib.sha256(), array.array("Q"), array.array("I")
        for text in self.texts():
            hashes.append(_hash(text.id.encode()))
            sums.append(zlib.crc32(text.as_bytes()))
            digest.update(text.as_bytes())
        if not hashes:
            raise UserError(f"{self.path}: holds no texts")
        ordered = np.sort(np.frombuffer(hashes, np.uint64))
        twice = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if twice:
            self._refuse_same_ids(twice)
        return Checked(len(hashes), digest.hexdigest()[:16], np.frombuffer(sums, np.uint32))

    def check_unchanged(self, where: str, text: TextRecord, number: int, checked: Checked) -> None:
        """Raises UserError unless this is the record of that number that `check` read."""
        same = number < checked.count and zlib.crc32(text.as_bytes()) == checked.sums[number]
        if not same:
            raise self.changed(f"at {where}")

    def changed(self, what: str) -> UserError:
        """The error for texts that changed after `check`."""
        return UserError(
            f"{self.path}: was changed while it was encoded ({what}); put back what was there and "
            "give the command again, or encode what is there now into another directory"
        )

    def texts(self) -> Iterator[TextRecord]:
        """All records in order. Raises UserError where one cannot be used; names it."""
        return (self.parse(*record) for record in self.records())

    def records(self) -> Iterator[tuple[str, Any]]:
        """(place, record as it was read) of all records in order: reading past one costs little."""
        file = self._file()
        if file.name == _INFO:
            return self._examples(file.parent)
        if file.name.endswith(".parquet"):
            return _parquet(file)
        if ".tsv" in file.suffixes[-2:]:
            return _rows_of_tsv(file)
        return _lines(file)

    @property
    def is_dataset(self) -> bool:
        """Whether the texts are the passages of a built dataset."""
        return self._file().name == _INFO

    @property
    def has_fields(self) -> bool:
        """Whether the records have named fields."""
        return not self.is_dataset and ".tsv" not in self._file().suffixes[-2:]

    def parse(self, where: str, record: Any) -> TextRecord:
        """The text of a record of `records`; UserError where it cannot be used."""
        if isinstance(record, TextRecord):
            return record
        if isinstance(record, list):
            return self._checked(where, *record)
        if isinstance(record, bytes):
            record = parse_json(record, where, kind=dict, remedy="correct that line")
        name = self._field(where, record, "id", self.id_field)
        text = self._field(where, record, self.role, self.text_field)
        title = record.get("title") or ""
        if self.role == "query" or self.text_field:
            title = ""
        if not isinstance(title, str):
            raise UserError(f"{where}: title={title!r} is not a string")
        if self.role == "passage" and isinstance(text, str):
            text = document_text(title, text)
        own = record.get("instruction") or "" if self.role == "query" else ""
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        return self._checked(where, name, text, own)

    def _checked(self, where: str, name: Any, text: Any, instruction: Any = "") -> TextRecord:
        if not isinstance(name, str) or not name or len(name.split()) != 1 or name.strip() != name:
            raise UserError(
                f"{where}: the id {name!r} is not a string without white space, which separates "
                "the fields of a run; rename it"
            )
        for what, value in (("id", name), ("text", text), ("instruction", instruction)):
            check_text(value, f"{where}: {what}")
        return TextRecord(name, text, instruction or self.instruction)

    def _field(self, where: str, record: dict, kind: str, chosen: str) -> Any:
        for name in (chosen,) if chosen else TEXT_FIELDS[kind]:
            if record.get(name) is not None:
                return record[name]
        flag = "--id-field" if kind == "id" else "--text-field"
        wanted = chosen or " or ".join(TEXT_FIELDS[kind])
        raise UserError(
            f"{where}: no {wanted} among its fields ({', '.join(map(str, record))}); name the "
            f"right one with {flag}"
        )

    def _file(self) -> Path:
        """The file that is read; of a built dataset its dataset_info.json."""
        if is_url(str(self.path)):
            raise UserError(
                f"{self.path}: texts are read from a local disk; copy them to each host, "
                "`gcloud storage cp -r`"
            )
        if self.path.is_file():
            if not self.path.name.endswith(_ENDINGS):
                raise UserError(f"{self.path}: ends in none of {', '.join(_ENDINGS)}; rename it")
            return self.path
        if not self.path.exists():
            raise UserError(f"{self.path}: no such file or directory")
        standard = _STANDARD[self.role]
        found = [self.path / f"{standard}{ending}" for ending in _ENDINGS]
        if self.role == "passage":
            found.append(self.path / _INFO)
        for file in found:
            if file.is_file():
                return file
        raise UserError(
            f"{self.path}: holds neither {standard}.jsonl (BEIR's layout)"
            + (f" nor {_INFO}" if self.role == "passage" else "")
            + "; name the file itself"
        )

    def _examples(self, directory: Path) -> Iterator[tuple[str, TextRecord]]:
        """The different passages of a split, with the ids that `task_from_examples` gives."""
        if not self.split:
            raise UserError(f"{directory}: name the split of this dataset, --split=train")
        seen: set[int] = set()
        for example in read_examples(directory, self.split):
            for pair in pairs(example):
                if pair is None or (number := text_hash(pair.passage)) in seen:
                    continue
                yield example.id, TextRecord(f"p{len(seen)}", pair.passage)
                seen.add(number)

    def _refuse_same_ids(self, twice: set[int]) -> None:
        places: dict[str, str] = {}
        for where, record in self.records():
            name = self.parse(where, record).id
            if _hash(name.encode()) not in twice:
                continue
            if name in places:
                raise UserError(f"{where}: the id {name!r} is also that of {places[name]}")
            places[name] = where


def _hash(name: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def _rows_of_tsv(file: Path) -> Iterator[tuple[str, list[str]]]:
    for number, (where, line) in enumerate(_lines(file)):
        columns = _columns(where, line)
        names = [column.strip().casefold().replace("-", "_") for column in columns]
        if number or not _HEADER.keys() >= set(names):
            yield where, columns
        elif _HEADER[names[0]] > _HEADER[names[1]]:
            raise UserError(f"{where}: a header of {' and '.join(columns)}; swap the two columns")


def _columns(where: str, line: bytes) -> list[str]:
    """[id, text] of a line of a TSV file."""
    try:
        columns = line.rstrip(b"\r\n").decode().split("\t")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); convert the file") from None
    if len(columns) != 2:
        raise UserError(
            f"{where}: {len(columns)} columns where two are expected, separated by one tab; leave "
            "the others out, or write JSON lines"
        )
    return columns


def _lines(file: Path) -> Iterator[tuple[str, bytes]]:
    """The lines of a file, compressed or not, that are not blank."""
    with _readable(file), (gzip.open if file.suffix == ".gz" else open)(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield f"{file}, line {number}", line


def _parquet(file: Path) -> Iterator[tuple[str, dict]]:
    """The rows of a parquet file."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{file}: reading parquet needs pyarrow, which is not installed ({error}): "
            '`pip install "inf_jax[pipeline]"`, or `pip install pyarrow`'
        ) from None
    number = 0
    with _readable(file, pyarrow.ArrowException), parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", row


@contextlib.contextmanager
def _readable(file: Path, *more: type[Exception]) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, *more) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); copy it again") from error
