"""Compares vectors of queries and passages as a model's settings say."""

import numpy as np

from inf_jax.core.choices import SIMILARITIES
from inf_jax.core.errors import UserError


def similarities(queries: np.ndarray, passages: np.ndarray, *, kind: str) -> np.ndarray:
    """The similarity of each query to each passage; a higher one is nearer.

    Args:
      queries: float32[n, e]; float32[e] is one query.
      passages: float32[m, e], likewise.
      kind: "cosine", "dot", or "euclidean" or "manhattan", the negative distance.

    Returns:
      float32[n, m].

    Raises:
      UserError: vectors of different lengths, or no vectors.
    """
    if kind not in SIMILARITIES:
        raise ValueError(f"unknown similarity {kind!r}; choose one of {', '.join(SIMILARITIES)}")
    shapes = np.shape(queries), np.shape(passages)
    queries, passages = np.atleast_2d(queries), np.atleast_2d(passages)
    if queries.ndim != 2 or passages.ndim != 2 or queries.shape[1] != passages.shape[1]:
        raise UserError(
            f"similarity of arrays of shapes {shapes[0]} and {shapes[1]}: give vectors of the same "
            "number of entries, as rows"
        )
    if kind in ("euclidean", "manhattan"):
        order = 2 if kind == "euclidean" else 1  # a row at a time: [m, e] and no more
        rows = [-np.linalg.norm(passages - query, ord=order, axis=1) for query in queries]
        return np.array(rows, np.float32).reshape(len(queries), len(passages))
    if kind == "cosine":
        queries, passages = unit_vectors(queries), unit_vectors(passages)
    return queries @ passages.T


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """float32[n, e], each vector scaled to length 1; a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
