"""The compiled step: what it communicates and what it keeps in memory."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from inf_jax.data.loader import to_mesh
from inf_jax.distributed.mesh import make_mesh
from inf_jax.distributed.sharding import state_shardings
from inf_jax.training.forward import EncodingPlan, encode_pairs
from inf_jax.training.step import TrainState
from tests.inf_jax.training.steps import encoder, init_params, make_batch, make_pairs, make_step


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
    operations = []
    for name, lines in computations.items():
        for line in lines:
            kind = re.search(r" = (.*) (all-reduce|reduce-scatter|all-gather|all-to-all)\(", line)
            if kind:
                shapes = re.findall(r"\w+\[([\d,]*)\]", kind.group(1))
                size = sum(math.prod(int(d) for d in s.split(",") if d) for s in shapes)
                operations.append((kind.group(2), size, name in inside))
    return operations


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
    operations = collectives(
        program.lower(jax.device_put(state, shardings), batch).compile().as_text()
    )
    assert not [c for c in operations if c[2]]
    reduced = sum(size for kind, size, _ in operations if kind == "all-reduce")
    whole = sum(x.size for x in jax.tree.leaves(params))
    whole -= params["shared"]["blocks"]["key_bias"].size  # has no gradient
    if fsdp == 1:
        assert whole <= reduced <= 1.05 * whole  # the gradients, and sums of the loss
    else:
        scattered = sum(size for kind, size, _ in operations if kind == "reduce-scatter")
        assert scattered + reduced <= 1.2 * whole


@pytest.mark.parametrize("remat", ["none", "dots", "ffn", "full"])
@pytest.mark.parametrize("scan_layers", [True, False])
def test_fsdp_gathers_a_layer_where_it_is_needed(weights, remat, scan_layers):
    """Counted in the traced program: forward and again backward, never two layers in one array."""
    mesh = make_mesh(fsdp=4)
    model = encoder(remat=remat, scan_layers=scan_layers, dtype="bfloat16")
    batch = make_batch(make_pairs(16), chunks=8)

    def loss(params):
        embeddings = encode_pairs(EncodingPlan(model.encode, mesh=mesh), params, batch)
        return jnp.sum(embeddings.queries * embeddings.passages)

    params = init_params(weights, "shared")
    equations = list(primitives(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
    times = 1 if scan_layers else weights["blocks"]["up_kernel"].shape[0]
    kernels = {x.shape[1:] for name, x in weights["blocks"].items() if name.endswith("kernel")}
    gathered = [e.outvars[0].aval for e in equations if e.primitive.name == "all_gather"]
    of_layers = [x for x in gathered if x.dtype == jnp.bfloat16]
    assert {x.shape for x in of_layers} == kernels
    assert len(of_layers) == 2 * 6 * times
    assert len(gathered) - len(of_layers) == 3  # the tables, which backward does not need
    scattered = [e.invars[0].aval for e in equations if e.primitive.name == "reduce_scatter"]
    assert len(scattered) == 6 * times + 3
    assert {x.dtype for x in scattered} == {jnp.dtype("float32")}


@pytest.mark.parametrize("groups", [1, 4])
def test_a_step_gathers_each_matrix_once_in_the_compute_dtype(weights, groups):
    """Counted in the traced program; gradients are summed, and scattered, in float32."""
    mesh = make_mesh(fsdp=4)
    options = {"dtype": "bfloat16", "scan_layers": False}
    tx, step = make_step(mesh=mesh, groups=groups, engine="ring", gather="step", **options)
    params = init_params(weights, "shared")
    state = TrainState(jnp.int32(0), params, tx.init(params))
    traced = jax.make_jaxpr(step)(state, make_batch(make_pairs(64), chunks=8 * groups)).jaxpr
    equations = list(primitives(traced))
    results = [e.outvars[0].aval for e in equations if e.primitive.name == "all_gather"]
    matrices = [x for x in results if x.dtype == jnp.bfloat16]
    kernels = {x.shape for name, x in weights["blocks"].items() if name.endswith("kernel")}
    assert {x.shape for x in matrices} == kernels
    assert len(matrices) == 6
    scattered = [e.invars[0].aval for e in equations if e.primitive.name == "reduce_scatter"]
    layers = weights["blocks"]["up_kernel"].shape[0] if groups > 1 else 1  # or stacked
    assert len(scattered) == 6 * layers + 3
    assert {x.dtype for x in scattered} == {jnp.dtype("float32")}
    carried = [x.aval for e in equations if e.primitive.name == "scan" for x in e.outvars]
    summed = {x.dtype for x in carried if x.shape in {shape[1:] for shape in kernels}}
    assert summed == ({jnp.dtype("float32")} if groups > 1 else set())


def primitives(jaxpr):
    """All equations, those inside others too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if inner := getattr(value, "jaxpr", value if hasattr(value, "eqns") else None):
                yield from primitives(inner)


@pytest.mark.parametrize("engine", ["ring", "gather", "dense"])
def test_no_array_without_elements_inside_shard_map(weights, engine):
    """jaxlib 0.11 compiles none there: XLA drops it, after which Shardy ends the process.

    `x.at[:].add(y)` has one, the indices of its scatter.
    """
    mesh = make_mesh(fsdp=2, tensor=2)
    tx, step = make_step(mesh=mesh, engine=engine, dropout=0.1, groups=2, gather="layer")
    params = init_params(weights, "shared")
    state = TrainState(jnp.int32(0), params, tx.init(params))
    traced = jax.make_jaxpr(step)(state, make_batch(make_pairs(22), chunks=8)).jaxpr
    maps = [e for e in primitives(traced) if e.primitive.name == "shard_map"]
    assert len(maps) >= (2 if engine == "dense" else 4)
    inside = [e for m in maps for e in primitives(m.params["jaxpr"])]
    assert not [e for e in inside if any(0 in x.aval.shape for x in e.invars)]


def test_fsdp_moves_weights_and_no_activations(weights):
    """In the compiled program: gathers and scatters in the loops, one sum over the copies."""
    mesh = make_mesh(fsdp=4)
    tx, step = make_step(mesh=mesh, engine="ring")
    params = init_params(weights, "shared")
    state = TrainState(jnp.int32(0), params, tx.init(params))
    shardings = state_shardings(mesh, jax.eval_shape(lambda: state))
    batch = to_mesh(mesh)(make_batch(make_pairs(256), chunks=8))
    program = jax.jit(step, out_shardings=(shardings, None))
    operations = collectives(
        program.lower(jax.device_put(state, shardings), batch).compile().as_text()
    )
    blocks = weights["blocks"]
    layer = sum(x.size // x.shape[0] for name, x in blocks.items() if name.endswith("kernel"))
    sizes = {kind: [0, 0] for kind in ("all-gather", "reduce-scatter", "all-reduce", "all-to-all")}
    for kind, size, inside in operations:
        sizes[kind][inside] += size
    assert sizes["all-gather"][True] == 2 * layer  # by the loop forward, and by that backward
    assert sizes["reduce-scatter"][True] == layer // 4  # counted by its result
    assert sizes["all-reduce"][True] == sizes["all-to-all"][True] == 0
    whole = sum(x.size for x in jax.tree.leaves(params))
    assert sizes["all-reduce"][False] < 1.3 * whole / 4


def test_gradcache_keeps_less_memory_than_all_at_once(weights):
    batch = make_batch(make_pairs(256), chunks=16)

    def temp(groups):
        def loss(params, batch):
            embeddings = encode_pairs(EncodingPlan(encoder().encode, groups=groups), params, batch)
            return jnp.sum(embeddings.queries * embeddings.passages)

        compiled = jax.jit(jax.grad(loss)).lower({"shared": weights}, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temp(16) < temp(1) / 4
