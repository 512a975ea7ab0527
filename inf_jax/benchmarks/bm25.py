"""BM25 with bm25s (arXiv 2407.03618), as a model to compare with."""

import logging

import numpy as np

from inf_jax.benchmarks.searching import best
from inf_jax.benchmarks.task import BenchmarkTask
from inf_jax.core.errors import UserError

SETTINGS = "BM25 of bm25s: lucene, k1 1.5, b 0.75, English stop words, no stemming"


def run_of_bm25(task: BenchmarkTask) -> dict[str, dict[str, float]]:
    """The run of a task, query and instruction as one text; scores as in `SETTINGS`.

    The ranking is that of all documents, also those that share no word with the query and score 0,
    as in mteb: a p-MRR needs their ranks. Equal scores: the larger id first.

    Raises:
      UserError: bm25s is not installed.
    """
    try:
        import bm25s
    except ImportError:
        raise UserError(
            "bm25 needs the extra benchmark: pip install 'inf_jax[benchmark]'"
        ) from None
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs at DEBUG
    quiet = {"show_progress": False, "leave": False}
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    words = bm25s.tokenize(list(task.corpus.values()), stopwords="en", **quiet)
    if not any(words.ids):
        raise UserError(f"{task.name}: the documents have no words for BM25; leave bm25 out")
    index.index(words, show_progress=False)
    texts = [f"{query} {instruction}".strip() for query, instruction in task.queries.values()]
    queries = bm25s.tokenize(texts, stopwords="en", return_ids=False, **quiet)
    rows = {document: n for n, document in enumerate(task.corpus)}
    ids = sorted(rows, reverse=True)
    order = np.array([rows[document] for document in ids])
    run = {}
    for qid, query in zip(task.queries, queries, strict=True):
        known = [word for word in query if word in index.vocab_dict]
        scores = index.get_scores(known) if known else np.zeros(len(ids), np.float32)
        if task.candidates is not None:
            found = {d: float(scores[rows[d]]) for d in task.candidates.get(qid, ())}
            run[qid] = best(found, task.top_k)
        else:
            scores = scores[order]
            places = _first(scores, task.top_k)
            run[qid] = {ids[n]: float(scores[n]) for n in places}
    return run


def _first(scores: np.ndarray, k: int) -> np.ndarray:
    """int[min(k, n)], where the k largest of float[n] are, in order; equals: the first of them."""
    if k < len(scores):
        least = np.partition(scores, -k)[-k]
        above = np.flatnonzero(scores > least)
        places = np.concatenate((above, np.flatnonzero(scores == least)[: k - len(above)]))
        places.sort()
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")]
