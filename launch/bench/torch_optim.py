"""The optimisers of `optim.name` that the contenders in PyTorch train with too."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NAMES = ("adamw", "lion")


def make_torch_optimizer(
    parameters: "Iterable[torch.nn.Parameter]", optim: dict
) -> "torch.optim.Optimizer":
    """AdamW or Lion, with weight decay on matrices and tables alone, as `inf_jax.optim`.

    Args:
      parameters: float32, of a model.
      optim: the values of `optim.name`, one of NAMES, and of "lr", "b1", "b2", "eps" and
        "weight_decay".
    """
    import torch

    class Lion(torch.optim.Optimizer):
        """Chen et al. 2023, arXiv 2302.06675, algorithm 2; PyTorch has none."""

        @torch.no_grad()
        def step(self, closure=None) -> None:
            for group in self.param_groups:
                lr, (b1, b2) = group["lr"], group["betas"]
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    update = torch.lerp(p.grad, momentum, b1).sign_()
                    p.add_(update + group["weight_decay"] * p, alpha=-lr)
                    momentum.lerp_(p.grad, 1 - b2)

    parameters = list(parameters)
    groups = [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": optim["weight_decay"],
        },
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    rates = {"lr": optim["lr"], "betas": (optim["b1"], optim["b2"])}
    if optim["name"] == "lion":
        return Lion(groups, rates)
    return torch.optim.AdamW(groups, **rates, eps=optim["eps"], fused=True)
