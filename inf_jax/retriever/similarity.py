"""Compares vectors of queries and passages as a model's settings say."""

import numpy as np

from inf_jax.core.choices import SIMILARITIES


def similarities(queries: np.ndarray, passages: np.ndarray, *, kind: str) -> np.ndarray:
    """The similarity of each query to each passage; a higher one is nearer.

    Args:
      queries: float32[n, e].
      passages: float32[m, e].
      kind: "cosine", "dot", or "euclidean" or "manhattan", the negative distance.

    Returns:
      float32[n, m].
    """
    if kind not in SIMILARITIES:
        raise ValueError(f"unknown similarity {kind!r}; choose one of {', '.join(SIMILARITIES)}")
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
