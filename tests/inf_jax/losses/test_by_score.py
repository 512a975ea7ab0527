"""Score masks, hardness and the spread-out regulariser, against sentence-transformers' losses."""

import jax
import numpy as np
import pytest

from inf_jax.core.errors import UserError
from inf_jax.losses import contrastive_loss
from tests.inf_jax.losses.batches import assert_close, make

torch = pytest.importorskip("torch")
losses = pytest.importorskip("sentence_transformers.losses")


@pytest.fixture(scope="module")
def texts():
    """queries [8, 8] and passages [8, 2, 8], close enough to each other for margins to matter."""
    _, arrays = make(3, b=8, h=1, empty=False)
    q, p = arrays["queries"], arrays["passages"]
    p[:, 0] += 0.3 * q
    p /= np.linalg.norm(p, axis=-1, keepdims=True)
    assert np.sum(q * p[:, 0], -1).max() < 0.9  # theirs masks a text's product with itself by it
    return q, p


def tensors(texts):
    q, p = texts
    return [torch.tensor(x, requires_grad=True) for x in (q, p[:, 0], p[:, 1])]


def compare(texts, theirs, inputs, objective, **options):
    """Our loss and gradients are theirs, whose gradients the inputs have."""

    def ours(q, p):
        return contrastive_loss(q, p, objective=objective, scale=20.0, mask="faithful", **options)

    (loss, metrics), grads = jax.value_and_grad(ours, (0, 1), has_aux=True)(*texts)
    np.testing.assert_allclose(loss, theirs, rtol=1e-5)
    q, *p = (x.grad.numpy() for x in inputs)
    unit = [x - np.sum(x * t, -1, keepdims=True) * t for x, t in zip(grads, texts, strict=True)]
    assert_close(unit, [q, np.stack(p, 1)], 2e-5)  # theirs are of vectors that they normalise
    return metrics


class Given(torch.nn.Module):
    """An encoder whose embeddings are its inputs."""

    def forward(self, features):
        return {"sentence_embedding": features["x"]}


@pytest.mark.parametrize(("margin", "relative"), [(0.1, False), (-0.05, False), (-0.2, True)])
def test_mask_is_that_of_gist_embed(texts, margin, relative):
    """Guided by the model itself; their margin is taken off the positive's score, ours added."""
    gist = losses.GISTEmbedLoss.__new__(losses.GISTEmbedLoss)  # its own needs two whole models
    torch.nn.Module.__init__(gist)
    gist.model = gist.guide = Given()
    gist.similarity_fct = torch.nn.CosineSimilarity(dim=-1)
    gist.cross_entropy_loss = torch.nn.CrossEntropyLoss()
    gist.temperature, gist.margin = 1 / 20, -margin
    gist.margin_strategy = "relative" if relative else "absolute"
    gist.must_retokenize = gist.gather_across_devices = False
    gist.contrast_anchors = gist.contrast_positives = True
    inputs = tensors(texts)
    loss = gist([{"x": x} for x in inputs], None)
    loss.backward()
    options = {"mask_margin": margin, "mask_relative": relative}
    metrics = compare(texts, loss.item(), inputs, "uni(P,QQ,PP)", **options)
    assert all(0 < metrics[f"score_masked/{block}"] < 1 for block in ("P", "QQ", "PP"))


@pytest.mark.parametrize(("ours", "theirs"), [("hard", "hard_negatives"), ("all", "all_negatives")])
def test_hardness_is_that_of_multiple_negatives_ranking(texts, ours, theirs):
    inputs = tensors(texts)
    loss = losses.MultipleNegativesRankingLoss(
        None, scale=20.0, hardness_mode=theirs, hardness_strength=5.0
    ).compute_loss_from_embeddings(inputs, None)
    loss.backward()
    compare(texts, loss.item(), inputs, "uni(P)", hardness=5.0, hardness_of=ours)


def test_spread_is_the_second_moment_of_global_orthogonality(texts):
    """Theirs begins at 1 / width, of each side."""
    q, p = (np.abs(x) for x in texts)  # all far above it
    inputs = [torch.tensor(x) for x in (q, p[:, 0])]
    terms = losses.GlobalOrthogonalRegularizationLoss(
        None, mean_weight=0.0, second_moment_weight=1.0, aggregation="sum"
    ).compute_loss_from_embeddings(inputs)
    expected = terms["gor_second_moment"].item() + 2 / 8
    options = {"objective": "uni(P)", "scale": 20.0, "mask": "faithful"}
    plain, _ = contrastive_loss(q, p, **options)
    loss, metrics = contrastive_loss(q, p, **options, spread=0.5)
    np.testing.assert_allclose(metrics["spread"], expected, rtol=1e-5)
    np.testing.assert_allclose(loss - plain, 0.5 * expected, rtol=1e-4)
    padded = [np.pad(x, [(0, 3)] + [(0, 0)] * (x.ndim - 1), constant_values=np.nan) for x in (q, p)]
    _, metrics = contrastive_loss(*padded, **options, spread=0.5, valid=np.arange(11) < 8)
    np.testing.assert_allclose(metrics["spread"], expected, rtol=1e-5)


def test_the_largest_hardness_is_exact_tile_by_tile(texts):
    options = {"objective": "uni(P)", "scale": 20.0, "mask": "faithful", "hardness": 64.0}
    for of in ("hard", "all"):
        dense, tiled = (
            contrastive_loss(*texts, **options, hardness_of=of, engine=engine, tile=(4, 4))[0]
            for engine in ("dense", "blockwise")
        )
        np.testing.assert_allclose(tiled, dense, rtol=1e-5)


def test_share_of_the_identity_mask_by_source_counts_what_the_margin_removed():
    _, arrays = make(5)
    valid = arrays["valid"]
    options = {"objective": "uni(P,IQ)", "scale": 20.0, "mask_margin": -0.1}
    one = {"sources": np.zeros(len(valid), np.int32), "source_names": ("a",)}
    _, found = contrastive_loss(**arrays, **options, **one)
    for block in ("P", "IQ"):
        assert found[f"score_masked/{block}"] > 0 and found[f"masked/{block}"] > 0
        np.testing.assert_allclose(found[f"masked/{block}/a"], found[f"masked/{block}"], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_margin": float("nan")}, "mask_margin=nan: expected a number"),
        ({"hardness": -1.0}, "hardness=-1.0: expected a number of at least 0"),
        ({"hardness": 100.0}, "hardness=100.0: .* give at most 64"),
        ({"hardness_of": "own"}, "hardness_of='own'; choose one of hard, all"),
        ({"spread": float("inf")}, "spread=inf: expected"),
    ],
)
def test_bad_rules(texts, options, message):
    with pytest.raises(UserError, match=message):
        contrastive_loss(*texts, objective="uni(P)", scale=1.0, mask="faithful", **options)
