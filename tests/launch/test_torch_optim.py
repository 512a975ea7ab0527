"""The optimisers of the contenders in PyTorch take the steps that optax's take."""

import numpy as np
import optax
import pytest

from launch.bench.torch_optim import NAMES, make_torch_optimizer

torch = pytest.importorskip("torch")
OPTIM = {"lr": 0.03, "b1": 0.8, "b2": 0.9, "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_optax(name):
    draw = np.random.default_rng(0)
    start = {"table": draw.normal(size=(4, 3)), "bias": draw.normal(size=3)}
    start = {key: value.astype(np.float32) for key, value in start.items()}
    theirs = {key: torch.nn.Parameter(torch.tensor(value)) for key, value in start.items()}
    optimizer = make_torch_optimizer(theirs.values(), {"name": name} | OPTIM)

    decayed = {"table": True, "bias": False}
    numbers = {key: OPTIM[key] for key in ("b1", "b2", "weight_decay")}
    if name == "adamw":
        numbers["eps"] = OPTIM["eps"]
    ours = getattr(optax, name)(OPTIM["lr"], **numbers, mask=decayed)
    params, state = start, ours.init(start)
    for _ in range(5):
        gradients = {key: draw.normal(size=x.shape).astype(np.float32) for key, x in start.items()}
        for key, gradient in gradients.items():
            theirs[key].grad = torch.tensor(gradient)
        optimizer.step()
        optimizer.zero_grad()
        updates, state = ours.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    for key, value in params.items():
        np.testing.assert_allclose(theirs[key].detach(), value, rtol=1e-5, atol=1e-6)
        assert np.abs(value - start[key]).max() > 0.05
