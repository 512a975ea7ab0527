"""The learning rate by step: warm-up and decay."""

import optax

from inf_jax.config.sections import OptimConfig

# Power of the batch with which the rate grows, by rule.
SCALINGS = {
    "none": 0.0,
    "sqrt": 0.5,  # Krizhevsky, arXiv 1404.5997; Malladi et al., arXiv 2205.10287, for Adam
    "linear": 1.0,  # Goyal et al., arXiv 1706.02677
}


def make_schedule(optim: OptimConfig, *, steps: int, pairs: int = 0) -> optax.Schedule:
    """Linear warm-up from 0 to `lr`, then decay to `final_ratio * lr` at `steps`; the schedule
    "constant" stays at `lr`.

    Args:
      pairs: of a step; with a rule `lr_scaling`, `lr` is meant for `lr_batch` of them.
    """
    end, left = optim.final_ratio, max(steps - optim.warmup_steps, 1)
    larger = pairs / (optim.lr_batch or pairs or 1)
    lr = optim.lr * larger ** SCALINGS[optim.lr_scaling]
    decay = {
        "linear": lambda: optax.linear_schedule(lr, end * lr, left),
        "cosine": lambda: optax.cosine_decay_schedule(lr, left, alpha=end),
        "constant": lambda: optax.constant_schedule(lr),
    }[optim.schedule]()
    if not optim.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, lr, optim.warmup_steps)
    return optax.join_schedules([warmup, decay], [optim.warmup_steps])
