"""BM25 (`inf_jax.evaluation.bm25`) as a model to compare with."""

import numpy as np

from inf_jax.benchmarks.searching import best
from inf_jax.benchmarks.task import BenchmarkTask
from inf_jax.evaluation.bm25 import Bm25, first_places


def run_of_bm25(task: BenchmarkTask) -> dict[str, dict[str, float]]:
    """The run of a task, query and instruction as one text; scores as in `Bm25`.

    The ranking is that of all documents, also those that share no word with the query and score 0,
    as in mteb: a p-MRR needs their ranks. Equal scores: the larger id first.

    Raises:
      UserError: bm25s is not installed.
    """
    index = Bm25(list(task.corpus.values()), task.name)
    texts = [f"{query} {instruction}".strip() for query, instruction in task.queries.values()]
    rows = {document: n for n, document in enumerate(task.corpus)}
    ids = sorted(rows, reverse=True)
    order = np.array([rows[document] for document in ids])
    run = {}
    for qid, scores in zip(task.queries, index.scores(texts), strict=True):
        if task.candidates is not None:
            found = {d: float(scores[rows[d]]) for d in task.candidates.get(qid, ())}
            run[qid] = best(found, task.top_k)
        else:
            scores = scores[order]
            places = first_places(scores, task.top_k)
            run[qid] = {ids[n]: float(scores[n]) for n in places}
    return run
