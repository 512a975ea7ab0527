"""Retrieval metrics on runs and qrels, in the layouts of pytrec_eval; plain Python and numpy."""

from inf_jax.metrics.instruction import (
    p_mrr,
    p_mrr_of_ranks,
    paired_accuracy,
    robustness,
    sicr,
    wise,
    worst_of_groups,
)
from inf_jax.metrics.ranking import average_precision, mrr, ndcg, ranking_scores, recall

__all__ = [
    "average_precision",
    "mrr",
    "ndcg",
    "p_mrr",
    "p_mrr_of_ranks",
    "paired_accuracy",
    "ranking_scores",
    "recall",
    "robustness",
    "sicr",
    "wise",
    "worst_of_groups",
]
