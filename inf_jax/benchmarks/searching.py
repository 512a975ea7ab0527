"""Runs of a task: rankings of a model's vectors, by inner product on the devices."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from inf_jax.benchmarks.task import BenchmarkTask
from inf_jax.core.errors import UserError
from inf_jax.evaluation.search import topk_blocks
from inf_jax.retriever.similarity import similarities, unit_vectors

_BLOCK = 64  # queries that are compared at once with all documents by a distance


def run_of_vectors(
    task: BenchmarkTask,
    queries: np.ndarray,
    documents: np.ndarray,
    *,
    similarity: str = "cosine",
    mesh: Mesh | None = None,
) -> dict[str, dict[str, float]]:
    """The best documents of each query, in order; ties by the larger id first, as in trec_eval.

    Args:
      queries: float32[q, e], of `task.queries` in that order.
      documents: float32[d, e], of `task.corpus` in that order.
      similarity: see `retriever.similarity.similarities`.
      mesh: devices over which the documents are sharded.

    Returns:
      query id -> {document id: similarity}, at most `task.top_k` of them.

    Raises:
      UserError: not one vector of each text, or one that is not finite.
    """
    for what, vectors, texts in (
        ("query", queries, task.queries),
        ("document", documents, task.corpus),
    ):
        if len(vectors) != len(texts):
            raise UserError(f"{task.name}: {len(vectors)} {what} vectors for {len(texts)} texts")
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            name = list(texts)[int(finite.argmin())]
            raise UserError(f"{task.name}: the vector of {what} {name!r} is NaN or infinite")
    if similarity == "cosine":
        queries, documents = unit_vectors(queries), unit_vectors(documents)
    if task.candidates is not None:
        return _of_candidates(task, queries, documents, similarity)
    rows = {document: n for n, document in enumerate(task.corpus)}
    ids = sorted(rows, reverse=True)
    documents = documents[[rows[document] for document in ids]]
    k = min(task.top_k, len(ids))
    if similarity in ("cosine", "dot"):
        blocks = topk_blocks(queries, documents, k, mesh=mesh)
    else:
        blocks = _by_distance(queries, documents, k, similarity)
    found = ((s, i) for scores, indices in blocks for s, i in zip(scores, indices, strict=True))
    return {
        qid: dict(zip([ids[n] for n in places.tolist()], scores.tolist(), strict=True))
        for qid, (scores, places) in zip(task.queries, found, strict=True)
    }


def best(scores: Mapping[str, float], k: int) -> dict[str, float]:
    """The k best of {document id: score} in order; ties by the larger id first."""
    chosen = sorted(scores.items(), key=lambda item: (item[1], item[0]), reverse=True)
    return dict(chosen[:k])


def _of_candidates(
    task: BenchmarkTask, queries: np.ndarray, documents: np.ndarray, similarity: str
) -> dict[str, dict[str, float]]:
    rows = {document: n for n, document in enumerate(task.corpus)}
    kind = "dot" if similarity == "cosine" else similarity  # they have unit length already
    run = {}
    for qid, query in zip(task.queries, queries, strict=True):
        ids: Sequence[str] = task.candidates.get(qid, ())
        vectors = documents[[rows[document] for document in ids]]
        scores = similarities(query, vectors, kind=kind)[0] if ids else ()
        run[qid] = best(dict(zip(ids, map(float, scores), strict=True)), task.top_k)
    return run


def _by_distance(
    queries: np.ndarray, documents: np.ndarray, k: int, similarity: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(queries), _BLOCK):
        scores = similarities(queries[start : start + _BLOCK], documents, kind=similarity)
        places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        yield np.take_along_axis(scores, places, axis=1), places
