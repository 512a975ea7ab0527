"""Searches the passages of a `VectorStore` exactly, each process its share of the shards."""

from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from tqdm import tqdm

from inf_jax.core.errors import UserError
from inf_jax.evaluation.search import PartSearch
from inf_jax.retriever.stream import one_ahead
from inf_jax.vectors.encoding import Share
from inf_jax.vectors.store import VectorStore

_BEST = 1 << 27  # (query, passage) pairs that are found in one pass over the shards: 1 GiB
_HITS = 1 << 22  # of them, ids that are in memory at once


def search_store(
    queries: np.ndarray,
    store: VectorStore,
    k: int,
    *,
    mesh: Mesh,
    share: Share = Share(),
    progress: bool = True,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The k passages with the largest inner product with each query; ties to the lower number.

    Shards are read, checked and put on the devices one after another, the next one while one is
    searched: neither device nor host holds more than two.

    Args:
      queries: float32[q, e], the same in all processes.
      mesh: devices of this process.
      share: every process of `jax.distributed` searches one; the results are merged.

    Yields:
      (scores float32[b, k], descending; numbers int32[b, k]) of consecutive queries, the same in
      all processes; all queries at once unless they are very many.

    Raises:
      UserError: `k` above the number of passages, queries of another width or that are not finite,
        or as `VectorStore.vectors`.
    """
    made = store.manifest
    if not 1 <= k <= made.count:
        raise UserError(f"k={k} with {made.count} passages: k must be 1 to {made.count}")
    if queries.ndim != 2 or queries.shape[1] != made.width or not np.isfinite(queries).all():
        raise UserError(
            f"queries {queries.shape} with passages of {made.width} entries: finite numbers "
            f"[queries, {made.width}] are expected"
        )
    shards = range(share.process, made.shards, share.count)
    most = max(1, _BEST // k)
    passes = range(0, len(queries), most)
    with tqdm(
        total=len(passes) * sum(map(made.rows, shards)),
        desc="search",
        unit="passage",
        disable=not progress,
    ) as bar:
        for start in passes:
            rows = min(made.shard_size, made.count)
            search = PartSearch(queries[start : start + most], k, rows=rows, mesh=mesh)
            for shard, (vectors, _) in zip(shards, one_ahead(store.vectors, shards), strict=True):
                search.add(vectors, shard * made.shard_size)
                bar.update(len(vectors))
            yield _merged(*search.best(), k) if share.count > 1 else search.best()


def _merged(scores: np.ndarray, numbers: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of all processes' best."""
    scores, numbers = (
        np.concatenate(multihost_utils.process_allgather(x), axis=1) for x in (scores, numbers)
    )
    order = np.lexsort((numbers, -scores))[:, :k]
    return tuple(np.take_along_axis(x, order, axis=1) for x in (scores, numbers))


def write_run(
    file: BinaryIO,
    names: Sequence[str],
    found: Iterable[tuple[np.ndarray, np.ndarray]],
    store: VectorStore,
    *,
    tag: str,
) -> None:
    """Writes a run in TREC's format: query id, Q0, passage id, rank from 1, score, tag.

    Scores have all digits of their float32. Equal ones are in the order of the passages.

    Args:
      names: ids of the queries.
      found: as `search_store` yields it.
    """
    done = 0
    for scores, numbers in found:
        step = max(1, _HITS // scores.shape[1])
        for start in range(0, len(scores), step):
            rows = slice(start, start + step)
            ids = _ids_of(numbers[rows], store)
            for passages, values in zip(ids, scores[rows].tolist(), strict=True):
                lines = (
                    f"{names[done]} Q0 {passage} {rank} {value:.9g} {tag}\n"
                    for rank, (passage, value) in enumerate(zip(passages, values, strict=True), 1)
                )
                file.write("".join(lines).encode())
                done += 1


def _ids_of(numbers: np.ndarray, store: VectorStore) -> np.ndarray:
    """object[b, k], the ids of passages; one shard's ids are in memory at a time."""
    ids = np.empty(numbers.shape, object)
    shards, rows = np.divmod(numbers, store.manifest.shard_size)
    for shard in np.unique(shards):
        mine = shards == shard
        ids[mine] = np.array(store.ids(int(shard)), object)[rows[mine]]
    return ids


def read_queries(store: VectorStore) -> tuple[list[str], np.ndarray]:
    """(ids, float32[q, e]) of a store of queries. Raises UserError where it is damaged."""
    shards = range(store.manifest.shards)
    vectors = np.concatenate([store.vectors(shard) for shard in shards]).astype(np.float32)
    return [name for shard in shards for name in store.ids(shard)], vectors


def local_share() -> Share:
    """This process's share."""
    return Share(jax.process_index(), jax.process_count())
