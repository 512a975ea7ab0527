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

from inf_jax.blocks import TextIds
from inf_jax.losses import contrastive_loss
from inf_jax.objective import Objective
from inf_jax.optim import nonfinite_counts
from inf_jax.packing import Packed

Encode = Callable[..., jax.Array]  # (params, packed, key) -> [c, k, e]


class Batch(NamedTuple):
    """A global batch; c chunks of n pairs, b = c * n. All leading axes are split over the mesh.

    Attributes:
      texts: Packed with k = 2n texts a chunk (n instructed queries, then their n passages) for
        shared towers, or (queries, passages), a Packed of k = n texts each, for separate ones.
      ids: TextIds, uint32[b, 2] each, in chunk order.
      valid: bool[b], False for an empty slot.
    """

    texts: Packed | tuple[Packed, Packed]
    ids: TextIds
    valid: jax.Array


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
) -> tuple[jax.Array, jax.Array]:
    """Embeddings (queries, passages), float32[b, e] each.

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
        n = vectors.shape[1] // 2
        queries, passages = vectors[:, :n], vectors[:, n:]
    else:
        queries = run(params["query"], batch.texts[0])
        passages = run(params["passage"], batch.texts[1])
    e = queries.shape[-1]
    return queries.reshape(-1, e), passages.reshape(-1, e)


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
        queries, passages = encode_pairs(params, batch, encode=encode, groups=groups, key=key)
        with jax.named_scope("loss"):
            return contrastive_loss(
                queries,
                passages,
                objective=objective,
                scale=scale,
                ids=batch.ids if mask == "identity" else None,
                mask=mask,
                valid=batch.valid,
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
