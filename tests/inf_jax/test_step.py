"""The step: the same loss and gradients on every mesh, chunking, packing and sharding."""

import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inf_jax.config.sections import LossConfig, OptimConfig
from inf_jax.core import packing
from inf_jax.core.batch import Batch, TextIds
from inf_jax.core.errors import UserError
from inf_jax.core.trees import flatten
from inf_jax.data.loader import to_mesh
from inf_jax.distributed.mesh import make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.losses import contrastive_loss
from inf_jax.losses.objective import parse_objective
from inf_jax.models import hf
from inf_jax.models.encoder import EncoderOptions, make_encoder
from inf_jax.models.hf.config import read_config
from inf_jax.training.forward import EncodingPlan, encode_pairs
from inf_jax.training.optim import decay_mask, make_optimizer, make_schedule
from inf_jax.training.step import TrainState, init_coefficients, init_params, make_train_step

GOLDEN = Path(__file__).parents[1] / "golden" / "models" / "bert"
ROW, PLACES = 32, 6


@pytest.fixture(scope="module")
def weights():
    return hf.load_weights(GOLDEN, read_config(GOLDEN)).params


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
    assigned = padded[packing.assign_to_chunks(lengths[padded], chunks)]
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


def make_step(*, mesh, groups=1, dropout=0.0, engine="auto", gather="auto", **options):
    """SGD of rate 1, so that the step leaves params - grads."""
    tx = optax.apply_if_finite(optax.sgd(1.0), 5)
    step = make_train_step(
        EncodingPlan(encoder(dropout, **options).encode, groups=groups, mesh=mesh, gather=gather),
        LossConfig(objective="multi(P,IQ)", scale=20.0, engine=engine),
        tx,
        tile=(4, 4),
        dropout_key=jax.random.key(3) if dropout else None,
    )
    return tx, step


def loss_and_grads(weights, batch, *, mesh, towers="shared", **how):
    """Loss and gradients through the step itself."""
    tx, step = make_step(mesh=mesh, **how)
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


def assert_same(found, expected, tolerance=1e-5):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=1e-4)


@pytest.fixture(scope="module")
def reference(weights):
    batch = make_batch(make_pairs(22), chunks=1)
    return loss_and_grads(weights, batch, mesh=make_mesh(devices=jax.devices()[:1]))


@pytest.mark.parametrize(
    ("mesh", "groups", "engine", "how"),
    [
        ((1, 1, 1), 2, "dense", {}),
        ((1, 1, 1), 8, "blockwise", {}),
        ((2, 1, 1), 1, "ring", {}),
        ((1, 2, 1), 8, "gather", {}),
        ((2, 2, 1), 2, "ring", {}),
        ((8, 1, 1), 1, "ring", {}),
        ((2, 4, 1), 2, "ring", {"gather": "layer", "remat": "dots"}),
        ((8, 1, 1), 2, "dense", {}),
        ((1, 8, 1), 1, "dense", {"remat": "full"}),
        ((2, 2, 1), 1, "ring", {"scan_layers": False}),
        ((2, 1, 2), 2, "ring", {}),
        ((2, 2, 2), 1, "gather", {"remat": "full", "gather": "step"}),
        ((1, 2, 4), 2, "ring", {"gather": "layer"}),
    ],
)
def test_any_mesh_and_chunking_gives_the_same_gradients(
    weights, reference, mesh, groups, engine, how
):
    # 22 pairs divide among none of these chunk numbers but 2: empty slots take part
    data, fsdp, tensor = mesh
    batch = make_batch(make_pairs(22), chunks=data * fsdp * groups)
    mesh = make_mesh(fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor])
    found = loss_and_grads(weights, batch, mesh=mesh, groups=groups, engine=engine, **how)
    assert_same(found, reference)


def test_separate_towers_start_equal_and_split_the_gradient(weights, reference):
    mesh = make_mesh(devices=jax.devices()[:2])
    batch = make_batch(make_pairs(22), chunks=2, towers="separate")
    loss, grads = loss_and_grads(weights, batch, mesh=mesh, towers="separate")
    total = jax.tree.map(np.add, grads["query"], grads["passage"])
    assert_same((loss, total), (reference[0], reference[1]["shared"]))
    assert np.abs(grads["query"]["word"]).max() > 0
    assert np.abs(grads["query"]["word"] - grads["passage"]["word"]).max() > 1e-3


def test_dropout_is_the_same_on_any_mesh_and_chunking(weights, reference):
    one = make_mesh(devices=jax.devices()[:1])
    plain = make_batch(make_pairs(22), chunks=1)
    expected = loss_and_grads(weights, plain, mesh=one, dropout=0.1)
    assert expected[0] != pytest.approx(reference[0], rel=1e-3)  # dropout is on
    chunked = make_batch(make_pairs(22), chunks=8)
    found = loss_and_grads(weights, chunked, mesh=make_mesh(fsdp=2), dropout=0.1)
    assert_same(found, expected)
    found = loss_and_grads(weights, chunked, mesh=one, groups=8, dropout=0.1)
    assert_same(found, expected)
    four = make_mesh(fsdp=2, devices=jax.devices()[:4])
    found = loss_and_grads(weights, chunked, mesh=four, groups=2, dropout=0.1, engine="ring")
    assert_same(found, expected)
    found = loss_and_grads(weights, chunked, mesh=make_mesh(tensor=2), groups=2, dropout=0.1)
    assert_same(found, expected)


def collectives(hlo):
    """(kind, elements, inside a loop) of each collective in a compiled program's text."""
    computations, name = {}, None
    for line in hlo.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        name = head.group(1) if head else name
        computations.setdefault(name, []).append(line)
    called = {
        n: set(re.findall(r"(?:calls|body|to_apply)=%?([\w.\-]+)", "\n".join(lines)))
        for n, lines in computations.items()
    }
    inside = set(re.findall(r"body=%?([\w.\-]+)", hlo))
    while more := {c for n in inside for c in called.get(n, ())} - inside:
        inside |= more
    found = []
    for name, lines in computations.items():
        for line in lines:
            kind = re.search(r" = (.*) (all-reduce|reduce-scatter|all-gather|all-to-all)\(", line)
            if kind:
                shapes = re.findall(r"\w+\[([\d,]*)\]", kind.group(1))
                size = sum(math.prod(int(d) for d in s.split(",") if d) for s in shapes)
                found.append((kind.group(2), size, name in inside))
    return found


@pytest.mark.parametrize("fsdp", [1, 4])
def test_gradcache_reduces_the_gradients_once_a_step(weights, fsdp):
    """Counted in the compiled program: nothing crosses the mesh while chunks are encoded."""
    mesh = make_mesh(fsdp=fsdp)
    tx, step = make_step(mesh=mesh, groups=4, engine="ring")
    params = init_params(weights, "shared")
    state = TrainState(jnp.int32(0), params, tx.init(params))
    shardings = state_shardings(mesh, jax.eval_shape(lambda: state))
    batch = to_mesh(mesh)(make_batch(make_pairs(64), chunks=32))
    program = jax.jit(step, out_shardings=(shardings, None))
    found = collectives(program.lower(jax.device_put(state, shardings), batch).compile().as_text())
    assert not [c for c in found if c[2]]
    reduced = sum(size for kind, size, _ in found if kind == "all-reduce")
    whole = sum(x.size for x in jax.tree.leaves(params))
    whole -= params["shared"]["blocks"]["key_bias"].size  # has no gradient
    if fsdp == 1:
        assert whole <= reduced <= 1.05 * whole  # the gradients, and sums of the loss
    else:
        scattered = sum(size for kind, size, _ in found if kind == "reduce-scatter")
        assert scattered + reduced <= 1.2 * whole


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_fsdp_gathers_a_layer_where_it_is_needed(weights, remat, scan_layers):
    """Counted in the traced program: forward and again backward, never two layers in one array."""
    mesh = make_mesh(fsdp=4)
    model = encoder(remat=remat, scan_layers=scan_layers, dtype="bfloat16")
    batch = make_batch(make_pairs(16), chunks=8)

    def loss(params):
        found = encode_pairs(EncodingPlan(model.encode, mesh=mesh), params, batch)
        return jnp.sum(found.queries * found.passages)

    params = init_params(weights, "shared")
    found = list(primitives(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    times = 1 if scan_layers else weights["blocks"]["up_kernel"].shape[0]
    kernels = {x.shape[1:] for name, x in weights["blocks"].items() if name.endswith("kernel")}
    gathered = [e.outvars[0].aval for e in found if e.primitive.name == "all_gather"]
    of_layers = [x for x in gathered if x.dtype == jnp.bfloat16]
    assert {x.shape for x in of_layers} == kernels
    assert len(of_layers) == 2 * 6 * times
    assert len(gathered) - len(of_layers) == 3  # the tables, which backward does not need
    scattered = [e.invars[0].aval for e in found if e.primitive.name == "reduce_scatter"]
    assert len(scattered) == 6 * times + 3
    assert {x.dtype for x in scattered} == {jnp.dtype("float32")}


def primitives(jaxpr):
    """All equations, those inside others too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if inner := getattr(value, "jaxpr", value if hasattr(value, "eqns") else None):
                yield from primitives(inner)


def test_fsdp_moves_weights_and_no_activations(weights):
    """In the compiled program: gathers and scatters in the loops, one sum over the copies."""
    mesh = make_mesh(fsdp=4)
    tx, step = make_step(mesh=mesh, engine="ring")
    params = init_params(weights, "shared")
    state = TrainState(jnp.int32(0), params, tx.init(params))
    shardings = state_shardings(mesh, jax.eval_shape(lambda: state))
    batch = to_mesh(mesh)(make_batch(make_pairs(256), chunks=8))
    program = jax.jit(step, out_shardings=(shardings, None))
    found = collectives(program.lower(jax.device_put(state, shardings), batch).compile().as_text())
    blocks = weights["blocks"]
    layer = sum(x.size // x.shape[0] for name, x in blocks.items() if name.endswith("kernel"))
    sizes = {kind: [0, 0] for kind in ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")}
    for kind, size, inside in found:
        sizes[kind][inside] += size
    assert sizes["all-gather"][True] == 2 * layer  # by the loop forward, and by that backward
    assert sizes["reduce-scatter"][True] == layer // 4  # counted by its result
    assert sizes["all-reduce"][True] == sizes["all-to-all"][True] == 0
    whole = sum(x.size for x in jax.tree.leaves(params))
    assert sizes["all-reduce"][False] < 1.3 * whole / 4


def test_the_scale_is_learned_and_stops(weights):
    tx = optax.apply_if_finite(optax.sgd(1.0), 5)
    params = init_params(weights, "shared")
    batch = make_batch(make_pairs(8), chunks=1)
    objective = parse_objective("sigmoid(P)")

    def run(max_scale):
        loss = LossConfig(objective="sigmoid(P)", scale=1.0, bias=0.0, max_scale=max_scale)
        step = make_train_step(EncodingPlan(encoder().encode), loss, tx)
        learned = params | {"loss": init_coefficients(10.0, -5.0, sigmoid=True)}
        return jax.jit(step)(TrainState(jnp.int32(0), learned, tx.init(learned)), batch)

    found = encode_pairs(EncodingPlan(encoder().encode), params, batch)

    def loss(log_scale, bias):
        return contrastive_loss(
            found.queries,
            found.passages,
            objective=objective,
            scale=jnp.exp(log_scale),
            bias=bias,
            ids=batch.ids,
            valid=batch.valid,
        )[0]

    log_scale, bias = np.float32(np.log(10.0)), np.float32(-5.0)
    slopes = jax.grad(loss, (0, 1))(log_scale, bias)
    state, metrics = run(100.0)
    np.testing.assert_allclose(metrics["scale"], 10.0, rtol=1e-6)
    assert metrics["bias"] == -5.0
    after = state.params["loss"]
    np.testing.assert_allclose(after["log_scale"], log_scale - slopes[0], rtol=1e-4)
    np.testing.assert_allclose(after["bias"], bias - slopes[1], rtol=1e-4)
    low = float(np.exp(after["log_scale"])) / 2
    np.testing.assert_allclose(run(low)[0].params["loss"]["log_scale"], np.log(low), rtol=1e-6)


def test_gradcache_keeps_less_memory_than_all_at_once(weights):
    batch = make_batch(make_pairs(256), chunks=16)

    def temp(groups):
        def loss(params, batch):
            found = encode_pairs(EncodingPlan(encoder().encode, groups=groups), params, batch)
            return jnp.sum(found.queries * found.passages)

        compiled = jax.jit(jax.grad(loss)).lower({"shared": weights}, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temp(16) < temp(1) / 4


def test_nonfinite_gradients_change_nothing_and_are_counted(weights):
    optim = OptimConfig(lr=0.1, schedule="constant", weight_decay=0.1, b2=0.99)
    tx = make_optimizer(optim, make_schedule(optim, steps=10))
    loss = LossConfig(objective="uni(P)", scale=20.0)
    step = jax.jit(make_train_step(EncodingPlan(encoder().encode), loss, tx))
    broken = jax.tree.map(jnp.asarray, weights) | {"position": jnp.full((64, 32), jnp.nan)}
    batch = make_batch(make_pairs(6), chunks=1)
    state = TrainState(jnp.int32(0), {"shared": broken}, tx.init({"shared": broken}))
    for i in (1, 2):
        before = state.params
        state, metrics = step(state, batch)
        assert metrics["skipped_in_a_row"] == i
        assert metrics["skipped_total"] == i
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_array_equal(a, b)
    healed = state._replace(params={"shared": jax.tree.map(jnp.asarray, weights)})
    state, metrics = step(healed, batch)
    assert metrics["skipped_in_a_row"] == 0
    assert metrics["skipped_total"] == 2
    assert np.abs(state.params["shared"]["word"] - weights["word"]).max() > 0


def test_schedules_against_hand_values():
    for name, middle in {"linear": 0.5, "cosine": 0.5, "constant": 1.0}.items():
        s = make_schedule(OptimConfig(lr=1.0, warmup_steps=10, schedule=name), steps=110)
        assert s(0) == 0
        assert s(5) == pytest.approx(0.5)
        assert s(10) == pytest.approx(1.0)
        assert s(60) == pytest.approx(middle)
        assert s(110) == pytest.approx(1.0 if name == "constant" else 0.0, abs=1e-6)
    for name in ("linear", "cosine"):
        s = make_schedule(OptimConfig(lr=2.0, schedule=name, final_ratio=0.25), steps=100)
        assert s(50) == pytest.approx(1.25)
        assert s(100) == pytest.approx(0.5)


def test_decay_spares_biases_and_norms(weights):
    mask = flatten(decay_mask(weights))
    assert {name for name, decays in mask.items() if not decays} == {
        name for name in mask if name.endswith(("bias", "scale"))
    }
    assert sum(mask.values()) == 9  # three tables, six kernels


def test_sharding_rules_refuse_strangers_and_odd_sizes(weights):
    with pytest.raises(UserError, match="no sharding rule for mystery"):
        state_shardings(make_mesh(), {"mystery": jnp.zeros((3, 3))})
    with pytest.raises(UserError, match="no multiple of fsdp"):
        state_shardings(make_mesh(fsdp=8), {"word": jnp.zeros((16, 12))})
