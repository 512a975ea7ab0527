"""Scores texts by BM25 with bm25s (arXiv 2407.03618): lucene's kind, English stop words."""

import logging
from collections.abc import Iterator, Sequence

import numpy as np

from inf_jax.core.errors import UserError

SETTINGS = "BM25 of bm25s: lucene, k1 1.5, b 0.75, English stop words, no stemming"
_QUIET = {"show_progress": False, "leave": False}


def check_installed() -> None:
    """Raises UserError where bm25s is not; quick, before long work that ends in an index."""
    try:
        import bm25s  # noqa: F401
    except ImportError:
        raise UserError(
            "bm25 needs the extra benchmark: pip install 'inf_jax[benchmark]'"
        ) from None


class Bm25:
    """The index of n texts, which are in memory; scores as in `SETTINGS`.

    Args:
      texts: n texts.
      name: whose they are, for messages.

    Raises:
      UserError: bm25s is not installed, or no text has a word.
    """

    def __init__(self, texts: Sequence[str], name: str):
        check_installed()
        import bm25s

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs at DEBUG
        self._tokenize, self._count = bm25s.tokenize, len(texts)
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        words = bm25s.tokenize(list(texts), stopwords="en", **_QUIET)
        if not any(words.ids):
            raise UserError(f"{name}: the documents have no words for BM25; leave bm25 out")
        self._index.index(words, show_progress=False)

    def scores(self, queries: Sequence[str]) -> Iterator[np.ndarray]:
        """float32[n] of each query; 0 for texts that share no word with it."""
        words = self._tokenize(list(queries), stopwords="en", return_ids=False, **_QUIET)
        for query in words:
            known = [word for word in query if word in self._index.vocab_dict]
            none = np.zeros(self._count, np.float32)
            yield self._index.get_scores(known) if known else none


def first_places(scores: np.ndarray, k: int) -> np.ndarray:
    """int[min(k, n)], where the k largest of float[n] are, in order; equals: the first of them."""
    if k < len(scores):
        least = np.partition(scores, -k)[-k]
        above = np.flatnonzero(scores > least)
        places = np.concatenate((above, np.flatnonzero(scores == least)[: k - len(above)]))
        places.sort()
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")]
