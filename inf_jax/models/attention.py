"""Attention within the segments of packed rows: one function, its implementations by name.

xla     any device
splash  TPU; without T5's bias and dropout of weights
cudnn   NVIDIA, Ampere or newer; without T5's bias, dropout of weights, softcap, float32, and head
        widths that are not a multiple of 8 up to 128
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array

from inf_jax.core.errors import UserError
from inf_jax.models.cudnn_attention import cudnn_attention, cudnn_limitation
from inf_jax.models.splash_attention import splash_attention, splash_limitation
from inf_jax.models.xla_attention import Keys, Queries, Rows, ScoreOptions, xla_attention


class Implementation(NamedTuple):
    """`attend` has the arguments of `attention`, `limitation` those of `choose` except `names`, and
    gives why it cannot compute it, or ""."""

    attend: Callable[..., Array]
    limitation: Callable[..., str]


IMPLEMENTATIONS = {
    "xla": Implementation(xla_attention, lambda q, **_: ""),
    "splash": Implementation(splash_attention, splash_limitation),
    "cudnn": Implementation(cudnn_attention, cudnn_limitation),
}


def implementations_for(name: str, device: jax.Device) -> tuple[str, ...]:
    """The implementations to try in order on a device, for `model.attention`: "auto" or a name in
    IMPLEMENTATIONS. Raises UserError if the device does not run it."""
    fastest = {"tpu": "splash", "gpu": "cudnn"}.get(device.platform)
    if fastest == "cudnn" and not _is_ampere_or_newer(device):
        fastest = None
    if name == "auto":
        return (fastest, "xla") if fastest else ("xla",)
    if name not in ("xla", fastest):
        needs = {"splash": "a TPU", "cudnn": "an NVIDIA GPU, Ampere or newer"}[name]
        raise UserError(
            f"model.attention={name!r}: needs {needs}, not {device.device_kind}; 'auto' chooses "
            "what the device supports"
        )
    return (name,)


def _is_ampere_or_newer(device: jax.Device) -> bool:
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return major.isdigit() and int(major) >= 8  # AMD's "gfx90a" is not a number


def choose(
    names: tuple[str, ...],
    q: jax.Array | jax.ShapeDtypeStruct,
    *,
    bias: bool,
    dropout: bool,
    softcap: float | None,
) -> tuple[str, str]:
    """(the first of the implementations that supports it, why those before it do not).

    Args:
      names: in IMPLEMENTATIONS, in order of preference.
      q: of `attention`, or its shape and dtype.
      bias, dropout: whether there is a bias, and whether weights are dropped.

    Raises:
      UserError: none does; gives the reasons.
    """
    reasons = []
    for name in names:
        reason = IMPLEMENTATIONS[name].limitation(q, bias=bias, dropout=dropout, softcap=softcap)
        if not reason:
            return name, "; ".join(reasons)
        reasons.append(f"model.attention={name!r}: {reason}")
    raise UserError("; ".join(reasons) + "; 'auto' chooses 'xla' here")


def attention(
    q: Queries,
    k: Keys,
    v: Keys,
    *,
    segments: Rows,
    positions: Rows,
    scores: ScoreOptions,
    implementations: tuple[str, ...] = ("xla",),
) -> Queries:
    """softmax(scale q k^T + bias) v over the tokens that `visible` allows; each of the g key and
    value heads serves h / g consecutive query heads.

    Args:
      segments, positions: see `packing.Packed`; no chunk axis.
      implementations: names in IMPLEMENTATIONS, see `choose`, which may raise UserError.
    """
    used = {"bias": scores.bias is not None, "dropout": scores.dropout is not None}
    name, _ = choose(implementations, q, **used, softcap=scores.softcap)
    attend = IMPLEMENTATIONS[name].attend
    return attend(q, k, v, segments=segments, positions=positions, scores=scores)
