"""Instruction-query attention: instructed queries from texts that were encoded apart (the second
encoder of arXiv 2505.21439).

With the token states I [i, d] of an instruction and Q [q, d] of a query, each encoded by itself,
A = softmax over the query's tokens of I Q^T / sqrt(d), and the vector is the mean over the
instruction's tokens of A Q. Special tokens are tokens like all others, so an empty instruction is
one of special tokens alone. Any instruction goes with any query: n + n encodings give the n * n
vectors of all pairs.
Einsum letters: c chunks, r rows, t tokens, d width, n texts, i instruction tokens, q query tokens.
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
    """The vector of one instructed query, in float32, not normalised.

    Args:
      instruction, query: token states of the two texts, padded anywhere.
      instruction_mask, query_mask: True at real tokens. A text without any gives the zero vector.
    """
    scores = jnp.einsum("id,qd->iq", instruction, query, preferred_element_type=jnp.float32)
    scores = jnp.where(query_mask[None, :], scores * query.shape[-1] ** -0.5, -1e30)
    real = instruction_mask / jnp.maximum(instruction_mask.sum(), 1).astype(jnp.float32)
    # The mean first, then one product with the query's states: q * d in place of i * q * d.
    weights = (real @ jax.nn.softmax(scores, axis=-1)) * query_mask
    return weights @ query.astype(jnp.float32)


def attend_all(
    instructions: Float[Array, "n i d"],
    queries: Float[Array, "n q d"],
    instruction_mask: Bool[Array, "n i"],
    query_mask: Bool[Array, "n q"],
    *,
    normalise: bool,
) -> Float[Array, "n n d"]:
    """The vectors of all pairs: [a, b] is query a under instruction b, as `attend` gives it."""
    under_each = jax.vmap(attend, in_axes=(0, None, 0, None))

    def row(query: tuple[Array, Array]) -> Array:
        vectors = under_each(instructions, query[0], instruction_mask, query[1])
        return unit_length(vectors) if normalise else vectors

    # Query by query, and again in the backward pass: the scores of all pairs are n * n * i * q
    # numbers, i * q / d times the result itself; so n * i * q are held at any time. The matrix
    # product of a row, [n * i, d] by [d, q], is large enough to keep a device busy.
    return jax.lax.map(jax.checkpoint(row, prevent_cse=False), (queries, query_mask))


def text_states(
    states: Float[Array, "r t d"],
    segments: Int[Array, "r t"],
    slots: Int[Array, "n"],
    *,
    texts_per_row: int,
    max_tokens: int,
) -> tuple[Float[Array, "n q d"], Bool[Array, "n q"]]:
    """The token states of texts that lie anywhere in packed rows, each from its first token on.

    Args:
      states, segments, slots: of one chunk, see `packing.Packed`.
      texts_per_row: s, which `slots` count by.
      max_tokens: q, at least the longest of these texts; what is beyond is left out.

    Returns:
      (states, mask): the mask is True at the text's own tokens; states elsewhere are of its
      neighbours. An absent text has those of slot 0, as in `packing.Packed`.
    """
    row, place = slots // texts_per_row, slots % texts_per_row
    mine = segments[row] == (place + 1)[:, None]
    start, length = jnp.argmax(mine, axis=1), mine.sum(1)
    inside = jnp.arange(max_tokens)
    t = states.shape[1]
    column = jnp.minimum(start[:, None] + inside[None, :], t - 1)
    return states[row[:, None], column], inside[None, :] < length[:, None]
