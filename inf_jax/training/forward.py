"""A batch, and its embeddings: which texts of the packed chunks are what."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from inf_jax.core.batch import Batch
from inf_jax.core.packing import Packed
from inf_jax.distributed.gradcache import in_chunks
from inf_jax.models.encoder import tower

Encode = Callable[..., jax.Array]  # (params, packed, key, [shards=]) -> [c, k, e]


class Embeddings(NamedTuple):
    """Attributes: queries and passages (float32[b, e]), instruction_negatives (float32[b, 1 + m, e]
    as `InstructionNegatives.ids` has them, or None)."""

    queries: jax.Array
    passages: jax.Array
    instruction_negatives: jax.Array | None


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
