"""A batch, and its embeddings: which texts of the packed chunks are what."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from inf_jax.core.packing import Packed
from inf_jax.distributed.gradcache import in_chunks
from inf_jax.losses.blocks import TextIds

Encode = Callable[..., jax.Array]  # (params, packed, key, [shards=]) -> [c, k, e]


class InstructionNegatives(NamedTuple):
    """Block I of a global batch: which instructions the query of each row is also read under.

    Attributes:
      ids: uint32[b, 1 + m, 2], hashes of the instructions of n_ik. Column 0 is free: the row of the
        same query under the example's other instruction. The others are drawn and have texts of
        their own. A row's own instruction's hash stands where n_ik is known to fit the row's
        passage. With the query encoder "attention" uint32[b, n, 2], the instructions of the chunk.
      poison: int32[b], the place in its chunk of the row whose instructed query is column 0; the
        row's own where there is none. A permutation in each chunk. None with "attention".
      valid: bool[b, 1 + m] or bool[b, n], where there is an n_ik of another row.
    """

    ids: jax.Array
    poison: jax.Array | None
    valid: jax.Array


class Batch(NamedTuple):
    """A global batch; c chunks of n pairs, b = c * n. All leading axes are split over the mesh.

    Attributes:
      texts: for shared towers Packed with k = 2n + n * m texts a chunk: n instructed queries, their
        n passages, then the m drawn n_ik of each pair, pair by pair; for separate ones (queries,
        passages), Packed of k = n + n * m and k = n. With the query encoder "attention" k = 3n: n
        instructions, n queries, n passages; or k = 2n and k = n.
      ids: TextIds, uint32[b, 2] each, in chunk order.
      valid: bool[b], False for an empty slot.
      negatives: None where the objective has no block I.
    """

    texts: Packed | tuple[Packed, Packed]
    ids: TextIds
    valid: jax.Array
    negatives: InstructionNegatives | None = None


class Embeddings(NamedTuple):
    """Attributes: queries and passages (float32[b, e]), instruction_negatives (float32[b, 1 + m, e]
    as `InstructionNegatives.ids` has them, or None)."""

    queries: jax.Array
    passages: jax.Array
    instruction_negatives: jax.Array | None


def tower(params: dict, role: str) -> dict:
    """The encoder's tree for `role` ("query" or "passage")."""
    return params["shared"] if "shared" in params else params[role]


def encode_pairs(
    params: dict,
    batch: Batch,
    *,
    encode: Encode,
    instructed: Callable | None = None,
    groups: int = 1,
    mesh: Mesh | None = None,
    gather: str = "auto",
    key: jax.Array | None = None,
) -> Embeddings:
    """The embeddings of a batch.

    Args:
      encode: (tree, packed, key) -> [c, k, e]; with shards=Shards where the mesh splits the
        parameters.
      instructed: for the query encoder "attention", `Encoder.encode_instructed` with its
        max_tokens; None for "joint".
      groups: chunks of each device, encoded one after another and again in the backward pass
        (GradCache); 1 encodes all at once and keeps the activations.
      mesh: over which batch and parameters are split; None is one device.
      gather: when parameters are gathered from their shards, see `gradcache.in_chunks`.
      key: turns dropout on; its bits depend on text and position alone, so chunks and mesh change
        nothing.
    """

    def run(how: Callable, role: str, texts: Packed):
        return in_chunks(
            lambda tree, p, **split: how(tree, p, key, **split),
            tower(params, role),
            texts,
            groups=groups,
            mesh=mesh,
            gather=gather,
        )

    shared = isinstance(batch.texts, Packed)
    of_queries, of_passages = (batch.texts, None) if shared else batch.texts
    passages = None if shared else run(encode, "passage", of_passages)
    if instructed is not None:
        pairs = batch.negatives is not None
        how = functools.partial(instructed, all_pairs=pairs, passages=shared)
        found = run(how, "query", of_queries)
        b, e = batch.valid.shape[0], found.queries.shape[-1]
        passages = found.passages if shared else passages
        return Embeddings(
            found.queries.reshape(b, e),
            passages.reshape(b, e),
            found.negatives.reshape(b, -1, e) if pairs else None,
        )
    vectors = run(encode, "query", of_queries)
    c, _, e = vectors.shape
    n = batch.valid.shape[0] // c
    if shared:
        queries, passages, sampled = jnp.split(vectors, [n, 2 * n], axis=1)
    else:
        queries, sampled = jnp.split(vectors, [n], axis=1)
    flat = lambda x: x.reshape(-1, e)  # noqa: E731
    if batch.negatives is None:
        return Embeddings(flat(queries), flat(passages), None)
    # inside the chunk: no device needs another's, and no gradient is added to twice
    places = batch.negatives.poison.reshape(c, n, 1)
    free = jnp.take_along_axis(queries, places, axis=1).reshape(c * n, 1, e)
    drawn = sampled.reshape(c * n, -1, e)
    return Embeddings(flat(queries), flat(passages), jnp.concatenate([free, drawn], axis=1))
