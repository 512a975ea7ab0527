"""Hugging Face checkpoints in and out: `load_weights`, `save_weights`, `resolve_model`.

Loaded on first use: importing the package imports neither JAX nor transformers.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inf_jax.models.hf.resolve import resolve_model
    from inf_jax.models.hf.weights import load_weights, save_weights

__all__ = ["load_weights", "resolve_model", "save_weights"]
_MODULES = {"load_weights": "weights", "resolve_model": "resolve", "save_weights": "weights"}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
