"""The paper's own functions and sentence-transformers', in float64."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.losses import contrastive_loss

GOLDEN = Path(__file__).parents[2] / "golden" / "losses"
OURS = {  # golden key of the paper's code -> our notation; multi of one block is its uni
    "uni__qk": "uni(P)",
    "uni__kq": "uni(IQ)",
    "uni__only_neg": "uni(I)",
    "uni__no_trick": "uni(P,IQ)",
    "uni__qk_with_neg": "uni(P,I)",
    "uni__kq_with_neg": "uni(I,IQ)",
    "uni__no_trick_with_neg": "uni(P,I,IQ)",
    "uni__same_tower": "uni(P,IQ,QQ,PP)",
    "uni__same_tower_with_neg": "uni(P,I,IQ,QQ,PP)",
    "multi__no_trick": "multi(P,IQ)",
    "multi__qk_with_neg": "multi(P,I)",
    "multi__kq_with_neg": "multi(I,IQ)",
    "multi__no_trick_with_neg": "multi(P,I,IQ)",
}
ST = {  # key of sentence-transformers -> our notation, scale, factor, unit norm
    "mnrl": ("uni(P)", 20, 1, True),
    "mnrl_scale50": ("uni(P)", 50, 1, True),
    "mnrl_dot_scale1": ("uni(P)", 1, 1, False),
    "symmetric_per_direction": ("multi(P,IQ)", 20, 0.5, True),
    "q2d_q2q_joint": ("uni(P,QQ)", 20, 1, True),
}
PAPER_FILES = sorted(p.name for p in GOLDEN.glob("losses_*.npz"))
ST_FILES = sorted(p.name for p in GOLDEN.glob("st_*.npz"))


def test_all_files_are_there():
    assert len(PAPER_FILES) == 18 and len(ST_FILES) == 4


def every_objective(query, key, negatives, scale):
    """{golden key: (loss, gradients)}; one graph, compiled once a shape."""

    def loss(query, key, negatives, objective):
        passages = key.reshape(query.shape[0], -1, query.shape[1])
        return contrastive_loss(
            query, passages, negatives, objective=objective, scale=scale, mask="faithful"
        )[0]

    with_gradients = jax.value_and_grad(loss, (0, 1, 2))
    return {name: with_gradients(query, key, negatives, o) for name, o in OURS.items()}


every_objective = jax.jit(every_objective)


@pytest.mark.parametrize("file", PAPER_FILES)
def test_paper(file):
    golden = np.load(GOLDEN / file)
    tied = "_tied_" in file
    with jax.enable_x64(True):
        negatives = golden["neg_query"][:, 1:]  # column 0 is n_ii, a second encoding of q_i
        found = every_objective(golden["query"], golden["key"], negatives, golden["scale"])
    checked = 0
    for name, (value, (query, key, negatives)) in found.items():
        has_instructions = "_neg" in name
        if has_instructions and not tied:  # there n_ii, kept apart, is the positive
            continue
        expected_query = golden[f"{name}__grad_query"]
        if has_instructions:
            expected_negatives = golden[f"{name}__grad_neg_query"]
            expected_query = expected_query + expected_negatives[:, 0]
            np.testing.assert_allclose(negatives, expected_negatives[:, 1:], rtol=0, atol=1e-9)
        np.testing.assert_allclose(value, golden[f"{name}__loss"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(query, expected_query, rtol=0, atol=1e-9)
        np.testing.assert_allclose(key, golden[f"{name}__grad_key"], rtol=0, atol=1e-9)
        checked += 1
    assert checked == (13 if tied else 5)


def every_st_loss(query, passages):
    def loss(query, passages, objective, scale, factor, unit):
        if unit:
            query, passages = (
                x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (query, passages)
            )
        return (
            factor
            * contrastive_loss(query, passages, objective=objective, scale=scale, mask="faithful")[
                0
            ]
        )

    with_gradients = jax.value_and_grad(loss, (0, 1))
    return {name: with_gradients(query, passages, *case) for name, case in ST.items()}


@pytest.mark.parametrize("file", ST_FILES)
def test_sentence_transformers(file):
    golden = np.load(GOLDEN / file)
    documents = [k for k in ("doc0", "doc1", "doc2") if k in golden]
    with jax.enable_x64(True):
        passages = np.stack([golden[k] for k in documents], axis=1)
        found = jax.jit(every_st_loss)(golden["query"], passages)
    for name, (value, (query_grad, passage_grad)) in found.items():
        np.testing.assert_allclose(value, golden[f"{name}__loss"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(query_grad, golden[f"{name}__grad_query"], rtol=0, atol=1e-9)
        for n, document in enumerate(documents):
            np.testing.assert_allclose(
                passage_grad[:, n], golden[f"{name}__grad_{document}"], rtol=0, atol=1e-9
            )


SIGLIP = {
    "siglip_t10_b-10": (10.0, -10.0),
    "siglip_t10_b0": (10.0, 0.0),
    "siglip_t20_b-5": (20.0, -5.0),
}


@functools.partial(jax.jit, static_argnames="engine")
def siglip(query, passages, scale, bias, engine):
    def loss(query, passages, scale, bias):
        return contrastive_loss(
            query,
            passages,
            objective="sigmoid(P)",
            scale=scale,
            bias=bias,
            mask="faithful",
            engine=engine,
        )[0]

    return jax.value_and_grad(loss, (0, 1, 2, 3))(query, passages, scale, bias)


@pytest.mark.parametrize("engine", ["dense", "blockwise"])
@pytest.mark.parametrize("file", ST_FILES)
def test_siglip(file, engine):
    """Gradients of scale and bias too; sums of the tiles run in the inputs' own precision."""
    golden = np.load(GOLDEN / file)
    for name, (scale, bias) in SIGLIP.items():
        with jax.enable_x64(True):
            value, (query, passages, slope, shift) = siglip(
                golden["siglip_query"], golden["siglip_doc0"], scale, bias, engine
            )
        np.testing.assert_allclose(value, golden[f"{name}__loss"], rtol=0, atol=1e-10)
        np.testing.assert_allclose(query, golden[f"{name}__grad_query"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(passages, golden[f"{name}__grad_doc0"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(slope, golden[f"{name}__grad_t"], rtol=0, atol=1e-9)
        np.testing.assert_allclose(shift, golden[f"{name}__grad_b"], rtol=0, atol=1e-9)
