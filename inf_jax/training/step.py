"""The train state, learned scale of the loss included, and the train step: a pure function."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from inf_jax.config.sections import LossConfig
from inf_jax.core.batch import Batch
from inf_jax.core.trees import join_trees
from inf_jax.losses import contrastive_loss
from inf_jax.losses.candidates import dots
from inf_jax.losses.objective import parse_objective
from inf_jax.optim.optimisers import without_layers
from inf_jax.training.forward import EncodingPlan, encode_pairs
from inf_jax.training.health import health


class TrainState(NamedTuple):
    """The state of a run.

    Attributes:
      step: int32, steps done.
      params: what is trained, {tower: tree}, and "loss" where the scale is learned; float32.
      opt_state: of optax.
      frozen: what is not trained, {tower: tree}, without gradients and moments; not saved.
      ema: {tower: tree}, the moving average of params (optim.ema); {}: there is none.
      teacher: {tower: tree} of a frozen teacher (loss.teacher); not saved; {}: there is none.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    frozen: dict = {}  # noqa: RUF012
    ema: dict = {}  # noqa: RUF012
    teacher: dict = {}  # noqa: RUF012

    @property
    def whole(self) -> dict:
        """All parameters, as one tree."""
        return join_trees(self.params, self.frozen)

    @property
    def scored(self) -> dict:
        """The trained parameters that are scored and exported: their average, if there is one."""
        return self.params | self.ema

    @property
    def saved(self) -> dict:
        """What a checkpoint holds: all but the frozen parameters and the teacher."""
        parts = self._asdict()
        kept = {n: x for n, x in parts.items() if n not in ("frozen", "teacher")}
        return {n: x for n, x in kept.items() if n != "ema" or x}


def init_coefficients(scale: float, bias: float, *, sigmoid: bool) -> dict[str, jax.Array]:
    """`params["loss"]` where the scale is learned: its logarithm (CLIP, arXiv 2103.00020), and the
    bias where the objective has a sigmoid."""
    learned = {"log_scale": jnp.asarray(math.log(scale), jnp.float32)}
    return learned | ({"bias": jnp.asarray(bias, jnp.float32)} if sigmoid else {})


def make_loss(
    encoding: EncodingPlan,
    loss: LossConfig,
    *,
    tile: tuple[int, int] | None = None,
    with_health: bool = False,
) -> Callable[[dict, Batch, jax.Array | None], tuple[jax.Array, dict[str, jax.Array]]]:
    """A pure (params, batch, key) -> (loss, metrics) of a global batch; a key turns dropout on.
    Arguments as of `make_train_step`."""
    objective = parse_objective(loss.objective)
    of_scores = 1.0 if loss.teacher else loss.teacher_scale

    def loss_fn(params: dict, batch: Batch, key: jax.Array | None):
        embeddings = encode_pairs(encoding, params, batch, key=key)
        learned = params.get("loss", {})
        coefficients = {
            "scale": jnp.exp(learned["log_scale"]) if learned else loss.scale,
            "bias": learned.get("bias", loss.bias),
        }
        negatives, scores = batch.negatives, batch.teacher_scores
        with jax.named_scope("loss"):
            value, metrics = contrastive_loss(
                *embeddings,
                **coefficients,
                objective=objective,
                ids=batch.ids if loss.mask == "identity" else None,
                mask=loss.mask,
                valid=batch.valid,
                passage_valid=batch.passage_valid,
                teacher_scores=None if scores is None else of_scores * scores,
                queries_alone=batch.queries_alone,
                sources=batch.sources,
                source_names=encoding.sources,
                instruction_negative_ids=None if negatives is None else negatives.ids,
                instruction_negative_valid=None if negatives is None else negatives.valid,
                mesh=encoding.mesh,
                dims=loss.dims,
                dim_weights=loss.dim_weights,
                mask_margin=loss.mask_margin or None,
                mask_relative=loss.mask_relative,
                hardness=loss.hardness,
                hardness_of=loss.hardness_of,
                spread=loss.spread,
                engine=loss.engine,
                tile=tile,
                tile_dtype=None if loss.tile_dtype == "float32" else loss.tile_dtype,
            )
        if learned:
            metrics["scale"] = coefficients["scale"]
        if "bias" in learned:
            metrics["bias"] = coefficients["bias"]
        if with_health:
            with jax.named_scope("health"):
                pairs, ids = (embeddings.queries, embeddings.passages), batch.ids
                if batch.passage_valid is not None:  # without hard negatives
                    pairs = pairs[0], pairs[1][:, 0]
                    ids = ids._replace(passage=ids.passage[:, 0])
                metrics |= health(*pairs, valid=batch.valid, ids=ids, mask=loss.mask)
        return value, metrics

    return loss_fn


def make_train_step(
    encoding: EncodingPlan,
    loss: LossConfig,
    tx: optax.GradientTransformation,
    *,
    schedule: optax.Schedule | None = None,
    dropout_key: jax.Array | None = None,
    frozen_layers: int = 0,
    tile: tuple[int, int] | None = None,
    with_health: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """A pure `step(state, batch) -> (state, metrics)`; jit it with donated state.

    Args:
      loss: the objective and its engine; where the state has `params["loss"]`, that gives scale and
        bias, and the scale stays at most `max_scale`.
      schedule: only to report the learning rate.
      dropout_key: a typed key; the step number is folded in. None turns dropout off.
      frozen_layers: this many first layers are not trained, see `optim.without_layers`.
      tile: rows and columns of a tile of the engines, see `contrastive_loss`.
      with_health: `inf_jax.training.health` among the metrics.

    The metrics are float32: those of `contrastive_loss` (of a mixture also by source), `grad_norm`,
    `lr`, `skipped_*`, `scale` and `bias` where learned, `health/*`; scalars but for two histograms
    of the last.
    """
    loss_fn = make_loss(encoding, loss, tile=tile, with_health=with_health)
    max_log_scale = math.log(loss.max_scale)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, state.step)

        def loss_of(params: dict) -> tuple[jax.Array, dict[str, jax.Array]]:
            return loss_fn(join_trees(params, state.frozen), batch, key)

        (_, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        grads = without_layers(grads, frozen_layers)
        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            updates = without_layers(updates, frozen_layers)  # weight decay
            params = optax.apply_updates(state.params, updates)
        if "loss" in params:
            at_most = jnp.minimum(params["loss"]["log_scale"], max_log_scale)
            params = params | {"loss": params["loss"] | {"log_scale": at_most}}
        metrics |= {
            "grad_norm": optax.tree.norm(grads),
            "skipped_in_a_row": opt_state.notfinite_count,
            "skipped_total": opt_state.total_notfinite,
        }
        if schedule is not None:
            # of AdamW's own count: a skipped step does not advance it
            metrics["lr"] = schedule(state.step - state.opt_state.total_notfinite)
        metrics = {name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()}
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def with_teacher(function: Callable, plan: EncodingPlan, scale: float) -> Callable:
    """A pure (state, batch) -> ..., such as a train step, on a batch that has the teacher's scores:
    float32[b, 1 + h], `scale` times the cosines of its vectors of query and passages, no gradient.

    Args:
      function: (state, batch) -> anything.
      plan: of the teacher's encoder; its parameters are `state.teacher`.
      scale: of the loss at the start, whether it is learned or not.
    """

    def taught(state: TrainState, batch: Batch):
        with jax.named_scope("teacher"):
            pairs = batch._replace(negatives=None)  # of block I, which no teacher scores
            queries, passages, _ = encode_pairs(plan, state.teacher, pairs)
            passages = passages.reshape(len(queries), -1, passages.shape[-1])
            scores = scale * dots("be,bke->bk", queries, passages)
        return function(state, batch._replace(teacher_scores=jax.lax.stop_gradient(scores)))

    return taught
