"""Attention inside the segments of packed rows: one function, its implementations by name.

| name   | for                  | what it cannot do                                               |
|--------|----------------------|-----------------------------------------------------------------|
| xla    | any device           |                                                                 |
| splash | TPU                  | T5's bias, dropout on weights, rows that 128 does not divide    |
| cudnn  | NVIDIA, from Ampere  | T5's bias, dropout on weights, softcap, float32, odd head widths|
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from inf_jax.core.errors import UserError
from inf_jax.models.dropout import DropoutKey
from inf_jax.models.splash_attention import splash_attention, splash_refusal
from inf_jax.models.xla_attention import Window, visible, xla_attention


def cudnn_attention(
    q: Float[Array, "r h t k"],
    k: Float[Array, "r g t k"],
    v: Float[Array, "r g t k"],
    *,
    segments: Int[Array, "r t"],
    positions: Int[Array, "r t"],
    scale: float,
    causal: bool,
    window: Window,
    implementation: str = "cudnn",
    **_: object,
) -> Float[Array, "r h t k"]:
    """See `attention`, without softcap, bias and dropout; by `jax.nn.dot_product_attention`."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    seen = visible(segments, positions, causal=causal, window=window)
    how = {"mask": seen, "scale": scale, "implementation": implementation}
    return jax.nn.dot_product_attention(q, k, v, **how).swapaxes(1, 2)


def cudnn_refusal(
    q: jax.Array | jax.ShapeDtypeStruct, *, bias: bool, dropout: bool, softcap: float | None
) -> str:
    """Why cuDNN's flash attention cannot do it; "" where it can."""
    if bias:
        return "the model adds a bias by distance to its scores"
    if dropout:
        return "model.dropout drops attention weights"
    if softcap is not None:
        return "the model caps its scores"
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"model.dtype is {q.dtype}, it computes in bfloat16"
    if q.shape[3] > 128 or q.shape[3] % 8:
        return f"heads of width {q.shape[3]}, it takes multiples of 8 up to 128"
    if q.shape[2] % 2:
        return f"rows of {q.shape[2]} tokens, it takes even numbers"
    return ""


class Implementation(NamedTuple):
    """Attributes: attend, with the arguments of `attention`; refusal, with those of `choose` but
    `by` -> why it cannot, or ""."""

    attend: Callable[..., Array]
    refusal: Callable[..., str]


IMPLEMENTATIONS = {
    "xla": Implementation(xla_attention, lambda q, **_: ""),
    "splash": Implementation(splash_attention, splash_refusal),
    "cudnn": Implementation(cudnn_attention, cudnn_refusal),
}


def implementations(name: str, device: jax.Device) -> tuple[str, ...]:
    """What to try in turn on such a device, for `model.attention`: "auto" or one by name.

    Raises:
      UserError: the device does not run it.
    """
    own = {"tpu": "splash", "gpu": "cudnn"}.get(device.platform)
    if own == "cudnn" and not _from_ampere(device):
        own = None
    if name == "auto":
        return (own, "xla") if own else ("xla",)
    if name not in ("xla", own):
        needs = {"splash": "a TPU", "cudnn": "an NVIDIA GPU, Ampere or newer"}[name]
        raise UserError(
            f"model.attention={name!r}: needs {needs}, not {device.device_kind}; 'auto' takes what "
            "the device has"
        )
    return (name,)


def _from_ampere(device: jax.Device) -> bool:
    major = str(getattr(device, "compute_capability", "")).partition(".")[0]
    return major.isdigit() and int(major) >= 8  # "gfx90a" of an AMD is no number


def choose(
    by: tuple[str, ...],
    q: jax.Array | jax.ShapeDtypeStruct,
    *,
    bias: bool,
    dropout: bool,
    softcap: float | None,
) -> tuple[str, str]:
    """(the first name that can do it, why those before it cannot).

    Args:
      by: names in IMPLEMENTATIONS.
      q: of `attention`, or its shape and dtype.
      bias, dropout: whether there is a bias, and whether weights are dropped.
      softcap: see `attention`.

    Raises:
      UserError: none can; says why.
    """
    reasons = []
    for name in by:
        reason = IMPLEMENTATIONS[name].refusal(q, bias=bias, dropout=dropout, softcap=softcap)
        if not reason:
            return name, "; ".join(reasons)
        reasons.append(f"model.attention={name!r}: {reason}")
    raise UserError("; ".join(reasons) + "; 'auto' takes 'xla' there")


def attention(
    q: Float[Array, "r h t k"],
    k: Float[Array, "r g t k"],
    v: Float[Array, "r g t k"],
    *,
    segments: Int[Array, "r t"],
    positions: Int[Array, "r t"],
    scale: float,
    causal: bool = False,
    window: Window = Window(),
    softcap: float | None = None,
    bias: Float[Array, "1 h t t"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: DropoutKey | None = None,
    site: Array | int = 0,
    first_head: Array | int = 0,
    by: tuple[str, ...] = ("xla",),
) -> Float[Array, "r h t k"]:
    """softmax(scale q k^T + bias) v among the tokens that `visible` names.

    Each of the g heads of k and v serves h / g neighbouring heads of q. `softcap` bounds the scores
    before the bias. `first_head` is the number of the first of these heads, for dropout.

    Args:
      by: names in IMPLEMENTATIONS, see `choose`.

    Raises:
      UserError: as `choose`.
    """
    dropout = dropout_key is not None and dropout_rate > 0
    name, _ = choose(by, q, bias=bias is not None, dropout=dropout, softcap=softcap)
    return IMPLEMENTATIONS[name].attend(
        q,
        k,
        v,
        segments=segments,
        positions=positions,
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
        bias=bias,
        dropout_rate=dropout_rate,
        dropout_key=dropout_key,
        site=site,
        first_head=first_head,
    )
