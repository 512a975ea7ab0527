"""launch/bench.py loss: contenders agree and are reported; the reader of schedules; FLOPs."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
COMMAND = [sys.executable, LAUNCH / "bench.py", "loss"]

# As the compiler prints it, less layouts: one loop of 256 turns with permutes and an async
# collective fusion, an all-reduce that waits.
SCHEDULE = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[8,8]{1,0}}

%products (param_0: f32[8,4], param_1: f32[8,4]) -> f32[8,8] {
  %param_0 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %param_1 = f32[8,4]{1,0:T(8,128)} parameter(1)
  ROOT %convolution.1 = f32[8,8]{1,0:T(8,128)} convolution(%param_0, %param_1), dim_labels=bf_oi->bf
}

%begins (param_0.1: bf16[4,4]) -> (bf16[16,4], u32[]) {
  %param_0.1 = bf16[4,4]{1,0} parameter(0)
  %all-gather.1 = bf16[16,4]{1,0:T(8,128)(2,1)} all-gather(%param_0.1), channel_id=3, dimensions={0}
  ROOT %custom-call.1 = (bf16[16,4]{1,0}, u32[]{:S(2)}) custom-call(%param_0.1, %all-gather.1), \
custom_call_target="AsyncCollectiveStart"
}

%ends (param_0.2: bf16[4,4]) -> bf16[16,4] {
  %param_0.2 = bf16[4,4]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,4]{1,0} all-gather(%param_0.2), channel_id=3, dimensions={0}
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%body (arg: (s32[], f32[8,4], f32[8,4])) -> (s32[], f32[8,4], f32[8,4]) {
  %arg = (s32[]{:T(128)}, f32[8,4]{1,0}, /*index=2*/f32[8,4]{1,0}) parameter(0)
  %mine = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  %theirs = f32[8,4]{1,0} get-tuple-element(%arg), index=2
  %collective-permute-start = (f32[8,4]{1,0}, f32[8,4]{1,0}, u32[]{:S(2)}) \
collective-permute-start(%theirs), channel_id=1, source_target_pairs={{0,1},{1,0}}
  %tile = f32[8,8]{1,0} fusion(%mine, %theirs), kind=kOutput, calls=%products
  %collective-permute-done = f32[8,4]{1,0} collective-permute-done(%collective-permute-start)
  %ppermute.2 = f32[8]{0} collective-permute(%small), channel_id=2, source_target_pairs={}
  %turn = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %tuple.1 = (s32[], f32[8,4], f32[8,4]) tuple(%turn, %mine, %collective-permute-done)
}

%condition (arg.1: (s32[], f32[8,4], f32[8,4])) -> pred[] {
  %arg.1 = (s32[], f32[8,4]{1,0}, f32[8,4]{1,0}) parameter(0)
  %turns = s32[]{:T(128)} constant(256)
  %turn.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%turn.1, %turns), direction=LT
}

ENTRY %main (q: f32[8,4], p: bf16[4,4]) -> f32[8,8] {
  %q = f32[8,4]{1,0} parameter(0)
  %p = bf16[4,4]{1,0} parameter(1)
  %async-collective-start = (bf16[16,4]{1,0}, u32[]{:S(2)}) fusion(%p), kind=kCustom, calls=%begins
  %between = f32[8,8]{1,0} fusion(%q, %q), kind=kOutput, calls=%products
  %async-collective-done = bf16[16,4]{1,0} fusion(%p), kind=kCustom, calls=%ends
  %start = (s32[], f32[8,4]{1,0}, f32[8,4]{1,0}) tuple(%zero, %q, %q)
  %while.1 = (s32[], f32[8,4]{1,0}, f32[8,4]{1,0}) while(%start), condition=%condition, body=%body
  %early = (f32[8,8]{1,0}, f32[8,8]{1,0}) all-reduce-start(%between), channel_id=5, to_apply=%add
  %late = f32[8,8]{1,0} all-reduce-done(%early)
  ROOT %all-reduce.7 = f32[8,8]{1,0} all-reduce(%late), channel_id=6, to_apply=%add
}
"""


@pytest.fixture
def launch(monkeypatch):
    monkeypatch.syspath_prepend(str(LAUNCH))


def test_schedule(launch):
    from inf_jax.planning.hlo import Collective, collectives

    expected = [
        Collective("all-gather", 1, 128, waits=False, beside=True),
        Collective("collective-permute", 256, 128, waits=False, beside=True),
        Collective("collective-permute", 256, 32, waits=True, beside=False),
        Collective("all-reduce", 1, 256, waits=False, beside=False),  # nothing in between
        Collective("all-reduce", 1, 256, waits=True, beside=False),
    ]
    assert collectives(SCHEDULE) == expected
    # any work on larger arrays will do, on smaller ones not
    vectors = SCHEDULE.replace("convolution(", "add(")
    assert collectives(vectors) == expected
    small = collectives(vectors.replace("f32[8,8]", "f32[4,4]"))
    assert [c.beside for c in small] == [False] * 5
    # the product moved past the end of the permute: nothing runs beside it any more
    lines = SCHEDULE.splitlines(keepends=True)
    tile = next(line for line in lines if line.startswith("  %tile"))
    lines.remove(tile)
    lines.insert(next(i for i, line in enumerate(lines) if "%ppermute.2" in line), tile)
    expected[1] = Collective("collective-permute", 256, 128, waits=False, beside=False)
    assert collectives("".join(lines)) == expected
    with pytest.raises(ValueError, match="no ENTRY"):
        collectives("HloModule nothing")


def test_schedule_of_this_compiler(launch):
    """The reader takes what the compiler prints here: a ring of 8 in a loop of 5 turns."""
    from inf_jax.planning.hlo import collectives

    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    ring = [(i, (i + 1) % 8) for i in range(8)]

    def local(x):
        def turn(y, _):
            return jax.lax.ppermute(y, "d", ring) @ jnp.eye(4), None

        return jax.lax.psum(jax.lax.scan(turn, x, None, length=5)[0], "d")

    spec = jax.sharding.PartitionSpec("d")
    step = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((16, 4), jnp.float32)
    found = collectives(jax.jit(step).lower(x).compile().as_text())
    assert [(c.kind, c.times, c.size) for c in found] == [
        ("collective-permute", 5, 32),
        ("all-reduce", 1, 32),
    ]


def test_product_flops(launch):
    from inf_jax.planning.flops import product_flops

    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")

    def local(x):  # float32[2, 4] on a device
        return jax.lax.fori_loop(0, 3, lambda _, y: y @ jnp.ones((4, 4)), x)

    def step(x):
        y = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(x)
        return y @ y.T

    found = product_flops(jax.make_jaxpr(step)(jnp.ones((16, 4))).jaxpr, devices=8)
    assert found == 3 * 2 * (2 * 4 * 4) + 2 * (16 * 4 * 16) / 8


def test_ring_costs_four_products_a_tile(launch):
    """Scores, the scores again, and two gradients; the dense engine three for each block."""
    from inf_jax.distributed.mesh import make_mesh
    from inf_jax.losses import contrastive_loss
    from inf_jax.planning.flops import product_flops

    x = jax.ShapeDtypeStruct((256, 16), jnp.float32)
    mesh = make_mesh()

    def flops(engine: str) -> float:
        def loss(q, p):
            options = {"engine": engine, "mesh": mesh, "tile": (16, 16), "mask": "faithful"}
            return contrastive_loss(q, p, objective="multi(P,IQ)", scale=20.0, **options)[0]

        step = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, x)
        return product_flops(step.jaxpr, devices=mesh.size)

    product = 2 * 256 * 256 * 16 / mesh.size
    assert flops("ring") == 4 * product
    assert flops("dense") == 6 * product


def test_disagreement_ends_the_run(launch):
    from bench_loss import agree

    agree({"torch": {"loss": 1.0}, "one-dense": {"loss": 1.00009}}, "here")
    with pytest.raises(
        SystemExit, match=r"here: loss is 1\.0002 in inf_jax dense, 1\.0 in PyTorch"
    ):
        agree({"torch": {"loss": 1.0}, "one-dense": {"loss": 1.0002}}, "here")
    with pytest.raises(SystemExit, match="nan"):
        agree({"torch": {"loss": 1.0}, "one-dense": {"loss": float("nan")}}, "here")


def test_picture(launch, tmp_path):
    from bench_loss_report import draw

    cell = {"objective": "uni(P)", "batch": 64, "seconds": [1.0, 2.0], "peak": 2**20}
    names = ("torch", "cached-64", "cached-256", "one-blockwise")
    cells = [{"contender": name} | cell for name in names]
    cells += [{"objective": "uni(P)", "batch": 128, "contender": "torch", "skipped": "about 9 s"}]
    chip = {"topology": "v5e:16x16", "batch": 2**20, "variant": "plain"}
    data = {
        "cpu": cells,
        "aot": [
            chip | {"engine": "ring", "demand": 0},  # all of it on the chip
            chip | {"engine": "dense", "demand": 2**36, "limit": 2**34},
        ],
    }
    draw(tmp_path / "a.png", data)
    draw(tmp_path / "b.png", {"aot": data["aot"]})
    sizes = [(tmp_path / name).read_bytes()[:24] for name in ("a.png", "b.png")]
    heights = [int.from_bytes(head[20:24]) for head in sizes]
    assert all(head.startswith(b"\x89PNG") for head in sizes)
    assert heights[0] == 2 * heights[1]  # seconds and memory above the chip's memory


def test_command():
    pytest.importorskip("sentence_transformers")
    done = subprocess.run(
        [*COMMAND, "--batches=64,100,128", "--dim=16", "--rounds=1", "--full=100"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "agree within 0.0001" in done.stdout
    tables = done.stdout.split("\n\n")
    seconds = tables[tables.index("multi(P,IQ), seconds:") + 1]
    cells = {
        row.split("|")[1].strip(): [x.strip() for x in row.split("|")[2:5]]
        for row in seconds.splitlines()[2:]
    }
    assert all(float(x) > 0 for x in cells["PyTorch, dense"] + cells["inf_jax blockwise"])
    assert cells["inf_jax ring, 8 devices"][1] == "no multiple of 8"
    cached = [row[2] for name, row in cells.items() if name.startswith("sentence")]
    assert len(cached) == 3 and sum(x != "" for x in cached) == 1  # the fastest goes on
    second = tables[tables.index("uni(P), seconds:") + 1]
    assert "128" not in second.splitlines()[0]  # above --full the first objective only


def test_command_says_what_is_missing():
    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*COMMAND, *more], capture_output=True, text=True, check=False)

    done = run("--config.loss.scale=3")
    assert done.returncode == 1 and "no config" in done.stderr
    done = run("--objectives", "uni(QQ)")
    assert done.returncode == 2 and "uni(QQ)" in done.stderr


def test_what_a_refused_program_would_need(launch):
    from bench_loss_aot import _demand

    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (38.03G) exceeds available HBM (15.75G)."
    )
    assert _demand(message) == {"demand": 38.03 * 2**30, "limit": 15.75 * 2**30}
    with pytest.raises(SystemExit, match="INTERNAL"):
        _demand("INTERNAL: something else")
