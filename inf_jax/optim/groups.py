"""Learning rates by group: a factor by regular expression, and a decay by layer."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from inf_jax.core.errors import UserError
from inf_jax.core.trees import leaf_paths, path_name

# Parameters of a tower before its first layer: "shared/word", "shared/norm/scale", ...
_FIRST = ("word", "position", "token_type", "norm", "relative_bias")


def parse_groups(groups: Sequence[str]) -> list[tuple[str, float]]:
    """[(regular expression, factor)] of entries like "^query/=0.5".

    Raises:
      UserError: an entry has no factor of at least 0, or no regular expression.
    """
    parsed = []
    for entry in groups:
        pattern, _, factor = entry.rpartition("=")
        try:
            re.compile(pattern)
            value = float(factor)
        except (re.error, ValueError):
            pattern, value = "", 0.0
        if not pattern or not 0 <= value < float("inf"):
            raise UserError(
                f"optim.groups: {entry!r} is not a regular expression, =, and a factor of the "
                "learning rate, such as 'word$=0.1'"
            )
        parsed.append((pattern, value))
    return parsed


def check_groups(groups: Sequence[str], params: Any) -> None:
    """Raises UserError where an expression matches no trained parameter."""
    paths = leaf_paths(params)
    for pattern, _ in parse_groups(groups):
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(
                f"optim.groups: {pattern!r} matches no trained parameter; there are "
                f"{', '.join(paths)}"
            )


def scale_by_group(
    groups: Sequence[str], *, layer_decay: float = 1.0, layers: int = 0
) -> optax.GradientTransformation:
    """Multiplies updates, weight decay included, by the factors of their parameters.

    The factor of a group is that of the first expression found in the parameter's path, 1 where
    none is. Layer i of n has layer_decay^(n - 1 - i) as a further one, the tables before the first
    layer layer_decay^n, what follows the last layer 1: discriminative fine-tuning (ULMFiT, arXiv
    1801.06146), as BERT's successors use it.

    Args:
      groups: as of `parse_groups`.
      layers: n, of the encoder.
    """
    parsed = parse_groups(groups)

    def leaf(path, x: jax.Array) -> jax.Array:
        name = path_name(path)
        factor = next((value for pattern, value in parsed if re.search(pattern, name)), 1.0)
        if layer_decay == 1:
            return x * factor
        if "/blocks/" in name:
            by_layer = layer_decay ** jnp.arange(layers - 1, -1, -1, dtype=x.dtype)
            return x * (factor * by_layer).reshape(-1, *[1] * (x.ndim - 1))
        first = name.split("/")[1] in _FIRST
        return x * (factor * (layer_decay**layers if first else 1.0))

    return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(leaf, updates))
