"""Mines hard negatives: candidates of each query, scores, and the rules that choose among them.

The rules, their order and their defaults are those of sentence-transformers' `mine_hard_negatives`.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from inf_jax.core.errors import UserError
from inf_jax.data.records import text_hash
from inf_jax.distributed.mesh import local_mesh
from inf_jax.evaluation.bm25 import Bm25, first_places
from inf_jax.vectors.pairs import MiningTexts, PairRow
from inf_jax.vectors.searching import local_share, search_store
from inf_jax.vectors.store import VectorStore

SAMPLING = ("top", "random")
_PAIRS = 1 << 16  # whose vectors are in memory at once


class FoundPassages(NamedTuple):
    """Passages of each query: float32[q, k] scores and int64[q, k] numbers, -inf and -1 where there
    are fewer than k."""

    scores: np.ndarray
    numbers: np.ndarray


@dataclasses.dataclass(frozen=True)
class MiningRules:
    """Which candidates become negatives.

    Attributes:
      negatives: of a query, at most.
      range_min: the best so many of the candidates that are left are skipped.
      range_max: how many of them count, the skipped ones included; 0: `depth`.
      absolute_margin: a negative's score is at most the positive's minus this; of several positives
        the one with the lowest score counts. None: no such rule.
      relative_margin: likewise, minus this share of its magnitude.
      max_score, min_score: of a negative.
      sampling: "top", or "random" among those that are left, seeded by `seed` and the query.

    Raises:
      UserError: rules that leave no negative.
    """

    negatives: int = 3
    range_min: int = 0
    range_max: int = 0
    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    sampling: str = "top"
    seed: int = 0

    def __post_init__(self):
        if self.range_max and self.range_max - self.range_min < self.negatives:
            raise UserError(
                f"range_min={self.range_min} and range_max={self.range_max} leave fewer than "
                f"{self.negatives} negatives of a query; raise range_max"
            )
        if None not in (self.min_score, self.max_score) and self.min_score > self.max_score:
            raise UserError(
                f"min_score={self.min_score:g} is above max_score={self.max_score:g}: no negative "
                "is between them"
            )

    def depth(self, most_positives: int) -> int:
        """`range_max`, by default enough for the negatives if a rule drops nine of ten."""
        rules = (self.absolute_margin, self.relative_margin, self.max_score)
        spare = 1 if rules == (None,) * 3 else 10
        return self.range_max or self.range_min + spare * self.negatives + most_positives


RULE_NAMES = tuple(field.name for field in dataclasses.fields(MiningRules))


class Positives:
    """The known positives of the queries, each (query, passage) once.

    Attributes:
      query, passage: int64[n], in the order of queries and passages.
      most: of a query.
    """

    def __init__(self, texts: MiningTexts):
        self._width = len(texts.same)
        keys = texts.query_of * self._width + texts.passage_of
        self._keys, self._of_row = np.unique(keys, return_inverse=True)
        self.query, self.passage = np.divmod(self._keys, self._width)
        self.most = int(np.bincount(self.query).max())
        own = np.flatnonzero(texts.own >= 0)
        same = (
            self.query * self._width + texts.same[self.passage],
            own * self._width + texts.own[own],
        )
        self._same, self._classes = np.concatenate(same), texts.same

    def known(self, numbers: np.ndarray) -> np.ndarray:
        """bool[q, k]: which of int[q, k] are positives of their query."""
        return np.isin(np.arange(len(numbers))[:, None] * self._width + numbers, self._keys)

    def same_text(self, numbers: np.ndarray) -> np.ndarray:
        """bool[q, k]: which have the text of a positive, or of the query, but for case."""
        classes = self._classes[numbers]
        return np.isin(np.arange(len(numbers))[:, None] * self._width + classes, self._same)

    def lowest(self, scores: np.ndarray) -> np.ndarray:
        """float32[q], each query's lowest of float32[n]."""
        low = np.full(self.query[-1] + 1, np.inf, np.float32)
        np.minimum.at(low, self.query, scores)
        return low

    def of_rows(self, scores: np.ndarray) -> np.ndarray:
        """float32[rows], of float32[n]."""
        return scores[self._of_row.reshape(-1)]


def pair_scores(
    queries: np.ndarray, store: VectorStore, query: np.ndarray, passage: np.ndarray
) -> np.ndarray:
    """float32[n], the inner products of pairs; a shard of the passages is in memory at a time.

    Args:
      queries: float32[q, e].
      query, passage: int[n], numbers in `queries` and in the store; -inf where the latter is -1.
    """
    scores = np.full(len(passage), -np.inf, np.float32)
    order = np.argsort(passage, kind="stable")
    for shard in range(store.manifest.shards):
        numbers = store.manifest.numbers(shard)
        low, high = np.searchsorted(passage[order], (numbers.start, numbers.stop))
        vectors = store.vectors(shard) if low < high else None
        for start in range(low, high, _PAIRS):
            mine = order[start : min(start + _PAIRS, high)]
            mine_vectors = vectors[passage[mine] - numbers.start]
            scores[mine] = np.einsum("ne,ne->n", queries[query[mine]], mine_vectors)
    return scores


def dense_candidates(
    queries: np.ndarray, store: VectorStore, k: int, *, progress: bool
) -> FoundPassages:
    """The k best passages of each query, `search_store`'s."""
    found = search_store(
        queries, store, k, mesh=local_mesh(), share=local_share(), progress=progress
    )
    scores, numbers = (np.concatenate(each) for each in zip(*found, strict=True))
    return FoundPassages(scores, numbers.astype(np.int64))


def rescored(candidates: FoundPassages, queries: np.ndarray, store: VectorStore) -> FoundPassages:
    """The same passages with the scores of the model whose vectors these are."""
    rows = np.repeat(np.arange(len(queries)), candidates.numbers.shape[1])
    scores = pair_scores(queries, store, rows, candidates.numbers.reshape(-1))
    return FoundPassages(scores.reshape(candidates.numbers.shape), candidates.numbers)


def bm25_candidates(
    texts: MiningTexts, positives: Positives, k: int
) -> tuple[FoundPassages, np.ndarray]:
    """The k best passages of each query that share a word with it, query and instruction as one
    text, and float32[n], the scores of the positives. The index is in memory. Raises UserError."""
    index = Bm25(list(texts.passage_texts(range(len(texts.same)))), str(texts.passages.path.parent))
    count = len(texts.queries)
    found = FoundPassages(np.full((count, k), -np.inf, np.float32), np.full((count, k), -1))
    own = np.empty(len(positives.query), np.float32)
    bounds = np.searchsorted(positives.query, np.arange(count + 1))
    asked = [f"{query} {instruction}".strip() for query, instruction in texts.queries]
    for n, scores in enumerate(tqdm(index.scores(asked), "bm25", count, unit="query")):
        mine = slice(bounds[n], bounds[n + 1])
        own[mine] = scores[positives.passage[mine]]
        places = first_places(scores, k)
        places = places[scores[places] > 0]
        found.numbers[n, : len(places)] = places
        found.scores[n, : len(places)] = scores[places]
    return found, own


def united(parts: Sequence[FoundPassages]) -> FoundPassages:
    """The candidates of several searches, each passage of a query once, by number."""
    scores, numbers = (np.concatenate(each, axis=1) for each in zip(*parts, strict=True))
    order = np.argsort(numbers, axis=1, kind="stable")
    scores, numbers = (np.take_along_axis(x, order, axis=1) for x in (scores, numbers))
    numbers[:, 1:][numbers[:, 1:] == numbers[:, :-1]] = -1
    scores[numbers < 0] = -np.inf
    return FoundPassages(scores, numbers)


def choose_negatives(
    rules: MiningRules,
    candidates: FoundPassages,
    positives: Positives,
    lowest: np.ndarray,
    texts: MiningTexts,
) -> tuple[FoundPassages, Counter[str]]:
    """The negatives of each query, by score, and how many candidates each rule dropped.

    Args:
      lowest: float32[q], of the positives' scores.
    """
    scores, numbers = candidates.scores.copy(), candidates.numbers
    dropped: Counter[str] = Counter()
    low = lowest[:, None]
    with np.errstate(invalid="ignore"):
        checks = {
            "known positives of the query": lambda: positives.known(numbers),
            "the text of a positive or of the query": lambda: positives.same_text(numbers),
            "absolute margin": lambda: scores + np.float32(rules.absolute_margin) > low,
            "relative margin": lambda: (
                scores > low - np.abs(low) * np.float32(rules.relative_margin)
            ),
            "max score": lambda: scores > rules.max_score,
            "min score": lambda: scores < rules.min_score,
        }
        for name, check in checks.items():
            if getattr(rules, name.replace(" ", "_"), 0) is None:
                continue
            drop = check() & (scores > -np.inf)
            scores[drop] = -np.inf
            dropped[name] = int(drop.sum())
    order = np.lexsort((numbers, -scores), axis=-1)[:, : rules.depth(positives.most)]
    scores, numbers = (np.take_along_axis(x, order, axis=1) for x in (scores, numbers))
    dropped["range min"] = int((scores[:, : rules.range_min] > -np.inf).sum())
    scores, numbers = scores[:, rules.range_min :], numbers[:, rules.range_min :]
    if rules.sampling == "random":
        _draw(scores, rules, ["\n".join(query) for query in texts.queries])
        order = np.argsort(-scores, axis=1, kind="stable")
        scores, numbers = (np.take_along_axis(x, order, axis=1) for x in (scores, numbers))
    return FoundPassages(scores[:, : rules.negatives], numbers[:, : rules.negatives]), dropped


def _draw(scores: np.ndarray, rules: MiningRules, names: Sequence[str]) -> None:
    """Leaves `rules.negatives` of each row, the others become -inf."""
    for row, name in zip(scores, names, strict=True):
        options = np.flatnonzero(row > -np.inf)
        if len(options) > rules.negatives:
            key = np.array([rules.seed, text_hash(name)], np.uint64)
            rng = np.random.Generator(np.random.Philox(key=key))
            kept = rng.choice(options, rules.negatives, replace=False)
            row[np.setdiff1d(options, kept)] = -np.inf


def mined_rows(
    rows: Sequence[PairRow], texts: MiningTexts, chosen: FoundPassages, scores: np.ndarray | None
) -> Iterator[dict]:
    """The record of each pair: id and instruction where it has them, query, passage, negatives.

    Args:
      scores: float32[rows], of the passages; the records have them and the negatives' as scores.
        None: they have none.
    """
    for number, row in enumerate(rows):
        query = texts.query_of[number]
        found = chosen.scores[query] > -np.inf
        record = {name: value for name, value in row._asdict().items() if value}
        record["negatives"] = list(texts.passage_texts(chosen.numbers[query][found]))
        if scores is not None:
            each = [scores[number], *chosen.scores[query][found]]
            record["scores"] = [float(f"{score:.9g}") for score in each]
        yield record


def write_rows(file: BinaryIO, rows: Iterator[dict]) -> Counter[int]:
    """Writes JSON lines; returns how many have how many negatives."""
    counts: Counter[int] = Counter()
    for row in rows:
        file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        counts[len(row["negatives"])] += 1
    return counts
