"""The training step: one pure function of (state, batch), whatever the towers, chunks and mesh."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from inf_jax.core.batch import Batch
from inf_jax.core.trees import join
from inf_jax.losses import contrastive_loss
from inf_jax.losses.objective import Objective
from inf_jax.training.forward import Encode, encode_pairs
from inf_jax.training.health import health
from inf_jax.training.optim import nonfinite_counts, without_layers


class TrainState(NamedTuple):
    """Attributes: step (int32), params (what is trained: {tower: tree}, and "loss" where the scale
    is learned; float32), opt_state (optax), frozen (what is not, {tower: tree}: without gradients
    and moments, and no part of a checkpoint)."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    frozen: dict = {}  # noqa: RUF012

    @property
    def whole(self) -> dict:
        """All parameters, as one tree."""
        return join(self.params, self.frozen)


def init_params(tree: dict, towers: str) -> dict:
    """One encoder's tree as the parameters of shared towers, or two copies of it for separate
    ones."""
    if towers == "shared":
        return {"shared": tree}
    return {"query": tree, "passage": jax.tree.map(lambda x: x.copy(), tree)}


def init_coefficients(scale: float, bias: float, *, sigmoid: bool) -> dict[str, jax.Array]:
    """`params["loss"]` where the scale is learned, by its logarithm (CLIP, arXiv 2103.00020), and
    the bias with it where the objective has a sigmoid."""
    learned = {"log_scale": jnp.asarray(math.log(scale), jnp.float32)}
    return learned | ({"bias": jnp.asarray(bias, jnp.float32)} if sigmoid else {})


def make_loss(
    encode: Encode,
    objective: Objective,
    *,
    scale: float,
    bias: float = 0.0,
    mask: str = "identity",
    options: Mapping[str, Any] | None = None,
    instructed: Callable | None = None,
    groups: int = 1,
    mesh: Mesh | None = None,
    gather: str = "auto",
    with_health: bool = False,
) -> Callable[[dict, Batch, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]:
    """A pure (params, batch, key) -> (loss, metrics) of a global batch; a key turns dropout on.

    Args: as for `make_train_step`.
    """

    def loss_fn(params: dict, batch: Batch, key: jax.Array | None):
        found = encode_pairs(
            params,
            batch,
            encode=encode,
            instructed=instructed,
            groups=groups,
            mesh=mesh,
            gather=gather,
            key=key,
        )
        learned = params.get("loss", {})
        coefficients = {
            "scale": jnp.exp(learned["log_scale"]) if learned else scale,
            "bias": learned.get("bias", bias),
        }
        negatives = batch.negatives
        with jax.named_scope("loss"):
            loss, metrics = contrastive_loss(
                *found,
                **coefficients,
                objective=objective,
                ids=batch.ids if mask == "identity" else None,
                mask=mask,
                valid=batch.valid,
                instruction_negative_ids=None if negatives is None else negatives.ids,
                instruction_negative_valid=None if negatives is None else negatives.valid,
                mesh=mesh,
                **(options or {}),
            )
        if learned:
            metrics["scale"] = coefficients["scale"]
        if "bias" in learned:
            metrics["bias"] = coefficients["bias"]
        if with_health:
            with jax.named_scope("health"):
                metrics |= health(
                    found.queries, found.passages, valid=batch.valid, ids=batch.ids, mask=mask
                )
        return loss, metrics

    return loss_fn


def make_train_step(
    encode: Encode,
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    scale: float,
    bias: float = 0.0,
    max_scale: float = math.inf,
    mask: str = "identity",
    options: Mapping[str, Any] | None = None,
    instructed: Callable | None = None,
    groups: int = 1,
    mesh: Mesh | None = None,
    gather: str = "auto",
    dropout_key: jax.Array | None = None,
    schedule: optax.Schedule | None = None,
    frozen_layers: int = 0,
    with_health: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """A pure `step(state, batch) -> (state, metrics)`; jit it with donated state.

    Args:
      encode: one encoder, (tree, packed, key) -> [c, k, e].
      scale, bias: of the logits; where the state has `params["loss"]`, that counts in their place.
      max_scale: where a learned scale stops (CLIP, arXiv 2103.00020).
      mask: "identity" or "faithful", see `contrastive_loss`.
      options: further static options of `contrastive_loss`: dims, dim_weights, engine, tile,
        tile_dtype.
      instructed: the query encoder "attention", see `encode_pairs`.
      groups: chunks a device encodes one after another, see `encode_pairs`.
      mesh: over which state and batch are split; None is one device.
      gather: when parameters are gathered from their shards, see `gradcache.in_chunks`.
      dropout_key: a typed key; the step number is folded in. None turns dropout off.
      schedule: only to report the learning rate.
      frozen_layers: the first so many layers stay as they are, see `optim.without_layers`.
      with_health: `inf_jax.training.health` among the metrics.

    Returns:
      step; its metrics are float32: those of `contrastive_loss`, `grad_norm`, `lr`, `skipped_*`,
      `scale` and `bias` where learned, `health/*`; scalars but for two histograms of the last.
    """

    loss_fn = make_loss(
        encode,
        objective,
        scale=scale,
        bias=bias,
        mask=mask,
        options=options,
        instructed=instructed,
        groups=groups,
        mesh=mesh,
        gather=gather,
        with_health=with_health,
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, state.step)

        def loss_of(params: dict) -> tuple[jax.Array, dict[str, jax.Array]]:
            return loss_fn(join(params, state.frozen), batch, key)

        (_, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        grads = without_layers(grads, frozen_layers)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            updates = without_layers(updates, frozen_layers)  # weight decay
            params = optax.apply_updates(state.params, updates)
        if "loss" in params:
            at_most = jnp.minimum(params["loss"]["log_scale"], math.log(max_scale))
            params = params | {"loss": params["loss"] | {"log_scale": at_most}}
        metrics = dict(metrics, grad_norm=optax.tree.norm(grads), **nonfinite_counts(opt_state))
        if schedule is not None:
            # what AdamW's own count saw: a skipped step does not advance it
            metrics["lr"] = schedule(state.step - state.opt_state.total_notfinite)
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return TrainState(state.step + 1, params, opt_state, state.frozen), metrics

    return step
