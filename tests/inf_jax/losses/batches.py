"""Random batches in which texts repeat, and the loss with its gradients."""

import jax
import numpy as np
from hypothesis import strategies as st

from inf_jax.core.batch import TextIds, split_hashes
from inf_jax.losses import contrastive_loss

ALL = "P,I,IQ,QQ,PP"
UNI, MULTI = f"uni({ALL})", f"multi({ALL})"
EMBEDDINGS = ("queries", "passages", "instruction_negatives")
seeds = st.integers(0, 2**32 - 1)


def make(seed, *, b=8, h=1, m=2, e=8, texts=3, empty=True):
    """A batch in which texts repeat: the texts, and the arrays that contrastive_loss takes."""
    rng = np.random.default_rng(seed)
    names = {
        "instruction": rng.integers(0, texts, b),
        "query": rng.integers(0, texts, b),
        "passage": rng.integers(0, 2 * texts, (b, 1 + h)),
        "other": rng.integers(0, texts, (b, m)),
    }
    halves = {k: split_hashes(v.astype(np.uint64) * 0x9E3779B97F4A7C15) for k, v in names.items()}
    arrays = {
        "queries": unit(rng, b, e),
        "passages": unit(rng, b, 1 + h, e),
        "instruction_negatives": unit(rng, b, m, e),
        "ids": TextIds(halves["instruction"], halves["query"], halves["passage"]),
        "instruction_negative_ids": halves["other"],
        "valid": rng.random(b) < 0.7 if empty else np.ones(b, bool),
    }
    return names, arrays


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def loss_and_gradients(arrays, objective, *, scale=20.0, mask="identity"):
    """((loss, metrics), gradients of the embeddings and of the scale)."""

    def loss(embeddings, scale):
        rest = {k: v for k, v in arrays.items() if k not in embeddings}
        return contrastive_loss(**embeddings, **rest, objective=objective, scale=scale, mask=mask)

    embeddings = {k: arrays[k] for k in EMBEDDINGS if k in arrays}
    return jax.value_and_grad(loss, (0, 1), has_aux=True)(embeddings, scale)


value_and_grad = jax.jit(loss_and_gradients, static_argnums=1, static_argnames=("mask",))


def assert_close(found, expected, tolerance=1e-6):
    """Relative to the largest entry of each array."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=0, atol=tolerance * max(1e-6, np.max(np.abs(b), initial=0))
        ),
        found,
        expected,
    )
