"""Texts to vectors: any number of texts of any length through one compiled grid of packed rows."""

import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from inf_jax.core.errors import UserError
from inf_jax.core.packing import Packed, best_fit, pack_chunk, stack_chunks
from inf_jax.distributed.gradcache import in_chunks
from inf_jax.distributed.mesh import batch_sharding, compiler_options, local_mesh
from inf_jax.distributed.sharding import state_shardings


def encode_texts(
    encode: Callable[..., jax.Array],
    tree: dict,
    texts: Sequence[np.ndarray],
    instructions: Sequence[np.ndarray] | None = None,
    *,
    row_tokens: int,
    rows: int,
    texts_per_row: int = 16,
    mesh: Mesh | None = None,
    progress: str = "",
) -> np.ndarray:
    """One vector a text, in the order given; a text's vector does not depend on its neighbours.

    Every call of the compiled function sees the same shape, `rows` rows of `row_tokens` a device,
    so there is one compilation for each (encode, shape) however often this is called; a short list
    pays for the whole grid, so ask for few rows where lists are short.

    Args:
      encode: `Encoder.encode`, (tree, packed) -> [c, k, e], or with instructions
        `Encoder.encode_queries`. Pass the same object each time: the compiled code is kept by it.
      tree: one encoder's parameters; they are split over the mesh by its rules (no copy where they
        lie so already), and a layer is gathered where it is needed.
      texts: n arrays int32[length] of token ids, 1 to `row_tokens` each.
      instructions: n arrays likewise, encoded apart from the texts; both of a pair have at most
        `row_tokens // 2` tokens and lie in one row. None where there is nothing beside the texts.
      row_tokens: tokens of a row, t.
      rows: rows of a device's chunk, r.
      texts_per_row: the most texts of a row, s; instructions count.
      mesh: one chunk a device; None takes all devices of this process.
      progress: the label of a progress bar, which counts texts; "" shows none.

    Returns:
      float32[n, e].

    Raises:
      UserError: an empty text or one that is longer than a row.
    """
    mesh = local_mesh() if mesh is None else mesh
    lengths = _lengths(texts, row_tokens if instructions is None else row_tokens // 2)
    if instructions is not None:
        # A pair is placed as one text, and told apart again in the grid.
        firsts = _lengths(instructions, row_tokens // 2)
        texts = [np.concatenate(pair) for pair in zip(instructions, texts, strict=True)]
        lengths, texts_per_row = lengths + firsts, texts_per_row // 2
    tree = jax.device_put(tree, state_shardings(mesh, tree))
    compiled = _compiled(encode, mesh)
    grid = {"rows": rows, "row_tokens": row_tokens, "texts_per_row": texts_per_row}

    # All texts are placed at once, longest first, so that the short ones fill the rows of the long
    # ones. A chunk is then a run of rows: to place its texts by themselves gives the same rows.
    row_of, _, _ = best_fit(lengths, row_tokens, texts_per_row)
    by_row = np.argsort(row_of, kind="stable")
    count = -(-(int(row_of.max(initial=-1)) + 1) // rows)
    edges = np.searchsorted(row_of[by_row], np.arange(count + 1) * rows)
    chunks = [np.sort(by_row[a:b]) for a, b in itertools.pairwise(edges)]

    def packed(members: list[np.ndarray]) -> Packed:
        whole = _grid(members, texts, mesh.size, grid)
        return whole if instructions is None else _split(whole, members, firsts)

    embedding = compiled.eval_shape(tree, packed([])).shape[-1]
    vectors = np.empty((len(texts), embedding), np.float32)
    with tqdm(total=len(texts), desc=progress, unit="text", disable=not progress) as bar:

        def keep(members: list[np.ndarray], found: jax.Array) -> None:
            for chunk, chunk_vectors in zip(members, np.asarray(found), strict=False):
                vectors[chunk] = chunk_vectors[: len(chunk)]
                bar.update(len(chunk))

        pending = None
        for first in range(0, count, mesh.size):
            members = chunks[first : first + mesh.size]
            running = members, compiled(tree, jax.device_put(packed(members), batch_sharding(mesh)))
            if pending:  # the grid before: the device already works on this one
                keep(*pending)
            pending = running
        if pending:
            keep(*pending)
    return vectors


@functools.lru_cache(maxsize=16)  # of a new function jax would compile anew
def _compiled(encode: Callable[..., jax.Array], mesh: Mesh) -> Callable[..., jax.Array]:
    """`encode` on a mesh, each device on its own chunk."""
    run = functools.partial(in_chunks, encode, groups=1, mesh=mesh)
    return jax.jit(run, compiler_options=compiler_options(mesh))


def shortened(vectors: np.ndarray, dim: int | None, *, normalise: bool) -> np.ndarray:
    """The first `dim` entries of each vector (Matryoshka, arXiv 2205.13147); None is all.

    Args:
      vectors: float32[n, e].
      normalise: unit length again; a zero vector stays zero.

    Returns:
      float32[n, dim].
    Raises:
      UserError: there are not so many.
    """
    if dim is None:
        return vectors
    if not 1 <= dim <= vectors.shape[1]:
        raise UserError(f"dim={dim}: the vectors have {vectors.shape[1]} entries")
    vectors = vectors[:, :dim]
    if not normalise:
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _grid(members: list[np.ndarray], texts: Sequence, chunks: int, grid: dict[str, int]) -> Packed:
    """Packs the chunks' texts; absent chunks and absent texts fill the fixed shape."""
    slots = grid["rows"] * grid["texts_per_row"]
    ids = np.zeros(slots, np.uint32)  # they seed dropout, which is off
    absent = np.zeros(0, np.int32)
    empty = [np.zeros(0, np.int64)] * (chunks - len(members))
    return stack_chunks(
        [
            pack_chunk([texts[i] for i in m] + [absent] * (slots - len(m)), ids, **grid)
            for m in [*members, *empty]
        ]
    )


def _split(whole: Packed, members: list[np.ndarray], firsts: np.ndarray) -> Packed:
    """Pairs that were packed as one text each -> instructions and queries, k = n + n.

    A pair at place p of its row becomes the texts at 2p, its instruction of `firsts` tokens, and
    2p + 1; absent pairs stay absent.
    """
    c, _, _ = whole.tokens.shape
    s = whole.text_ids.shape[-1]
    first = np.zeros((c, whole.text_ids.shape[1] * s), np.int64)  # of each place of each chunk
    for chunk, pairs in enumerate(members):
        first[chunk, whole.slots[chunk, : len(pairs)]] = firsts[pairs]
    place = np.maximum(whole.segments - 1, 0)
    border = np.take_along_axis(first.reshape(c, -1, s), place, axis=2)
    in_query = (whole.segments > 0) & (whole.positions >= border)
    segments = np.where(whole.segments > 0, 2 * place + 1 + in_query, 0)
    return Packed(
        whole.tokens,
        segments.astype(np.int32),
        (whole.positions - border * in_query).astype(np.int32),
        np.repeat(whole.text_ids, 2, axis=2),
        np.concatenate((2 * whole.slots, 2 * whole.slots + 1), axis=1),
    )


def _lengths(texts: Sequence[np.ndarray], limit: int) -> np.ndarray:
    """int64[n], tokens of each text; UserError that names the first which no row can hold."""
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    bad = np.flatnonzero((lengths > limit) | (lengths == 0))
    if bad.size:
        raise UserError(
            f"text {bad[0]} has {lengths[bad[0]]} tokens, a row holds 1 to {limit} "
            f"({bad.size} such texts): truncate it when it is tokenised, or give longer rows"
        )
    return lengths
