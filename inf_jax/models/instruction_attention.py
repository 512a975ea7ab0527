"""Embeds queries whose instruction is encoded separately: the second encoder of arXiv 2505.21439.

Given the token states I [i, d] of an instruction and Q [q, d] of a query, A = softmax over the
query's tokens of I Q^T / sqrt(d), and the embedding is the mean over the instruction's tokens of
A Q. Special tokens count like all others; an empty instruction consists of them alone. Any
instruction combines with any query: b + b encodings give the b * b embeddings of all combinations.
Einsum letters: r rows, t tokens, d model width, b pairs, i instruction tokens, q query tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from inf_jax.models.pooling import normalise as unit_length


def attend(
    instruction: Float[Array, "i d"],
    query: Float[Array, "q d"],
    instruction_mask: Bool[Array, "i"],
    query_mask: Bool[Array, "q"],
) -> Float[Array, "d"]:
    """The embedding of one instructed query, float32, not normalised. The masks are True at real
    tokens, anywhere; one that is all False gives the zero vector."""
    scores = jnp.einsum("id,qd->iq", instruction, query, preferred_element_type=jnp.float32)
    scores = jnp.where(query_mask[None, :], scores * query.shape[-1] ** -0.5, -1e30)
    mean = instruction_mask / jnp.maximum(instruction_mask.sum(), 1).astype(jnp.float32)
    # Taking the mean first makes the product with the query's states q * d instead of i * q * d.
    weights = (mean @ jax.nn.softmax(scores, axis=-1)) * query_mask
    return weights @ query.astype(jnp.float32)


def attend_all(
    instructions: Float[Array, "b i d"],
    queries: Float[Array, "b q d"],
    instruction_mask: Bool[Array, "b i"],
    query_mask: Bool[Array, "b q"],
    *,
    normalise: bool,
) -> Float[Array, "b b d"]:
    """The embeddings of all combinations; [a, b] is query a under instruction b, see `attend`."""
    under_each = jax.vmap(attend, in_axes=(0, None, 0, None))

    def row(query: tuple[Array, Array]) -> Array:
        vectors = under_each(instructions, query[0], instruction_mask, query[1])
        return unit_length(vectors) if normalise else vectors

    # One query at a time, recomputed in the backward pass: b * i * q scores are live instead of
    # b * b * i * q, and the product of a row, [b * i, d] by [d, q], still keeps a device busy.
    return jax.lax.map(jax.checkpoint(row, prevent_cse=False), (queries, query_mask))


def text_states(
    states: Float[Array, "r t d"],
    segments: Int[Array, "r t"],
    slots: Int[Array, "b"],
    *,
    texts_per_row: int,
    max_tokens: int,
) -> tuple[Float[Array, "b q d"], Bool[Array, "b q"]]:
    """Gathers the token states of texts from packed rows, each starting at its first token.

    Args:
      segments, slots: of one chunk, see `packing.Packed`; `texts_per_row` is the unit of `slots`.
      max_tokens: q, at least the longest of these texts; longer ones are cut.

    Returns:
      (states, mask): the mask is True at the text's own tokens; other states belong to its
      neighbours. An absent text gets those of slot 0.
    """
    row, place = slots // texts_per_row, slots % texts_per_row
    own = segments[row] == (place + 1)[:, None]
    start, length = jnp.argmax(own, axis=1), own.sum(1)
    offset = jnp.arange(max_tokens)
    column = jnp.minimum(start[:, None] + offset[None, :], states.shape[1] - 1)
    return states[row[:, None], column], offset[None, :] < length[:, None]
