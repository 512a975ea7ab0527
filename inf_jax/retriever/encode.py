"""Encodes token ids of any number of texts through one compiled function of a fixed shape."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import SupportsIndex

import jax
import numpy as np
from jax.sharding import Mesh

from inf_jax.core.errors import UserError
from inf_jax.core.packing import Packed, best_fit, pack_chunk, rows_needed, stack_chunks
from inf_jax.distributed.gradcache import encode_in_chunks
from inf_jax.distributed.mesh import (
    batch_devices,
    batch_sharding,
    compiler_options,
    local_mesh,
    on_devices,
    replicated,
)
from inf_jax.distributed.sharding import state_shardings
from inf_jax.retriever.similarity import unit_vectors

TEXTS_PER_ROW = 16


@dataclasses.dataclass(frozen=True)
class Grid:
    """The shape of one device's packed rows.

    Attributes:
      rows: r.
      row_tokens: tokens per row, t.
      texts_per_row: most texts of a row, s; instructions count as texts.
    """

    rows: int
    row_tokens: int
    texts_per_row: int = TEXTS_PER_ROW

    def pack(self, texts: Sequence[np.ndarray]) -> Packed:
        """One chunk of at most r * s texts, padded with absent ones to that number."""
        slots = self.rows * self.texts_per_row
        absent = [np.zeros(0, np.int32)] * (slots - len(texts))
        ids = np.zeros(slots, np.uint32)  # seeds of dropout, which is off
        return pack_chunk([*texts, *absent], ids, **dataclasses.asdict(self))


def choose_grid(
    lengths: Sequence[np.ndarray],
    *,
    limit: int,
    chunk_tokens: int,
    devices: int,
    earlier: Collection[Grid] = (),
    last: bool = True,
) -> Grid:
    """The grid of a window of texts; all windows of a call share few, since each is compiled.

    Args:
      lengths: int64[n], tokens of the n texts; with instructions two such arrays.
      limit: most tokens that a text can have.
      chunk_tokens: tokens that a device encodes at once.
      devices: of the mesh.
      earlier: grids of the windows before.
      last: no window follows. If there was none before either, a grid of fewer rows may do.
    """
    longest = max(int(each.max()) for each in lengths)
    # a row holds all texts of a pair; powers of two
    row_tokens = min(limit, _power_of_two(max(32, longest))) * len(lengths)
    if last and earlier:
        fitting = [grid for grid in earlier if grid.row_tokens >= row_tokens]
        if fitting:
            return min(fitting, key=lambda grid: grid.row_tokens)
    rows = max(1, chunk_tokens // row_tokens)
    total = sum(lengths)
    if last and not earlier and total.sum() < rows * row_tokens * devices:
        needed = rows_needed(total, row_tokens, TEXTS_PER_ROW // len(lengths))
        rows = min(rows, _power_of_two(-(-needed // devices)))
    return Grid(rows, row_tokens, TEXTS_PER_ROW)


def encode_texts(
    encode: Callable[..., jax.Array],
    params: dict,
    texts: Sequence[np.ndarray],
    instructions: Sequence[np.ndarray] | None = None,
    *,
    grid: Grid,
    mesh: Mesh | None = None,
    on_progress: Callable[[int], object] = lambda count: None,
) -> np.ndarray:
    """One vector per text, in the given order; it does not depend on the other texts.

    All calls of the compiled function have the same shape, one grid per device, so that there is
    one compilation per (encode, grid). A short list pays for a whole grid: give it few rows.

    Args:
      encode: `Encoder.encode`, (params, packed) -> [c, k, e], or with instructions
        `Encoder.encode_queries`. Pass the same object each time: it is the key of the compiled
        code.
      params: one encoder's parameters; sharded over the mesh by its rules (no copy if they already
        are), and gathered layer by layer.
      texts: n arrays int32[length] of token ids, 1 to `grid.row_tokens` each.
      instructions: n arrays likewise, encoded separately from them; both of a pair have at most
        `grid.row_tokens // 2` tokens and share a row. None: texts only.
      grid: rows of each device.
      mesh: one chunk per device, or per group of devices of the axis "tensor"; it may span
        processes, which then give the same texts. None: all devices of this process.
      on_progress: called with the number of texts that were encoded since the last call.

    Returns:
      float32[n, e].

    Raises:
      UserError: a text that is empty or longer than a row.
    """
    mesh = local_mesh() if mesh is None else mesh
    lengths = _lengths(texts, grid.row_tokens if instructions is None else grid.row_tokens // 2)
    instruction_lengths = None
    if instructions is not None:
        # A pair is packed as one text and split again in the grid.
        instruction_lengths = _lengths(instructions, grid.row_tokens // 2)
        texts = [np.concatenate(pair) for pair in zip(instructions, texts, strict=True)]
        lengths = lengths + instruction_lengths
        grid = dataclasses.replace(grid, texts_per_row=grid.texts_per_row // 2)
    params = jax.device_put(params, state_shardings(mesh, params))
    compiled, parts = _compiled(encode, mesh), batch_devices(mesh)
    chunks = _chunks(lengths, grid)

    def packed(members: list[np.ndarray]) -> Packed:
        absent = [np.zeros(0, np.int64)] * (parts - len(members))
        filled = stack_chunks([grid.pack([texts[i] for i in m]) for m in [*members, *absent]])
        if instruction_lengths is None:
            return filled
        return _split_pairs(filled, members, instruction_lengths)

    width = compiled.eval_shape(params, packed([])).shape[-1]
    vectors = np.empty((len(texts), width), np.float32)

    def keep(members: list[np.ndarray], encoded: jax.Array) -> None:
        for chunk, chunk_vectors in zip(members, np.asarray(encoded), strict=False):
            vectors[chunk] = chunk_vectors[: len(chunk)]
            on_progress(len(chunk))

    pending = None
    for first in range(0, len(chunks), parts):
        members = chunks[first : first + parts]
        batch = on_devices(packed(members), batch_sharding(mesh))
        running = members, compiled(params, batch)
        if pending:  # fetched one call late, so that the device never waits
            keep(*pending)
        pending = running
    if pending:
        keep(*pending)
    return vectors


def shortened(vectors: np.ndarray, dim: int | None, *, normalise: bool) -> np.ndarray:
    """The first `dim` entries of each vector (Matryoshka, arXiv 2205.13147); None: all.

    Args:
      vectors: float32[n, e].
      normalise: scale to unit length again; a zero vector stays zero.

    Returns:
      float32[n, dim].
    Raises:
      UserError: `dim` is not in 1 to e.
    """
    if dim is None:
        return vectors
    width = vectors.shape[1]
    if isinstance(dim, bool) or not isinstance(dim, SupportsIndex) or not 1 <= dim <= width:
        raise UserError(
            f"dim={dim!r}: the vectors have {width} entries; give a whole number of them"
        )
    vectors = vectors[:, :dim]
    return unit_vectors(vectors) if normalise else vectors


@functools.lru_cache(maxsize=16)  # jit compiles again for every new function object
def _compiled(encode: Callable[..., jax.Array], mesh: Mesh) -> Callable[..., jax.Array]:
    """`encode` on a mesh, each device on its own chunk."""
    run = functools.partial(encode_in_chunks, encode, groups=1, mesh=mesh)
    whole = replicated(mesh)
    if whole.is_fully_addressable:
        return jax.jit(run, compiler_options=compiler_options(mesh))
    # each process gets the vectors of all
    return jax.jit(run, out_shardings=whole, compiler_options=compiler_options(mesh))


def _chunks(lengths: np.ndarray, grid: Grid) -> list[np.ndarray]:
    """The texts of each chunk, by their lengths.

    All texts are placed at once, longest first, so that short ones fill the rows of long ones. A
    chunk is `grid.rows` consecutive rows: placing its texts by themselves gives the same rows.
    """
    row_of, _, _ = best_fit(lengths, grid.row_tokens, grid.texts_per_row)
    by_row = np.argsort(row_of, kind="stable")
    count = -(-(int(row_of.max(initial=-1)) + 1) // grid.rows)
    edges = np.searchsorted(row_of[by_row], np.arange(count + 1) * grid.rows)
    return [np.sort(by_row[a:b]) for a, b in itertools.pairwise(edges)]


def _split_pairs(packed: Packed, members: list[np.ndarray], lengths: np.ndarray) -> Packed:
    """Pairs that were packed as one text each -> n instructions and n queries per chunk, k = 2n.

    The pair at place p of its row becomes the texts at 2p, its instruction, and 2p + 1; absent
    pairs stay absent.

    Args:
      packed: instruction and query of each pair, concatenated.
      members: pair numbers of each chunk.
      lengths: int64[pairs], tokens of each pair's instruction.
    """
    c, _, _ = packed.tokens.shape
    s = packed.text_ids.shape[-1]
    of_place = np.zeros((c, packed.text_ids.shape[1] * s), np.int64)
    for chunk, pairs in enumerate(members):
        of_place[chunk, packed.slots[chunk, : len(pairs)]] = lengths[pairs]
    place = np.maximum(packed.segments - 1, 0)
    border = np.take_along_axis(of_place.reshape(c, -1, s), place, axis=2)
    in_query = (packed.segments > 0) & (packed.positions >= border)
    segments = np.where(packed.segments > 0, 2 * place + 1 + in_query, 0)
    return Packed(
        packed.tokens,
        segments.astype(np.int32),
        (packed.positions - border * in_query).astype(np.int32),
        np.repeat(packed.text_ids, 2, axis=2),
        np.concatenate((2 * packed.slots, 2 * packed.slots + 1), axis=1),
    )


def _lengths(texts: Sequence[np.ndarray], limit: int) -> np.ndarray:
    """int64[n], tokens of each text; raises UserError for a text that no row can hold."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    bad = np.flatnonzero((lengths > limit) | (lengths == 0))
    if bad.size:
        raise UserError(
            f"text {bad[0]} has {lengths[bad[0]]} tokens, a row holds 1 to {limit} "
            f"({bad.size} such texts): truncate it when tokenising, or use longer rows"
        )
    return lengths


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (max(int(n), 1) - 1).bit_length()
