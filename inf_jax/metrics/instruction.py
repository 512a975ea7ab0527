"""Metrics of instruction following: p-MRR, Robustness@k, paired accuracy, WISE and SICR.

Layouts and `Score` are as in `metrics.ranking`. The InfoSearch metrics (WISE, SICR) keep the
ranking rule of their benchmark: Python floats, ties in the order of the run.
"""

import math
from collections.abc import Mapping, Sequence

from inf_jax.core.errors import UserError
from inf_jax.metrics.ranking import ndcg, recall
from inf_jax.metrics.runs import (
    RANKINGS,
    Qrels,
    Run,
    Score,
    check_run,
    ranked_in_order,
    without_identical_ids,
)


def robustness(
    results: Run, qrels: Qrels, k: int = 10, *, groups: Mapping[str, str] | None = None
) -> Score:
    """Robustness@k (InstructIR, arXiv 2402.14334): a query's worst nDCG@k over its instructions.

    A document with the query's own id is ignored, as in mteb for this task. Arguments, result and
    errors as in `ndcg` and `worst_of_groups`.
    """
    return worst_of_groups(ndcg(without_identical_ids(results), qrels, k), groups=groups)


def worst_of_groups(score: Score, *, groups: Mapping[str, str] | None = None) -> Score:
    """The smallest value of each group of queries (in `per_query`), then the mean over groups.

    Args:
      groups: query id to group; None takes the part of an id `<query>_<instruction>` before its
        last "_", as in InstructIR.

    Raises:
      UserError: an id without "_", or one missing in `groups`.
    """
    worst: dict[str, float] = {}
    for qid, value in score.per_query.items():
        if groups is None:
            group, underscore, _ = qid.rpartition("_")
            if not underscore:
                raise UserError(
                    f"query id {qid!r} is not <query>_<instruction>; rename it or pass groups="
                )
        elif qid not in groups:
            raise UserError(f"query {qid!r} has no entry in groups; give each query one")
        else:
            group = groups[qid]
        worst[group] = min(value, worst.get(group, math.inf))
    return Score(worst)


def paired_accuracy(results: Run, qrels: Qrels) -> Score:
    """Paired accuracy (NevIR, arXiv 2305.07614): share of pairs with both queries answered first.

    Arguments as in `ndcg`; query ids are `<pair>_q1` and `<pair>_q2`, and the relevant document,
    the only one, must be ranked first for both. `per_query` is by pair.

    Raises:
      UserError: as `ndcg`; an id of another form, or only one query of a pair.
    """
    first = recall(results, qrels, 1).per_query
    pairs = dict.fromkeys(qid.rpartition("_")[0] for qid in first)
    for qid in first:
        if not qid.endswith(("_q1", "_q2")):
            raise UserError(f"query {qid!r} is neither <pair>_q1 nor <pair>_q2; rename it")
    for pair in pairs:
        for qid in (f"{pair}_q1", f"{pair}_q2"):
            if qid not in first:
                raise UserError(f"query {qid!r} is not in the run and qrels; both of a pair must")
    return Score({pair: float(first[f"{pair}_q1"] == 1 == first[f"{pair}_q2"]) for pair in pairs})


def p_mrr(results: Run, changed_qrels: Mapping[str, Sequence[str]], *, ties: str = "id") -> Score:
    """p-MRR (FollowIR, arXiv 2403.15246): rank change of documents that a new instruction excludes.

    For a document with rank o under the original and n under the changed instruction (1-based; a
    document missing from a run has rank len(run) + 1): n / o - 1 if o >= n, else 1 - o / n. Mean
    over a query's documents, then over queries.

    Args:
      results: the run with ids `<query>-og` and `<query>-changed`.
      changed_qrels: query to the documents that the changed instruction excludes. A query with
        neither id in the run is skipped, as in mteb.
      ties: "id", the larger document id first (mteb 2), or "order", that of the run, with scores
        as Python floats (mteb 1.7, InfoSearch).

    Returns:
      Score in (-1, 1) (papers print it times 100); positive follows the instruction.

    Raises:
      UserError: empty run, an id of another form, only one id of a query, or nothing to average.
    """
    if ties not in RANKINGS:
        raise UserError(f"ties={ties!r}; choose one of {', '.join(RANKINGS)}")
    check_run(results)
    for qid in results:
        if not qid.endswith(("-og", "-changed")):
            raise UserError(f"query {qid!r} is neither <query>-og nor <query>-changed; rename it")
    ranks = {}
    for qid, documents in changed_qrels.items():
        runs = [results.get(f"{qid}-{mode}") for mode in ("og", "changed")]
        if runs == [None, None] or not documents:
            continue
        if None in runs:
            mode = ("og", "changed")[runs.index(None)]
            raise UserError(f"query {qid!r}: '{qid}-{mode}' is not in the run; search it as well")
        old, new = ({d: r for r, d in enumerate(RANKINGS[ties](run), 1)} for run in runs)
        ranks[qid] = [
            (old.get(d, len(old) + 1), new.get(d, len(new) + 1))
            for d in _documents(documents, qid=qid)
        ]
    return p_mrr_of_ranks(ranks)


def p_mrr_of_ranks(ranks: Mapping[str, Sequence[tuple[int, int]]]) -> Score:
    """`p_mrr` from ranks.

    Args:
      ranks: query to (rank under the original, rank under the changed instruction) of each
        document that the latter excludes, 1-based; one at least.

    Raises:
      UserError: no queries.
    """
    if not ranks:
        raise UserError("no query of changed_qrels is in the run; compare the ids of the two")
    return Score(
        {
            qid: _mean([n / o - 1 if o >= n else 1 - o / n for o, n in both])
            for qid, both in ranks.items()
        }
    )


def wise(
    runs: Mapping[str, Run],
    positive_qrels: Mapping[str, Sequence[str]],
    negative_qrels: Mapping[str, Sequence[str]],
    *,
    ideal: bool = False,
) -> Score:
    """WISE (InfoSearch, arXiv 2410.23841): reward for following an instruction and its reverse.

    As in the benchmark's code, with o, i and r the ranks of a positive document with the query
    alone, the instruction and the reversed instruction. If i <= o < r: 1 if i = 1 and o is below
    the number of the query's positives and negatives, else (1 - sqrt(o - i) / 20) / sqrt(i) if o <=
    20, else 0.01. Otherwise: -1 if r < o < i, else (o - i) / i if o <= i, else (r - o) / o. Mean
    over a query's positives, then over queries.

    Args:
      runs: {"ori": run, "ins": run, "rev": run}, the same query ids in each.
      positive_qrels: query to the documents that fit the instruction.
      negative_qrels: query to those that fit the query but not the instruction.
      ideal: return the value of perfect following from the original ranks (i = 1, r = o + 1).

    Raises:
      UserError: a run or a query is missing, or a query has no positive.
    """
    per_query = {}
    for qid, rows in _infosearch_ranks(runs, positive_qrels).items():
        total = len(positive_qrels[qid]) + len(negative_qrels.get(qid, ()))
        ranks = [[rank for rank, _ in row] for row in rows]
        if ideal:
            ranks = [[o, 1, o + 1] for o, _, _ in ranks]
        per_query[qid] = _mean([_wise(o, i, r, total) for o, i, r in ranks])
    return Score(per_query)


def sicr(
    runs: Mapping[str, Run],
    positive_qrels: Mapping[str, Sequence[str]],
    *,
    all_positives: bool = False,
) -> Score:
    """SICR (InfoSearch, arXiv 2410.23841): the share of positives that follow strictly.

    With ranks and scores o, i, r as in `wise` (score 0 where the document is missing): a positive
    follows if its scores have i > o > r and its ranks i < o < r; where o is rank 1 already, i must
    stay at rank 1 and its score may be equal.

    Args:
      runs, positive_qrels: as in `wise`, and the same errors.
      all_positives: count every positive. The benchmark's code resets its counter at each document,
        so that only a query's last positive counts (over their number); False reproduces that.
    """
    per_query = {}
    for qid, rows in _infosearch_ranks(runs, positive_qrels).items():
        follows = [_follows(*row) for row in rows]
        per_query[qid] = sum(follows if all_positives else follows[-1:]) / len(follows)
    return Score(per_query)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _documents(documents: Sequence[str], *, qid: str) -> Sequence[str]:
    if isinstance(documents, str):  # would be iterated letter by letter
        raise UserError(f"query {qid!r}: expected a list of document ids, got {documents!r}")
    return documents


def _infosearch_ranks(
    runs: Mapping[str, Run], positive_qrels: Mapping[str, Sequence[str]]
) -> dict[str, list]:
    """query -> for each positive, its (rank, score) in the runs ori, ins and rev."""
    if not positive_qrels:
        raise UserError("the positive qrels are empty; WISE and SICR need positives")
    for mode in ("ori", "ins", "rev"):
        if mode not in runs:
            raise UserError(f"runs has no {mode!r}; it must hold 'ori', 'ins' and 'rev'")
        check_run(runs[mode])
    rows = {}
    for qid, documents in positive_qrels.items():
        if not documents:
            raise UserError(f"query {qid!r} has no positive document")
        ranks = []
        for mode in ("ori", "ins", "rev"):
            if qid not in runs[mode]:
                raise UserError(f"query {qid!r} is not in the {mode!r} run; search it as well")
            run = runs[mode][qid]
            by_document = {d: (r, run[d]) for r, d in enumerate(ranked_in_order(run), 1)}
            ranks.append((by_document, (len(run) + 1, 0.0)))
        rows[qid] = [
            tuple(by_document.get(d, missing) for by_document, missing in ranks)
            for d in _documents(documents, qid=qid)
        ]
    return rows


def _wise(o: int, i: int, r: int, total: int) -> float:
    if i <= o < r:
        if i == 1 and o < total:
            return 1.0
        return (1 - math.sqrt(o - i) / 20) / math.sqrt(i) if o <= 20 else 0.01
    if r < o < i:
        return -1.0
    return (o - i) / i if o <= i else (r - o) / o


def _follows(ori: tuple, ins: tuple, rev: tuple) -> bool:
    (o, o_score), (i, i_score), (r, r_score) = ori, ins, rev
    if not (r > o and o_score > r_score):
        return False
    return i == 1 and i_score >= o_score if o == 1 else i < o and i_score > o_score
