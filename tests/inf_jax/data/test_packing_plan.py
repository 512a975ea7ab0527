"""The packing plan: one shape that is enough for all steps, and what fills it."""

import numpy as np
import pytest

from inf_jax.core.query_encoders import Attention
from inf_jax.data import packing_plan
from tests.inf_jax.data.batches import grid_texts, make, texts_of


def test_plan_is_one_shape_for_all_steps_and_its_fill_is_true(dataset):
    loader = make(dataset)
    assert loader.plan.exact
    batches = [loader.host_batch(step) for step in range(40)]
    assert len({b.texts.tokens.shape for b in batches}) == 1
    assert np.mean([(b.texts.segments > 0).mean() for b in batches]) == pytest.approx(
        loader.plan.fill
    )


def test_sampled_plan_falls_back_to_a_larger_shape(dataset, monkeypatch):
    monkeypatch.setattr(packing_plan, "PLANNED_TEXTS", 0)
    monkeypatch.setattr(packing_plan, "SAMPLED_STEPS", 1)
    monkeypatch.setattr(packing_plan, "MARGIN", 0.5)  # far too little on purpose
    loader = make(dataset)
    exact = [make(dataset, chunks=2).host_batch(s) for s in (0, 1)]
    assert not loader.plan.exact
    for step, expected in enumerate(exact):
        batch = loader.host_batch(step)
        assert batch.texts.tokens.shape[1] > loader.plan.rows[0]
        n = loader.layout.pairs_per_chunk
        assert sorted(texts_of(batch, n)) == sorted(texts_of(expected, n))  # nothing dropped


@pytest.mark.parametrize("towers", ["shared", "separate"])
@pytest.mark.parametrize("options", [{"instruction_negatives": 3}, {"query_encoder": Attention()}])
def test_plan_counts_all_texts_and_suffices(dataset, towers, options):
    loader = make(dataset, towers=towers, **options)
    batches = [loader.host_batch(step) for step in range(40)]
    grids = [[b.texts] if towers == "shared" else b.texts for b in batches]
    assert len({tuple(g.tokens.shape for g in grid) for grid in grids}) == 1
    tokens = [sum((g.segments > 0).sum() for g in grid) for grid in grids]
    assert np.mean(tokens) == pytest.approx(loader.plan.tokens)
    if "query_encoder" in options:
        assert all(b.negatives is None for b in batches)
        assert loader.plan.sampled == loader.plan.sampled_tokens == 0
        return
    n = loader.layout.pairs_per_chunk
    drawn = []
    for grid in grids:
        texts, ids = grid_texts(grid[0])
        drawn.append([len(texts[i]) for i in set(ids[:, -3 * n :].ravel()) if i >= 36])
    assert loader.plan.sampled_tokens == pytest.approx(np.mean([sum(d) for d in drawn]))
    assert loader.plan.sampled == pytest.approx(np.mean([len(d) for d in drawn]) / 18)
    assert loader.plan.poisons == pytest.approx(2 / 3)
