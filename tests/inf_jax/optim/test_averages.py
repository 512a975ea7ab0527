"""Weighted means and slerp of parameter trees, against their formulas in float64."""

import jax
import numpy as np
import pytest

from inf_jax.optim.averages import add_scaled, slerp


def arc(a, b, share):
    """mergekit's slerp of two tensors (mergekit/merge_methods/slerp.py), written from its rule."""
    norms = np.linalg.norm(a), np.linalg.norm(b)
    cosine = np.sum(a * b) / (norms[0] * norms[1]) if all(norms) else 1.0
    if abs(cosine) > 0.9995:
        return (1 - share) * a + share * b
    angle = np.arccos(cosine)
    return (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_slerp_of_each_matrix(share):
    rng = np.random.default_rng(0)
    one, other = (
        {"word": rng.normal(size=(5, 4)), "blocks": {"up_kernel": rng.normal(size=(3, 4, 2))}}
        for _ in range(2)
    )
    one["near"], other["near"] = np.ones(3), np.ones(3) + 1e-3 * rng.normal(size=3)
    one["zero"], other["zero"] = np.zeros(3), np.ones(3)
    trees = [{"shared": jax.tree.map(np.float32, tree)} for tree in (one, other)]
    found = slerp(*trees, share)["shared"]
    for name in ("word", "near", "zero"):
        np.testing.assert_allclose(found[name], arc(one[name], other[name], share), atol=1e-6)
    layers = [one["blocks"]["up_kernel"], other["blocks"]["up_kernel"]]
    expected = [arc(a, b, share) for a, b in zip(*layers, strict=True)]
    np.testing.assert_allclose(found["blocks"]["up_kernel"], expected, atol=1e-6)


def test_add_scaled():
    total, tree = {"a": jax.numpy.ones(3)}, {"a": np.arange(3, dtype=np.float32)}
    np.testing.assert_allclose(add_scaled(total, tree, 0.5)["a"], [1, 1.5, 2])
