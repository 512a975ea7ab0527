"""Confidence intervals of differences by the paired bootstrap, over clusters of queries."""

import dataclasses
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from inf_jax.core.errors import UserError
from inf_jax.metrics.runs import Score

DRAWS = 10_000
LEVEL = 95  # per cent
_NONE = np.empty(0, np.float32)
_VALUES = 1 << 23  # query numbers that are drawn at once


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean difference with its 95 % interval, NaN where all queries are one cluster, and its
    draws where they are kept, float[draws]."""

    value: float
    low: float
    high: float
    drawn: np.ndarray = dataclasses.field(compare=False, repr=False)


def with_interval(value: float, drawn: np.ndarray) -> Difference:
    """A difference with the percentile interval (Efron and Tibshirani 1993, section 13) of its
    draws, float[draws]; NaN where these are."""
    tail = (100 - LEVEL) / 2
    low, high = np.percentile(drawn, (tail, 100 - tail))
    return Difference(float(value), float(low), float(high), drawn)


def paired_bootstrap(
    ours: np.ndarray,
    theirs: np.ndarray,
    *,
    clusters: Sequence[int] | None = None,
    draws: int = DRAWS,
    seed: Sequence[int] = (0,),
) -> tuple[np.ndarray, np.ndarray]:
    """Mean differences, and those of resampled queries.

    Each draw takes as many clusters as there are with replacement, the same for both models, each
    with all its queries (the cluster bootstrap, Davison and Hinkley 1997, section 3.8); where a
    model has several seeds it takes as many of them with replacement, independently for each model.

    Args:
      ours, theirs: float[seeds, n, m]: m metrics of n queries; the seeds may differ in number.
      clusters: int[n], which queries are drawn together, numbered from 0 without gaps; None: each
        by itself.
      draws: how many.
      seed: whole numbers from 0 on.

    Returns:
      (differences float64[m], those of the draws float64[draws, m]; NaN for one cluster).
    """
    rng = np.random.default_rng(list(seed))
    m = ours.shape[2]
    means = [np.asarray(values, np.float64).mean(axis=(0, 1)) for values in (ours, theirs)]
    ours, theirs = (_sums(values, clusters) for values in (ours, theirs))
    n = ours.shape[1]
    if n == 1:  # nothing varies between draws
        return means[0] - means[1], np.full((draws, m), np.nan)
    sizes = np.ones(n) if clusters is None else np.bincount(clusters, minlength=n)
    drawn = np.empty((draws, m))
    size = max(1, min(draws, _VALUES // n))
    for start in range(0, draws, size):
        block = min(size, draws - start)
        chosen = rng.integers(0, n, (block, n)) + n * np.arange(block)[:, None]
        counts = np.bincount(chosen.ravel(), minlength=block * n).reshape(block, n)
        counts = counts / (counts @ sizes)[:, None]
        both = []
        for values in (ours, theirs):
            seeds = len(values)
            each = np.stack([counts @ one for one in values], 1)
            if seeds > 1:  # [block, seeds, m]
                picks = rng.integers(0, seeds, (block, seeds))
                each = np.take_along_axis(each, picks[:, :, None], axis=1)
            both.append(each.mean(axis=1))
        drawn[start : start + block] = both[0] - both[1]
    return means[0] - means[1], drawn


def _sums(values: np.ndarray, clusters: Sequence[int] | None) -> np.ndarray:
    """float64[seeds, clusters, m], the sums of float[seeds, n, m] over each cluster's queries."""
    values = np.asarray(values, np.float64)
    if clusters is None:
        return values
    sums = np.zeros((len(values), max(clusters) + 1, values.shape[2]))
    np.add.at(sums, (slice(None), np.asarray(clusters)), values)
    return sums


def differences(
    ours: Sequence[Mapping[str, Score]],
    theirs: Sequence[Mapping[str, Score]],
    *,
    task: str,
    clusters: Mapping[str, Mapping[str, str]] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    keep: str = "",
) -> dict[str, Difference]:
    """The difference in each metric of two models, each given by the scores of its seeds.

    Args:
      ours, theirs: metric -> Score, for each seed.
      task: its name.
      clusters: as of `scoring.clusters_of`; None: what a metric is a mean of is drawn one by one.
      keep: the metric whose draws are kept.

    The draws depend on `seed`, the task and the queries of a metric only.

    Raises:
      UserError: the two have other metrics, or other queries of one.
    """
    by_units: dict[tuple[tuple[str, ...], tuple[int, ...] | None], list[str]] = {}
    for name, score in ours[0].items():
        units = tuple(score.per_query)
        for other in (*ours, *theirs):
            if name not in other or other[name].per_query.keys() != score.per_query.keys():
                raise UserError(f"{task}, {name}: the models were scored on different queries")
        by_units.setdefault((units, _numbers(units, name, clusters)), []).append(name)
    found: dict[str, Difference] = {}
    for (units, numbers), names in by_units.items():
        values = [
            np.array([[[s[n].per_query[u] for n in names] for u in units] for s in scores])
            for scores in (ours, theirs)
        ]
        key = zlib.crc32("\n".join((task, *sorted(units))).encode())
        means, drawn = paired_bootstrap(*values, clusters=numbers, draws=draws, seed=(seed, key))
        for name, mean, column in zip(names, means, drawn.T, strict=True):
            found[name] = with_interval(mean, column.astype(np.float32))
            if name != keep:
                found[name] = dataclasses.replace(found[name], drawn=_NONE)
    return {name: found[name] for name in ours[0]}


def _numbers(
    units: tuple[str, ...], metric: str, clusters: Mapping[str, Mapping[str, str]] | None
) -> tuple[int, ...] | None:
    """The number of each unit's cluster, in order of appearance."""
    if clusters is None:
        return None
    of_unit = clusters.get(metric, clusters[""])
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(of_unit[unit], len(numbers)) for unit in units)
