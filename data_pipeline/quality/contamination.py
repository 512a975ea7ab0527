"""The texts that a model will be evaluated with, so that none of them gets into its training data.

Queries are compared exactly, passages exactly and by MinHash; both folded (`validate.fold`).
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipeline.quality.minhash import NearDuplicates
from data_pipeline.sources import beir
from data_pipeline.sources.files import Row, read_rows, text_field
from data_pipeline.sources.folding import fold
from data_pipeline.sources.pairs import titled
from inf_jax.core.errors import UserError
from inf_jax.data.records import text_hash

QUERY_FIELDS = ("query", "question", "query_positive", "query_negative")
PASSAGE_FIELDS = (
    "passage",
    "document",
    "answer",
    "contents",
    "document_positive",
    "hard_negative_document_1",
    "hard_negative_document_2",
)
EITHER_FIELD = "text"  # of BEIR's queries as of its passages


class Evaluation:
    """Hashes of queries and passages, and an index of near-equal passages.

    Takes about 0.7 kB a passage, 0.1 kB a query.
    """

    def __init__(self, threshold: float):
        """
        Args:
          threshold: as for `NearDuplicates`; 1 for equal passages only.

        Raises:
          UserError: another threshold.
        """
        self._queries: set[int] = set()
        self._passages: set[int] = set()
        self._near = NearDuplicates[bool](threshold) if threshold != 1 else None

    @classmethod
    def read(cls, paths: Iterable[str | Path], *, threshold: float) -> "Evaluation":
        """Reads all texts at some paths, each one of these:

        - a directory in BEIR's layout: queries and relevant passages of all qrels but train's
          (a set's corpus may serve training and evaluation alike);
        - a TFDS directory of inf_ir: its split dev;
        - a jsonl, jsonl.gz, parquet or JSON file, or a directory of such, with QUERY_FIELDS,
          PASSAGE_FIELDS or EITHER_FIELD, which counts as both.

        Args:
          paths: files and directories.
          threshold: as for the class.

        Raises:
          UserError: a path is missing, a file damaged, a row has none of the fields, a path holds
            no text; names the path or row.
        """
        evaluation = cls(threshold)
        for path in map(Path, paths):
            empty = True
            for query, passage in _texts(path):
                empty = empty and not (query or passage)
                evaluation.add(query=query, passage=passage)
            if empty:
                raise UserError(f"{path} holds no text of an evaluation; check evaluation.paths")
        return evaluation

    def add(self, *, query: str = "", passage: str = "") -> None:
        """Adds texts; an empty one is none."""
        if query := fold(query):
            self._queries.add(text_hash(query))
        if not (folded := fold(passage)) or (number := text_hash(folded)) in self._passages:
            return
        self._passages.add(number)
        if self._near is not None:
            self._near.add(True, passage)

    def shares_query(self, text: str) -> str:
        """ "evaluation_query" if the text is one, else ""."""
        return "evaluation_query" if text_hash(fold(text)) in self._queries else ""

    def shares_passage(self, text: str) -> str:
        """ "evaluation_passage" if the text is one, "near_evaluation_passage" if it is near one,
        else ""."""
        if text_hash(fold(text)) in self._passages:
            return "evaluation_passage"
        if self._near is not None and self._near.find(text):
            return "near_evaluation_passage"
        return ""


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """(query, passage) of each row; "" where it has none."""
    if (path / "dataset_info.json").is_file():
        from inf_jax.data.tokenise import read_examples  # slow to import

        for example in read_examples(path, "dev"):
            yield example.query_positive, example.document_positive
            yield example.query_negative, example.hard_negative_document_2
            yield "", example.hard_negative_document_1
    elif (path / "qrels").is_dir():
        for split in _evaluation_splits(path):
            for pair in beir.read(path, split=split):
                yield pair.query, pair.passage
    else:
        for row in read_rows(path):
            yield from _row_texts(row)


def _evaluation_splits(path: Path) -> list[str]:
    names = {file.name.removesuffix(".gz") for file in (path / "qrels").glob("*.tsv*")}
    splits = {name.removesuffix(".tsv") for name in names if name.endswith(".tsv")}
    if splits <= {"train"}:
        raise UserError(
            f"{path}/qrels has no split for evaluation, only {', '.join(splits) or 'none at all'}; "
            "name a file of the texts that the evaluation uses"
        )
    return sorted(splits - {"train"})


def _row_texts(row: Row) -> Iterator[tuple[str, str]]:
    found = False
    for name in row.values:
        if name in QUERY_FIELDS:
            yield text_field(row, name), ""
        elif name in PASSAGE_FIELDS:
            yield "", text_field(row, name)
        elif name == EITHER_FIELD:
            text = text_field(row, name)
            yield text, text
            if "title" in row.values:
                yield "", titled(text_field(row, "title"), text)
        else:
            continue
        found = True
    if not found:
        known = ", ".join((*QUERY_FIELDS, *PASSAGE_FIELDS, EITHER_FIELD))
        raise UserError(
            f"{row.where}: none of the fields {known}; the row has: "
            f"{', '.join(row.values) or 'no field at all'}; rename the field that holds the text"
        )
