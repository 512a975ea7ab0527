"""Every engine against the dense one: values, gradients and metrics, on any mesh and tile."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from inf_jax.core.batch import TextIds, split_hashes
from inf_jax.core.errors import UserError
from inf_jax.distributed.mesh import make_mesh
from inf_jax.losses import contrastive_loss

GOLDEN = Path(__file__).parents[2] / "golden" / "losses"
ALL = "P,I,IQ,QQ,PP"


def make(seed, *, b, h=0, m=2, e=16, texts=5):
    """Arrays for contrastive_loss; texts repeat and some slots are empty."""
    rng = np.random.default_rng(seed)

    def unit(*shape):
        x = rng.normal(size=shape).astype(np.float32)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    def hashes(*shape):
        numbers = rng.integers(1, texts, shape).astype(np.uint64)
        return split_hashes(numbers * 0x9E3779B97F4A7C15)

    return {
        "queries": unit(b, e),
        "passages": unit(b, 1 + h, e),
        "instruction_negatives": unit(b, m, e),
        "ids": TextIds(hashes(b), hashes(b), hashes(b, 1 + h)),
        "instruction_negative_ids": hashes(b, m),
        "valid": rng.random(b) < 0.8,
    }


def value_and_grad(arrays, objective, *, scale=20.0, bias=-1.0, **options):
    """((loss, metrics), (gradients of the embeddings, of scale, of bias))."""
    names = ("queries", "passages", "instruction_negatives")
    embeddings = {k: arrays[k] for k in names if k in arrays}
    rest = {k: v for k, v in arrays.items() if k not in names}
    static = tuple({"objective": objective, **options}.items())
    return _value_and_grad(embeddings, rest, scale, bias, static)


@functools.partial(jax.jit, static_argnums=4)  # compiled once for all batches of a shape
def _value_and_grad(embeddings, rest, scale, bias, static):
    def loss(embeddings, scale, bias):
        return contrastive_loss(**embeddings, **rest, scale=scale, bias=bias, **dict(static))

    return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(embeddings, scale, bias)


def assert_close(found, expected, tolerance=1e-5):
    """Relative to the largest entry of each array."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        worst = np.max(np.abs(np.asarray(a, np.float64) - b))
        assert worst <= tolerance * max(1e-6, np.max(np.abs(b))), jax.tree_util.keystr(path)


def mesh_of(devices):
    return make_mesh(devices=jax.devices()[:devices], fsdp=2 if devices >= 4 else 1)


CASES = [  # objective, mask, rows, hard negatives, engine, devices, tile
    (f"multi({ALL})", "identity", 24, 0, "blockwise", 1, (8, 4)),
    (f"uni({ALL})", "identity", 37, 1, "blockwise", 1, (5, 16)),
    (f"multi({ALL})", "faithful", 37, 3, "blockwise", 1, (1024, 1024)),
    ("sigmoid(P,IQ,PP)", "identity", 21, 1, "blockwise", 1, (7, 3)),
    # by row alone
    ("uni(P,I,QQ,PP)", "identity", 37, 1, "blockwise", 1, (8, 16)),
    ("multi(P,0.5*I)", "faithful", 24, 3, "blockwise", 1, (2, 4)),
    ("2*sigmoid(P,QQ) + uni(PP)", "identity", 37, 0, "blockwise", 1, (64, 64)),
    (f"uni({ALL})", "identity", 24, 1, "ring", 1, (8, 4)),
    (f"multi({ALL})", "identity", 37, 0, "ring", 2, (4, 8)),
    (f"multi({ALL})", "identity", 37, 3, "ring", 4, (16, 3)),
    (f"uni({ALL})", "identity", 37, 3, "ring", 8, (2, 2)),
    (f"multi({ALL})", "faithful", 64, 1, "ring", 8, (4, 8)),
    ("uni(P,0.5*QQ) + 0.3*sigmoid(P,2*IQ)", "identity", 37, 1, "ring", 8, (2, 4)),
    ("multi(P,IQ)", "identity", 3, 0, "ring", 8, (2, 2)),  # fewer rows than devices
    ("uni(P,IQ)", "faithful", 40, 0, "ring", 8, (8, 2)),
    (f"multi({ALL})", "identity", 37, 1, "gather", 8, (4, 16)),
    (f"uni({ALL})", "identity", 37, 0, "gather", 2, (8, 8)),
    ("sigmoid(P,IQ)", "identity", 16, 1, "gather", 8, (1, 1)),
]


@pytest.mark.parametrize(
    ("objective", "mask", "b", "h", "engine", "devices", "tile"), CASES, ids=str
)
def test_engines_agree_with_dense(objective, mask, b, h, engine, devices, tile):
    arrays = make(b + h, b=b, h=h)
    expected = value_and_grad(arrays, objective, mask=mask, engine="dense")
    assert expected[0][0] > 0
    mesh = mesh_of(devices)
    found = value_and_grad(arrays, objective, mask=mask, engine=engine, mesh=mesh, tile=tile)
    assert_close(found, expected)


BY_SCORE = [  # objective, hard negatives, engine, devices, tile, rules
    (f"multi({ALL})", 1, "blockwise", 1, (5, 16), {"mask_margin": 0.05, "hardness": 5.0}),
    (
        f"uni({ALL})",
        3,
        "ring",
        8,
        (2, 4),
        {"mask_margin": -0.1, "mask_relative": True, "hardness": 3.0, "hardness_of": "all"},
    ),
    (
        "uni(P,IQ) + sigmoid(P,IQ)",
        1,
        "gather",
        8,
        (4, 16),
        {"mask_margin": 0.1, "hardness": 5.0, "spread": 2.0},
    ),
]


@pytest.mark.parametrize(("objective", "h", "engine", "devices", "tile", "rules"), BY_SCORE)
def test_engines_agree_by_score(objective, h, engine, devices, tile, rules):
    """Score masks, hardness and spread, and queries alone."""
    arrays = make(h, b=37, h=h)
    alone = np.random.default_rng(h).random(37) < 0.3
    arrays["queries_alone"] = alone
    arrays["passages"][:, 0] += 0.5 * arrays["queries"]  # margins around which candidates lie
    expected = value_and_grad(arrays, objective, engine="dense", **rules)
    plain = value_and_grad(arrays, objective, engine="dense")
    assert 0.02 < expected[0][1]["score_masked/P"] < 0.9 and "score_masked/P" not in plain[0][1]
    assert expected[0][1]["masked/P"] == pytest.approx(plain[0][1]["masked/P"])
    assert "score_masked/I" not in expected[0][1]
    mesh = mesh_of(devices)
    found = value_and_grad(arrays, objective, engine=engine, mesh=mesh, tile=tile, **rules)
    assert_close(found, expected)


GOLDEN_CASES = [
    *((file, "ring", 8) for file in sorted(p.name for p in GOLDEN.glob("losses_*_tied_*"))),
    *(
        (f"losses_{shape}_div1_tied_seed0.npz", engine, devices)
        for shape in ("B12_D16_N3", "B6_D16_N1")
        for engine, devices in (("blockwise", 1), ("ring", 1), ("ring", 2), ("ring", 4))
    ),
    ("losses_B12_D16_N3_div1_tied_seed0.npz", "gather", 4),
]
GOLDEN_OBJECTIVES = {
    "uni__same_tower_with_neg": "uni(P,I,IQ,QQ,PP)",
    "multi__no_trick_with_neg": "multi(P,I,IQ)",
    "uni__qk": "uni(P)",
}


@pytest.mark.parametrize(("file", "engine", "devices"), GOLDEN_CASES)
def test_goldens(file, engine, devices):
    """The paper's own functions, in float32; 5 columns a tile: no batch divides evenly."""
    golden = np.load(GOLDEN / file)
    b, width = golden["query"].shape
    arrays = {
        "queries": golden["query"].astype(np.float32),
        "passages": golden["key"].reshape(b, -1, width).astype(np.float32),
        "instruction_negatives": golden["neg_query"][:, 1:].astype(np.float32),
    }
    options = {"mask": "faithful", "engine": engine, "mesh": mesh_of(devices), "tile": (4, 5)}
    for name, objective in GOLDEN_OBJECTIVES.items():
        scale = float(golden["scale"])
        (loss, _), (grads, _, _) = value_and_grad(arrays, objective, scale=scale, **options)
        query = golden[f"{name}__grad_query"]
        if "_neg" in name:
            negatives = golden[f"{name}__grad_neg_query"]
            query = query + negatives[:, 0]
            assert_close(grads["instruction_negatives"], negatives[:, 1:])
        assert_close(loss, golden[f"{name}__loss"])
        assert_close(grads["queries"], query)
        passages = np.asarray(grads["passages"]).reshape(golden["key"].shape)
        assert_close(passages, golden[f"{name}__grad_key"])


@pytest.mark.parametrize(("engine", "devices"), [("blockwise", 1), ("ring", 4)])
def test_order_of_the_batch_does_not_matter(engine, devices):
    arrays = make(1, b=24, h=1)
    order = np.random.default_rng(1).permutation(24)
    moved = jax.tree.map(lambda x: x[order], arrays)
    options = {"engine": engine, "mesh": mesh_of(devices), "tile": (4, 8)}
    value, grads = value_and_grad(arrays, f"uni({ALL})", **options)
    again, moved_grads = value_and_grad(moved, f"uni({ALL})", **options)
    assert_close(again, value)
    assert_close(moved_grads[0], jax.tree.map(lambda x: x[order], grads[0]))


def test_duplicates_of_one_pair_are_masked_in_every_tile():
    arrays = make(0, b=1, h=0, m=1)
    arrays = jax.tree.map(lambda x: np.repeat(x, 20, 0), arrays)
    arrays["valid"][:] = True
    options = {"engine": "ring", "mesh": mesh_of(4), "tile": (2, 2)}
    (loss, metrics), grads = value_and_grad(arrays, "uni(P,IQ,QQ,PP)", **options)
    assert loss == 0 and metrics["negatives/P"] == 0 and metrics["masked/IQ"] == 1
    assert not any(np.any(x) for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("objective", ["multi(P,IQ)", "uni(P,PP)"])
@pytest.mark.parametrize("engine", ["blockwise", "ring"])
def test_logits_of_a_thousand(engine, objective):
    arrays = make(4, b=16)
    devices = 8 if engine == "ring" else 1
    options = {"engine": engine, "mesh": mesh_of(devices), "tile": (4, 4)}
    found = value_and_grad(arrays, objective, scale=1000.0, **options)
    expected = value_and_grad(arrays, objective, scale=1000.0, engine="dense")
    assert found[0][0] > 100
    assert_close(found[0], expected[0])
    assert_close(found[1][0], expected[1][0], 1e-3)  # of logits of a thousand, rounded


def test_bf16_tiles_accumulate_in_float32():
    """The same as embeddings rounded beforehand, whose products are exact in float32."""
    arrays = make(5, b=64, e=32)
    options = {"engine": "ring", "mesh": mesh_of(8), "tile": (4, 8)}
    (loss, _), (grads, _, _) = value_and_grad(
        arrays, "multi(P,IQ)", tile_dtype="bfloat16", **options
    )
    names = ("queries", "passages", "instruction_negatives")
    rounded = {n: jnp.asarray(arrays[n], jnp.bfloat16).astype(jnp.float32) for n in names}
    exact, exact_grads = value_and_grad(arrays | rounded, "multi(P,IQ)", engine="dense")
    assert_close(loss, exact[0])
    assert grads["queries"].dtype == jnp.float32
    assert_close(grads, exact_grads[0], 0.02)


def temp_bytes(engine, b, *, devices, e=768, objective="multi(P,IQ)"):
    """Temporary memory of loss and gradient, bytes a device, as compiled."""
    mesh = mesh_of(devices)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
    array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)  # noqa: E731
    hashes = TextIds(*(array(jnp.uint32, b, 2) for _ in range(3)))

    def loss(queries, passages, ids):
        return contrastive_loss(
            queries, passages, ids=ids, objective=objective, scale=20.0, engine=engine, mesh=mesh
        )

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    texts = array(jnp.float32, b, e)
    return run.lower(texts, texts, hashes).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_linear_in_the_batch():
    dense = temp_bytes("dense", 65_536, devices=1)
    ring = {b: temp_bytes("ring", b, devices=8) for b in (16_384, 32_768, 65_536)}
    assert dense > 65_536**2 * 4
    assert ring[65_536] * 200 <= dense
    assert ring[65_536] <= 2.1 * ring[32_768] and ring[32_768] <= 2.1 * ring[16_384]
    for objective in ("multi(P,IQ)", "uni(P)", "uni(P,QQ,PP)"):
        options = {"devices": 1, "objective": objective}
        blockwise = [temp_bytes("blockwise", b, **options) for b in (16_384, 65_536)]
        assert blockwise[1] <= 4.2 * blockwise[0]


def test_auto_keeps_small_batches_dense_and_large_ones_in_tiles():
    small, large = (temp_bytes("auto", b, devices=8, e=16) for b in (256, 65_536))
    assert small < 2**22 and large < 65_536**2 // 64  # 1/8 of a bit a score


@pytest.mark.parametrize(
    ("b", "devices", "hops"),
    [(2048, 1, False), (2048, 8, False), (5792, 8, False), (5800, 8, True)],
)
def test_auto_counts_the_scores_of_a_device(b, devices, hops):
    """Up to 2^22 of them there is no ring: each of its hops would cost more than it saves."""
    options = {"objective": "uni(P)", "scale": 20.0, "mask": "faithful"}
    texts = jax.ShapeDtypeStruct((b, 8), jnp.float32)
    run = functools.partial(contrastive_loss, mesh=mesh_of(devices), **options)
    assert ("ppermute" in str(jax.make_jaxpr(run)(texts, texts))) is hops


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": "fast"}, "engine='fast'; choose one of auto, dense"),
        ({"engine": "ring"}, "needs the mesh"),
        ({"engine": "blockwise", "mesh": mesh_of(2)}, "for one device, the mesh has 2"),
        (
            {"engine": "ring", "mesh": jax.make_mesh((2,), ("data",), (AxisType.Explicit,))},
            "use a mesh whose axis_types are Auto",
        ),
        ({"engine": "blockwise", "tile": (0, 8)}, "both above 0"),
        ({"engine": "dense", "tile_dtype": "int8"}, "tile_dtype='int8'"),
    ],
)
def test_bad_input(change, message):
    arrays = make(0, b=8)
    with pytest.raises(UserError, match=message):
        contrastive_loss(**arrays, objective=f"uni({ALL})", scale=20.0, **change)
