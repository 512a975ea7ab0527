"""Runs whose checkpoints are written without training."""

import jax
import numpy as np

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.resume import ResumeInfo
from inf_jax.config.defaults import run_config
from inf_jax.models.hf.backbone import load_model
from inf_jax.training.step import TrainState


def save(config, params, step, *, ema=(), **record):
    """Writes a checkpoint with an optimiser state; `record` are further fields of ResumeInfo."""
    moments = {"mu": jax.tree.map(np.zeros_like, params)}
    state = TrainState(np.int32(step), params, moments, ema=dict(ema))
    info = ResumeInfo(step, 0, 8, "dataset", **record)
    with checkpoint.make_manager(f"{config.out_dir}/checkpoints", keep=2) as manager:
        checkpoint.save(manager, state.saved, info, config=config.to_dict())


def backbone_of(config):
    """The parameters of the run's backbone."""
    return load_model(run_config(config)).load().params


def changed(params, seed):
    """Other weights of the same shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (x + 0.3 * rng.standard_normal(x.shape)).astype(x.dtype), params)
