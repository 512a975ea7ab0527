"""Encodes the texts of a global batch into vectors of queries, passages and negatives."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from inf_jax.core.batch import Batch
from inf_jax.core.packing import Packed
from inf_jax.distributed.gradcache import encode_in_chunks
from inf_jax.models.encoder import tower

Encode = Callable[..., jax.Array]  # (params, packed, key, shards=) -> [c, k, e]


@dataclasses.dataclass(frozen=True)
class EncodingPlan:
    """How the chunks of a batch are encoded.

    Attributes:
      encode: (tree, packed, key, shards=Shards) -> [c, k, e].
      instructed: for the query encoder "attention", `Encoder.encode_instructed` with its
        max_tokens; None for "joint".
      groups, mesh, gather, keep_last, dtype: as of `gradcache.encode_in_chunks`.
      sources: names of the sources that a mixture's batches number, for metrics by source.
    """

    encode: Encode
    instructed: Callable | None = None
    groups: int = 1
    mesh: Mesh | None = None
    gather: str = "auto"
    keep_last: bool = False
    dtype: jnp.dtype | None = None
    sources: tuple[str, ...] = ()


class Embeddings(NamedTuple):
    """Vectors of the b pairs of a batch.

    Attributes:
      queries: float32[b, e].
      passages: float32[b, e], or [b, 1 + h, e] with h hard negatives of each pair.
      instruction_negatives: float32[b, 1 + m, e] as `InstructionNegatives.ids`, or None.
    """

    queries: jax.Array
    passages: jax.Array
    instruction_negatives: jax.Array | None


def encode_pairs(
    plan: EncodingPlan, params: dict, batch: Batch, *, key: jax.Array | None = None
) -> Embeddings:
    """The embeddings of a batch under the parameters {tower: tree}; a key turns dropout on, whose
    bits depend on text and position alone, so chunks and mesh change nothing."""

    def run(encode: Callable, role: str, texts: Packed):
        return encode_in_chunks(
            lambda tree, p, *, shards: encode(tree, p, key, shards=shards),
            tower(params, role),
            texts,
            groups=plan.groups,
            mesh=plan.mesh,
            gather=plan.gather,
            keep_last=plan.keep_last,
            dtype=plan.dtype,
        )

    shared = isinstance(batch.texts, Packed)
    query_texts, passage_texts = (batch.texts, None) if shared else batch.texts
    passages = None if shared else run(plan.encode, "passage", passage_texts)
    h = 0 if batch.passage_valid is None else batch.passage_valid.shape[1] - 1
    flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731

    def by_pair(x: jax.Array) -> jax.Array:
        """[b, e] or [b, 1 + h, e] of a chunk's n passages and then the n * h negatives."""
        if not h:
            return flat(x)
        c, k, e = x.shape
        n = k // (1 + h)
        hard = x[:, n:].reshape(c, n, h, e)
        return jnp.concatenate([x[:, :n, None], hard], axis=2).reshape(c * n, 1 + h, e)

    if plan.instructed is not None:
        pairs, count = batch.negatives is not None, (1 + h) * shared
        encode = functools.partial(plan.instructed, all_pairs=pairs, passages=count)
        vectors = run(encode, "query", query_texts)
        b, e = batch.valid.shape[0], vectors.queries.shape[-1]
        return Embeddings(
            flat(vectors.queries),
            by_pair(vectors.passages if shared else passages),
            vectors.negatives.reshape(b, -1, e) if pairs else None,
        )
    vectors = run(plan.encode, "query", query_texts)
    c, k, e = vectors.shape
    n = batch.valid.shape[0] // c
    if shared:
        hard = k - n * h  # after the sampled texts
        queries, passages, sampled, rest = jnp.split(vectors, [n, 2 * n, hard], axis=1)
        passages = jnp.concatenate([passages, rest], axis=1) if h else passages
    else:
        queries, sampled = jnp.split(vectors, [n], axis=1)
    if batch.negatives is None:
        return Embeddings(flat(queries), by_pair(passages), None)
    # inside the chunk: needs nothing from other devices, and no gradient is added twice
    slots = batch.negatives.poison.reshape(c, n, 1)
    poisoned = jnp.take_along_axis(queries, slots, axis=1).reshape(c * n, 1, e)
    sampled = sampled.reshape(c * n, -1, e)
    negatives = jnp.concatenate([poisoned, sampled], axis=1)
    return Embeddings(flat(queries), by_pair(passages), negatives)
