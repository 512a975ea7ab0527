"""Detects texts of evaluation benchmarks, so that none gets into the training data.

Queries are compared exactly, passages exactly and by MinHash; both are stripped `bare` first, of
what does not make another text: case, quotation marks, punctuation at the ends.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipeline.quality.minhash import NearDuplicates
from data_pipeline.quality.rules import DOCUMENT_FIELDS, QUERY_FIELDS
from data_pipeline.sources import beir
from data_pipeline.sources.fields import passages_in
from data_pipeline.sources.files import Row, read_rows, text_field, title_field
from data_pipeline.sources.folding import bare
from data_pipeline.sources.pairs import titled
from data_pipeline.sources.qrels import QRELS_DIRECTORIES, splits_of
from inf_jax.core.errors import UserError
from inf_jax.data.records import pairs, text_hash

_QUERY_NAMES = ("query", "question", "anchor", *QUERY_FIELDS)
_QUERY_NAMES += tuple(f"{name}_fewshot" for name in QUERY_FIELDS)
# texts, or lists of texts or of objects with a text: SQuAD's, Tevatron's, DPR's, FlagEmbedding's
_PASSAGE_NAMES = ("passage", "document", "answer", "contents", *DOCUMENT_FIELDS)
_PASSAGE_NAMES += ("context", "positive_passages", "positive_ctxs", "pos", "positive")
_EITHER_NAME = "text"  # of BEIR's queries and passages


class BenchmarkTexts:
    """Hashes of a benchmark's queries and passages, and a near-duplicate index of the passages.

    Takes about 0.7 kB per passage and 0.1 kB per query. `threshold` is that of `NearDuplicates`,
    or 1 for equal passages only.
    """

    def __init__(self, threshold: float):
        self._queries: set[int] = set()
        self._passages: set[int] = set()
        self._near = NearDuplicates[bool](threshold) if threshold != 1 else None

    @classmethod
    def read(cls, paths: Iterable[str | Path], *, threshold: float) -> "BenchmarkTexts":
        """Reads all texts at some paths.

        Args:
          paths: each is one of
            - a directory in BEIR's layout: queries and relevant passages of all qrels except
              train's (training and evaluation may share the corpus);
            - a TFDS directory of inf_ir: its split dev;
            - a jsonl, jsonl.gz, parquet or JSON file, or a directory of such files, with fields
              of _QUERY_NAMES, _PASSAGE_NAMES or _EITHER_NAME, which counts as both.
          threshold: as for the class.

        Raises:
          UserError: a path is missing or holds no text, a file is damaged, or a row has none of the
            fields; names the path or row.
        """
        texts = cls(threshold)
        for path in map(Path, paths):
            empty = True
            for query, passage in _texts(path):
                empty = empty and not (query or passage)
                texts.add(query=query, passage=passage)
            if empty:
                raise UserError(f"{path} holds no text to compare with; check evaluation.paths")
        return texts

    def add(self, *, query: str = "", passage: str = "") -> None:
        """Adds a query or a passage or both; empty texts are ignored."""
        if query := bare(query):
            self._queries.add(text_hash(query))
        if not (stripped := bare(passage)) or (number := text_hash(stripped)) in self._passages:
            return
        self._passages.add(number)
        if self._near is not None:
            self._near.add(True, passage)

    def shares_query(self, text: str) -> str:
        """ "evaluation_query" if the text is a query of the benchmark, else ""."""
        return "evaluation_query" if text_hash(bare(text)) in self._queries else ""

    def shares_passage(self, text: str) -> str:
        """ "evaluation_passage" if the text is a passage of the benchmark,
        "near_evaluation_passage" if it is a near duplicate of one, else ""."""
        if {text_hash(bare(part)) for part in (text, _untitled(text))} & self._passages:
            return "evaluation_passage"
        if self._near is not None and self._near.find(text):
            return "near_evaluation_passage"
        return ""


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (query, passage), either of which may be ""."""
    if (path / "dataset_info.json").is_file():
        from inf_jax.data.tokenise import read_examples  # slow to import

        for example in read_examples(path, "dev"):
            yield from ((pair.query, pair.passage) for pair in pairs(example) if pair)
    elif any((path / name).is_dir() for name in QRELS_DIRECTORIES):
        for split in _evaluation_splits(path):
            for pair in beir.read(path, split=split):
                yield pair.query, pair.passage
                yield "", _untitled(pair.passage)
    else:
        for row in read_rows(path):
            yield from _row_texts(row)


def _untitled(passage: str) -> str:
    """What follows the first line, which may be a title that the same passage lacks elsewhere."""
    return passage.partition("\n")[2]


def _evaluation_splits(path: Path) -> list[str]:
    splits = splits_of(path)
    if splits <= {"train"}:
        raise UserError(
            f"{path}: its qrels has no evaluation split, only {', '.join(splits) or 'no files'}; "
            "give a file of the benchmark's texts instead"
        )
    return sorted(splits - {"train"})


def _row_texts(row: Row) -> Iterator[tuple[str, str]]:
    known = False
    for name in row.values:
        if name in _QUERY_NAMES:
            yield text_field(row, name), ""
        elif name in _PASSAGE_NAMES:
            for title, text in passages_in(row, name):
                yield "", text
                yield "", titled(title, text)
        elif name == _EITHER_NAME:
            text = text_field(row, name)
            yield text, text
            if title := title_field(row, "title"):
                yield "", titled(title, text)
        else:
            continue
        known = True
    if not known:
        names = ", ".join((*_QUERY_NAMES, *_PASSAGE_NAMES, _EITHER_NAME))
        raise UserError(
            f"{row.where}: none of the fields {names}; the row has: "
            f"{', '.join(row.values) or 'no fields'}; rename the field that holds the text"
        )
