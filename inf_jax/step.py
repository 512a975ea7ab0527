"""The training step: one pure function of (state, batch), whatever the towers, chunks and mesh.

GradCache (Gao et al. 2021, arXiv 2101.06983) is a scan over chunks with `jax.checkpoint`: forward
keeps the embeddings only, the loss sees the whole batch, backward encodes chunk by chunk again.
Plain autodiff makes the gradients exact.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inf_jax.losses import contrastive_loss
from inf_jax.objective import Objective, TextIds
from inf_jax.optim import nonfinite_counts
from inf_jax.packing import Packed

Encode = Callable[..., jax.Array]  # (params, packed, key) -> [c, k, e]


class InstructionNegatives(NamedTuple):
    """Block I of a global batch: which instructions the query of each row is also read under.

    Attributes:
      ids: uint32[b, 1 + m, 2], hashes of the instructions of n_ik. Column 0 is free: the row of the
        same query under the example's other instruction. The others are drawn and have texts of
        their own. A row's own instruction's hash stands where there is no negative. With the query
        encoder "attention" uint32[b, n, 2], the instructions of the chunk.
      poison: int32[b], the row (of the global batch) whose instructed query is column 0; the row
        itself where there is none. A permutation. None with the query encoder "attention".
      valid: bool[b, 1 + m] or bool[b, n], where there is a negative with another instruction.
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


class TrainState(NamedTuple):
    """Attributes: step (int32), params ({tower: tree}, float32), opt_state (optax)."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def init_params(tree: dict, towers: str) -> dict:
    """One encoder's tree as the parameters of shared towers, or two copies of it for separate
    ones."""
    if towers == "shared":
        return {"shared": tree}
    return {"query": tree, "passage": jax.tree.map(lambda x: x.copy(), tree)}


def tower(params: dict, role: str) -> dict:
    """The encoder's tree for `role` ("query" or "passage")."""
    return params["shared"] if "shared" in params else params[role]


def encode_pairs(
    params: dict, batch: Batch, *, encode: Encode, groups: int = 1, key: jax.Array | None = None
) -> Embeddings:
    """The embeddings of a batch.

    Args:
      encode: (tree, packed, key) -> [c, k, e].
      groups: chunks of each device, encoded one after another and again in the backward pass
        (GradCache); 1 encodes all at once and keeps the activations.
      key: turns dropout on; its bits depend on text and position alone, so chunks and mesh change
        nothing.
    """

    def run(tree: dict, packed: Packed) -> jax.Array:
        if groups == 1:
            return encode(tree, packed, key)
        # [c] -> [groups, devices]: each device scans over its own chunks, and no chunk moves.
        split = jax.tree.map(lambda x: x.reshape(-1, groups, *x.shape[1:]).swapaxes(0, 1), packed)
        chunk = jax.checkpoint(
            lambda p: encode(tree, p, key), policy=jax.checkpoint_policies.nothing_saveable
        )
        vectors = jax.lax.scan(lambda _, p: (None, chunk(p)), None, split)[1]
        vectors = vectors.swapaxes(0, 1)
        return vectors.reshape(-1, *vectors.shape[2:])

    if isinstance(batch.texts, Packed):
        vectors = run(params["shared"], batch.texts)
        n = batch.valid.shape[0] // vectors.shape[0]
        queries, passages, sampled = jnp.split(vectors, [n, 2 * n], axis=1)
    else:
        vectors = run(params["query"], batch.texts[0])
        n = batch.valid.shape[0] // vectors.shape[0]
        queries, sampled = jnp.split(vectors, [n], axis=1)
        passages = run(params["passage"], batch.texts[1])
    e = queries.shape[-1]
    queries, passages = queries.reshape(-1, e), passages.reshape(-1, e)
    if batch.negatives is None:
        return Embeddings(queries, passages, None)
    # a permutation: no gradient row is added to twice, so its sum has one order on every mesh
    free = jnp.take(queries, batch.negatives.poison, axis=0, unique_indices=True, mode="clip")
    b, candidates, _ = batch.negatives.ids.shape
    sampled = sampled.reshape(b, candidates - 1, e)
    return Embeddings(queries, passages, jnp.concatenate([free[:, None], sampled], axis=1))


def make_train_step(
    encode: Encode,
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    scale: float,
    mask: str = "identity",
    groups: int = 1,
    dropout_key: jax.Array | None = None,
    schedule: optax.Schedule | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """A pure `step(state, batch) -> (state, metrics)`; jit it with donated state.

    Args:
      encode: one encoder, (tree, packed, key) -> [c, k, e].
      scale: factor on the inner products, 1 / temperature.
      mask: "identity" or "faithful", see `contrastive_loss`.
      groups: chunks a device encodes one after another, see `encode_pairs`.
      dropout_key: a typed key; the step number is folded in. None turns dropout off.
      schedule: only to report the learning rate.

    Returns:
      step; its metrics are float32 scalars: those of `contrastive_loss`, `grad_norm`, `lr`,
      `skipped_*`.
    """

    def loss_fn(params: dict, batch: Batch, key: jax.Array | None):
        found = encode_pairs(params, batch, encode=encode, groups=groups, key=key)
        negatives = batch.negatives if "I" in objective.blocks else None
        with jax.named_scope("loss"):
            return contrastive_loss(
                found.queries,
                found.passages,
                None if negatives is None else found.instruction_negatives,
                objective=objective,
                scale=scale,
                ids=batch.ids if mask == "identity" else None,
                mask=mask,
                valid=batch.valid,
                instruction_negative_ids=None if negatives is None else negatives.ids,
            )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, state.step)
        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, key)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = dict(metrics, grad_norm=optax.tree.norm(grads), **nonfinite_counts(opt_state))
        if schedule is not None:
            # what AdamW's own count saw: a skipped step does not advance it
            metrics["lr"] = schedule(state.step - state.opt_state.total_notfinite)
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return TrainState(state.step + 1, params, opt_state), metrics

    return step
