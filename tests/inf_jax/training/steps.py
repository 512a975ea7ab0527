"""Batches of random texts and train steps of a small BERT, for tests."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inf_jax.config.sections import LossConfig
from inf_jax.core import packing
from inf_jax.core.batch import Batch, TextIds
from inf_jax.data.loader import to_mesh
from inf_jax.data.sampler import assign_to_chunks
from inf_jax.distributed.sharding import state_shardings
from inf_jax.models.encoder import COMPUTE_DTYPES, EncoderOptions, make_encoder
from inf_jax.models.hf.config import read_config
from inf_jax.training.forward import EncodingPlan
from inf_jax.training.step import TrainState, make_train_step

GOLDEN = Path(__file__).parents[2] / "golden" / "models" / "bert"


ROW, PLACES = 32, 6


def encoder(dropout=0.0, **options):
    config = dataclasses.replace(read_config(GOLDEN), dropout=dropout, attention_dropout=dropout)
    return make_encoder(config, EncoderOptions(**options))


def make_pairs(count, seed=0):
    rng = np.random.default_rng(seed)

    def text(longest):
        return rng.integers(1, 99, rng.integers(2, longest)).astype(np.int32)

    return [(text(12), text(30)) for _ in range(count)]


def make_batch(pairs, *, chunks, towers="shared"):
    """A batch as the loader would lay it out: pairs assigned to chunks, -1 for an empty slot."""
    each = -(-len(pairs) // chunks)
    padded = np.full(each * chunks, -1)
    padded[: len(pairs)] = np.arange(len(pairs))
    lengths = np.array([len(q) + len(p) for q, p in pairs] + [0])
    assigned = padded[assign_to_chunks(lengths[padded], chunks)]
    empty = np.empty(0, np.int32)
    columns = {"shared": [(0, 1)], "separate": [(0,), (1,)]}[towers]
    grids = []
    for roles in columns:
        parts = [
            (
                [pairs[i][r] if i >= 0 else empty for r in roles for i in chunk],
                np.concatenate([np.maximum(chunk, 0) * 2 + r for r in roles]),
            )
            for chunk in assigned
        ]
        rows = max(
            packing.rows_needed(np.array([len(t) for t in texts]), ROW, PLACES)
            for texts, _ in parts
        )
        grids.append(
            packing.stack_chunks(
                [
                    packing.pack_chunk(texts, ids, rows=rows, row_tokens=ROW, texts_per_row=PLACES)
                    for texts, ids in parts
                ]
            )
        )
    flat = assigned.ravel()
    hashes = np.stack([np.maximum(flat, 0), np.zeros_like(flat)], -1).astype(np.uint32)
    return Batch(
        texts=grids[0] if towers == "shared" else tuple(grids),
        ids=TextIds(hashes, hashes, hashes),
        valid=flat >= 0,
    )


def init_params(tree, towers):
    """One encoder's tree as the parameters of shared towers; two copies of it for separate ones."""
    if towers == "shared":
        return {"shared": tree}
    return {"query": tree, "passage": jax.tree.map(lambda x: x.copy(), tree)}


def make_step(*, mesh, groups=1, dropout=0.0, engine="auto", gather="auto", **options):
    """SGD of rate 1, so that the step leaves params - grads."""
    tx = optax.apply_if_finite(optax.sgd(1.0), 5)
    chunks = {"groups": groups, "gather": gather, "keep_last": options.pop("keep_last", False)}
    chunks["dtype"] = COMPUTE_DTYPES[options.get("dtype", "float32")]
    step = make_train_step(
        EncodingPlan(encoder(dropout, **options).encode, mesh=mesh, **chunks),
        LossConfig(objective="multi(P,IQ)", scale=20.0, engine=engine),
        tx,
        tile=(4, 4),
        dropout_key=jax.random.key(3) if dropout else None,
    )
    return tx, step


def loss_and_grads(weights, batch, *, mesh, towers="shared", **options):
    """Loss and gradients through the step itself."""
    tx, step = make_step(mesh=mesh, **options)
    params = init_params(weights, towers)
    state = TrainState(jnp.int32(0), params, tx.init(params))
    shardings = state_shardings(mesh, jax.eval_shape(lambda: state))
    for axis in ("fsdp", "tensor"):
        split = any(axis in str(s.spec) for s in jax.tree.leaves(shardings))
        assert split or mesh.shape[axis] == 1
    state = jax.device_put(state, shardings)
    after, metrics = jax.jit(step, out_shardings=(shardings, None))(state, to_mesh(mesh)(batch))
    grads = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, after.params)
    return float(metrics["loss"]), grads


def assert_same(actual, expected, tolerance=1e-5):
    assert actual[0] == pytest.approx(expected[0], rel=1e-5)
    for a, b in zip(jax.tree.leaves(actual[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=1e-4)
