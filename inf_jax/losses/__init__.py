"""Contrastive losses; importing `inf_jax.losses.objective` alone does not import JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inf_jax.losses.contrastive import contrastive_loss

__all__ = ["contrastive_loss"]


def __getattr__(name: str):
    if name != "contrastive_loss":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from inf_jax.losses.contrastive import contrastive_loss

    return contrastive_loss
