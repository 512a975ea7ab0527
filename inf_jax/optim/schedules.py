"""The learning rate by step: warm-up and decay."""

import optax

from inf_jax.config.sections import OptimConfig


def make_schedule(optim: OptimConfig, *, steps: int) -> optax.Schedule:
    """Linear warm-up from 0 to `lr`, then decay to `final_ratio * lr` at `steps`; the schedule
    "constant" stays at `lr`."""
    lr, end, left = optim.lr, optim.final_ratio, max(steps - optim.warmup_steps, 1)
    decay = {
        "linear": lambda: optax.linear_schedule(lr, end * lr, left),
        "cosine": lambda: optax.cosine_decay_schedule(lr, left, alpha=end),
        "constant": lambda: optax.constant_schedule(lr),
    }[optim.schedule]()
    if not optim.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, lr, optim.warmup_steps)
    return optax.join_schedules([warmup, decay], [optim.warmup_steps])
