"""Exact top-k search on the device, over tiles of passages that may be sharded over a mesh."""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inf_jax.core.errors import UserError
from inf_jax.distributed.mesh import on_devices

QUERIES = 1024  # searched at once: their scores of a tile of 8192 passages take 32 MiB
BLOCK, ACCELERATOR_BLOCK = 8192, 65536  # passages a tile: a GPU takes half as long with larger ones


def topk(
    queries: jax.Array,
    passages: jax.Array,
    k: int,
    *,
    block: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The k passages with the largest inner product with each query; ties to the lower index.

    No [q, p] matrix is made: each device holds the scores [q, block] of a tile, those of its best
    groups (`_best_of_tile`) and the best [q, k] so far, about 4 q (block + 2 sqrt(block k) + 4 k)
    bytes; `topk_blocks` splits the queries.

    Args:
      queries: [q, e]; bfloat16 or float32.
      passages: [p, e]; bfloat16 or float32; on the host, or already on the mesh.
      k: 1 to p.
      block: passages per tile; need not divide p. None: 8192 on a CPU, else 65536.
      mesh: shards the passages over all its axes and replicates the queries; its size need not
        divide p. None: the default device.

    Returns:
      (scores float32[q, k], descending; indices int32[q, k] into the passages).

    Raises:
      UserError: shapes that do not match, k below 1 or above p, block below 1.
    """
    return _searcher(queries, passages, k, block, mesh)(queries)


def topk_blocks(
    queries: np.ndarray,
    passages: jax.Array,
    k: int,
    *,
    block: int | None = None,
    mesh: Mesh | None = None,
    most: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`topk` of a few queries at a time: memory does not grow with their number.

    Args:
      queries, passages, k, block, mesh: as in `topk`; the passages go to the devices once.
      most: queries of a block, by default 1024. All blocks have equally many, so that one program
        serves all.

    Yields:
      (scores float32[b, k], indices int32[b, k]) of consecutive queries, as numpy arrays.

    Raises:
      UserError: as `topk`.
    """
    search = _searcher(queries, passages, k, block, mesh)
    del passages  # the devices have them
    count = len(queries)
    if not count:
        return
    size = -(-count // -(-count // (most or QUERIES)))
    for start in range(0, count, size):
        part = queries[start : start + size]
        present = len(part)
        part = np.pad(part, ((0, size - present), (0, 0)))
        scores, indices = (np.asarray(x)[:present] for x in search(part))
        yield scores, indices


class PartSearch:
    """`topk` of passages that come in parts, of which the devices hold one or two at a time.

    Equal scores go to the passage of the part that came first, there to the lower index. All parts
    and all blocks of queries have the same shapes on the devices: one program serves all, and a
    score does not depend on what else is searched. On a mesh of another size the tiles may have
    other shapes, whose products XLA may sum in another order: scores agree to rounding.

    Args:
      queries: float32[q, e].
      k: 1 or more.
      rows: most passages of a part.
      block: passages per tile, as of `topk`.
      mesh: a part is sharded over all its axes.

    Raises:
      UserError: `k` below 1.
    """

    def __init__(
        self, queries: np.ndarray, k: int, *, rows: int, mesh: Mesh, block: int | None = None
    ):
        if k < 1:
            raise UserError(f"k={k}: must be 1 or more")
        self._count, self._rows, self._mesh = len(queries), rows + -rows % mesh.size, mesh
        self._block = _default_block(mesh) if block is None else block
        replicated = NamedSharding(mesh, PartitionSpec())
        self._queries, self._best = [], []
        for start in range(0, len(queries), QUERIES):
            part = queries[start : start + QUERIES]
            part = np.pad(part, ((0, QUERIES - len(part)), (0, 0)))
            none = np.full((QUERIES, k), -np.inf, np.float32), np.full((QUERIES, k), -1, np.int32)
            self._queries.append(on_devices(part, replicated))
            self._best.append(on_devices(none, replicated))

    def add(self, passages: np.ndarray, first: int) -> None:
        """Searches a part, floating-point [n, e]; its passages have the numbers from `first` on.

        Raises:
          UserError: numbers that int32 does not hold.
        """
        real = len(passages)
        if first + real > np.iinfo(np.int32).max:
            raise UserError(f"passages up to number {first + real}: at most 2^31 - 1 are searched")
        passages = np.pad(passages, ((0, self._rows - real), (0, 0)))
        sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        passages = on_devices(passages, sharding)
        self._best = [
            _add_part(best, queries, passages, first, real, block=self._block, mesh=self._mesh)
            for best, queries in zip(self._best, self._queries, strict=True)
        ]

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """(scores float32[q, k], descending; numbers int32[q, k]) of all parts so far; -inf where
        there are fewer than k."""
        blocks = [[np.asarray(x) for x in best] for best in self._best]
        scores, numbers = (np.concatenate(x)[: self._count] for x in zip(*blocks, strict=True))
        return scores, numbers


def _searcher(
    queries: jax.Array, passages: jax.Array, k: int, block: int | None, mesh: Mesh | None
) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """`topk` of queries like these in these passages, which are put on the devices."""
    if queries.ndim != 2 or passages.ndim != 2 or queries.shape[1] != passages.shape[1]:
        raise UserError(
            f"queries {queries.shape} and passages {passages.shape}: expected [q, e] and [p, e]"
        )
    p = passages.shape[0]
    if not 1 <= k <= p:
        raise UserError(f"k={k} with {p} passages: k must be 1 to {p}; pass min(k, passages)")
    if block is None:
        block = _default_block(mesh)
    if block < 1:
        raise UserError(f"block={block}: must be 1 or more")
    if mesh is None:
        on_device = jnp.asarray(passages)
        return lambda queries: _topk(jnp.asarray(queries), on_device, k=k, block=block)
    if p % mesh.size:
        pad = jnp.pad if isinstance(passages, jax.Array) else np.pad
        passages = pad(passages, ((0, -p % mesh.size), (0, 0)))
    sharded = on_devices(passages, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))
    replicated = NamedSharding(mesh, PartitionSpec())
    return lambda queries: _topk_sharded(
        on_devices(queries, replicated), sharded, k=k, block=block, real=p, mesh=mesh
    )


def _default_block(mesh: Mesh | None) -> int:
    device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    return BLOCK if device.platform == "cpu" else ACCELERATOR_BLOCK


@functools.partial(jax.jit, static_argnames=("k", "block"))
def _topk(queries: jax.Array, passages: jax.Array, *, k: int, block: int):
    return _scan(queries, passages, k=k, block=block, first=0, real=passages.shape[0])


@functools.partial(jax.jit, static_argnames=("k", "block", "real", "mesh"))
def _topk_sharded(
    queries: jax.Array, passages: jax.Array, *, k: int, block: int, real: int, mesh: Mesh
):
    return _on_mesh(queries, passages, real, k=k, block=block, mesh=mesh)


def _on_mesh(queries, passages, real, *, k: int, block: int, mesh: Mesh):
    """Each device searches its slice, then merges the best of all in the order of indices.

    The first `real` passages count.
    """
    axes = mesh.axis_names

    def local(queries: jax.Array, passages: jax.Array, real: jax.Array):
        count = passages.shape[0]
        first = jax.lax.axis_index(axes) * count
        best = _scan(queries, passages, k=min(k, count), block=block, first=first, real=real)
        scores, indices = (jax.lax.all_gather(x, axes, axis=1, tiled=True) for x in best)
        return _best(scores, indices, k)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(axes), PartitionSpec()),
        out_specs=PartitionSpec(),
        check_vma=False,  # each device merges the same gathered results
    )(queries, passages, jnp.int32(real))


@functools.partial(jax.jit, static_argnames=("block", "mesh"))
def _add_part(best, queries, passages, first, real, *, block: int, mesh: Mesh):
    """The best [q, k] so far, with a part whose first passage has number `first`."""
    k = best[0].shape[1]
    count = min(k, passages.shape[0])
    scores, indices = _on_mesh(queries, passages, real, k=count, block=block, mesh=mesh)
    found = scores, first + indices
    return _best(*(jnp.concatenate(pair, 1) for pair in zip(best, found, strict=True)), k)


def _scan(queries, passages, *, k: int, block: int, first, real):
    """(scores, indices) [q, k] of `passages`: a slice from number `first` on of `real` passages."""
    count = passages.shape[0]
    block = min(block, count)

    def tile(best, start):
        # The last tile begins early to stay inside; what the tile before it covers is masked.
        begin = jnp.minimum(start, count - block)
        rows = jax.lax.dynamic_slice_in_dim(passages, begin, block)
        scores = jnp.einsum(
            "qe,pe->qp",
            queries,
            rows,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        local = begin + jnp.arange(block, dtype=jnp.int32)
        new = (local >= start) & (first + local < real)
        scores = jnp.where(new[None], scores, -jnp.inf)
        scores, columns = _best_of_tile(scores, min(k, block))
        found = (scores, first + begin + columns)
        merged = (jnp.concatenate(pair, 1) for pair in zip(best, found, strict=True))
        return _best(*merged, k), None

    q = queries.shape[0]
    empty = (jnp.full((q, k), -jnp.inf, jnp.float32), jnp.full((q, k), -1, jnp.int32))
    starts = jnp.arange(0, count, block, dtype=jnp.int32)
    return jax.lax.scan(tile, empty, starts)[0]


def _best(scores: jax.Array, indices: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k largest along axis 1; top_k prefers the first of equals, hence lower indices."""
    scores, places = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(indices, places, axis=1)


def _best_of_tile(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """(the k largest of each row of [q, n], their columns); equals in the order of columns.

    All of them lie in the k groups of neighbouring columns with the largest maxima: for one that
    lies elsewhere, each of the k groups has a score before it. So a top_k of the maxima and one of
    k groups replace that of n columns, which is a sort on an accelerator.
    """
    q, n = scores.shape
    size = 1 << max(0, round(math.log2(n / k) / 2))  # n / size + k * size columns: least at sqrt
    if n < 4 * k * size:
        return jax.lax.top_k(scores, k)
    groups = jnp.pad(scores, ((0, 0), (0, -n % size)), constant_values=-jnp.inf)
    groups = groups.reshape(q, -1, size)
    chosen = jnp.sort(jax.lax.top_k(groups.max(2), k)[1], axis=1)  # columns in ascending order
    few = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(q, -1)
    scores, places = jax.lax.top_k(few, k)
    group = jnp.take_along_axis(chosen, places // size, axis=1)
    return scores, group * size + places % size
