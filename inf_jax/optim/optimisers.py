"""The optimisers of a run by name: optax chains of clipping, directions, weight decay, and rates.

All layers are stacked in one array; what an optimiser computes of a whole matrix (a norm, a mean, a
decomposition) is of each layer by itself, as if the arrays were not stacked.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from inf_jax.config.sections import OptimConfig
from inf_jax.core.trees import is_vector, path_name
from inf_jax.optim.groups import scale_by_group

_MUON_RMS = 0.2  # of an entry of the update, about AdamW's (arXiv 2502.16982, section 2.2)


def decay_mask(params) -> dict:
    """True where weight decay applies: matrices and embedding tables, neither biases nor norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_vector(path), params)


def without_layers(tree, count: int):
    """Gradients or updates with 0 in the first `count` layers. All layers are one array, so this
    freezes weights without saving memory or time."""

    def leaf(path, x: jax.Array) -> jax.Array:
        return x.at[:count].set(0) if "/blocks/" in path_name(path) else x

    return jax.tree_util.tree_map_with_path(leaf, tree) if count else tree


def make_optimizer(
    optim: OptimConfig, schedule: optax.Schedule, *, layers: int = 0
) -> optax.GradientTransformation:
    """The optimiser `optim.name` after clipping by global norm, with the rates of `optim.groups`.

    Weight decay is decoupled (Loshchilov & Hutter 2017), times the rate, and for matrices alone. A
    step whose gradients are not finite changes nothing and is counted. How many in a row are too
    many the train loop decides, so the limit here is never reached.

    Args:
      layers: of the encoder, for optim.layer_decay.
    """
    steps = [optax.clip_by_global_norm(optim.clip_norm), _BY_NAME[optim.name](optim, schedule)]
    if optim.groups or optim.layer_decay < 1:
        decay = {"layer_decay": optim.layer_decay, "layers": layers}
        steps.append(scale_by_group(optim.groups, **decay))
    chain = optax.chain(*steps)
    return optax.apply_if_finite(chain, max_consecutive_errors=jnp.iinfo(jnp.int32).max)


def _adamw(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    numbers = {"b1": optim.b1, "b2": optim.b2, "eps": optim.eps, "weight_decay": optim.weight_decay}
    return optax.adamw(schedule, **numbers, mask=decay_mask)


def _lion(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    numbers = {"b1": optim.b1, "b2": optim.b2, "weight_decay": optim.weight_decay}
    return optax.lion(schedule, **numbers, mask=decay_mask)


def _lamb(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps),
        optax.add_decayed_weights(optim.weight_decay, mask=decay_mask),
        _scale_of_each_layer(_trust_ratio),
        optax.scale_by_learning_rate(schedule),
    )


def _adafactor(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Without momentum, and with rates of AdamW's size (not times the scale of the parameter)."""
    return optax.chain(
        optax.scale_by_factored_rms(),  # of the last two large axes, so of each layer
        _scale_of_each_layer(_clipped_rms),
        optax.add_decayed_weights(optim.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule),
    )


def _muon(optim: OptimConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon for the matrices of the layers, Adam for tables, biases, norms and the projection."""

    def labels(params) -> dict:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "muon" if _is_layer_matrix(path_name(path)) else "adam", params
        )

    muon = optax.chain(
        contrib.scale_by_muon(
            beta=optim.b1, eps=optim.eps, weight_dimension_numbers=_matrix_axes_of
        ),
        _even_rms(),
    )
    adam = optax.scale_by_adam(b1=optim.b1, b2=optim.b2, eps=optim.eps)
    return optax.chain(
        optax.partition({"muon": muon, "adam": adam}, labels),
        optax.add_decayed_weights(optim.weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule),
    )


_BY_NAME: dict[str, Callable[[OptimConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": _adamw,
    "lamb": _lamb,  # You et al. 2019, arXiv 1904.00962
    "lion": _lion,  # Chen et al. 2023, arXiv 2302.06675
    "adafactor": _adafactor,  # Shazeer & Stern 2018, arXiv 1804.04235
    "muon": _muon,  # Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982
}


def _scale_of_each_layer(factor: Callable) -> optax.GradientTransformation:
    """Multiplies each update by `factor(update, parameter, axes)`, of each layer by itself."""

    def leaf(path, update: jax.Array, parameter: jax.Array) -> jax.Array:
        axes = tuple(range(1 if "/blocks/" in path_name(path) else 0, update.ndim))
        return update * factor(update, parameter, axes)

    return optax.stateless(
        lambda updates, params: jax.tree_util.tree_map_with_path(leaf, updates, params)
    )


def _trust_ratio(update: jax.Array, parameter: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    of, by = (jnp.sum(jnp.square(x), axis=axes, keepdims=True) for x in (parameter, update))
    none = (of == 0) | (by == 0)
    return jnp.where(none, 1, jnp.sqrt(jnp.where(none, 1, of) / jnp.where(none, 1, by)))


def _clipped_rms(update: jax.Array, _: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    mean = jnp.mean(jnp.square(update), axis=axes, keepdims=True)
    return 1 / jnp.maximum(1, jnp.sqrt(mean))


def _is_layer_matrix(name: str) -> bool:
    return "/blocks/" in name and not name.endswith(("bias", "scale"))


def _matrix_axes(name: str, ndim: int) -> contrib.MuonDimensionNumbers:
    """The input and output axes of a stacked matrix; the first axis, of layers, is neither."""
    inputs = 2 if name.endswith(("out_kernel", "out_lora_a")) else 1  # heads and their width
    axes = tuple(range(1, ndim))
    return contrib.MuonDimensionNumbers(axes[:inputs], axes[inputs:])


def _matrix_axes_of(updates) -> dict:
    return jax.tree_util.tree_map_with_path(
        lambda path, x: _matrix_axes(path_name(path), x.ndim), updates
    )


def _even_rms() -> optax.GradientTransformation:
    """Updates of orthogonal matrices, scaled to the same root mean square whatever their shape."""

    def leaf(path, x: jax.Array) -> jax.Array:
        axes = _matrix_axes(path_name(path), x.ndim)
        sizes = (math.prod(x.shape[axis] for axis in part) for part in axes)
        return x * (_MUON_RMS * math.sqrt(max(sizes)))

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(leaf, updates))
