"""inf_jax.plan: costs read from programs, the roofline, memory, and what is said of the unfit."""

import dataclasses
import importlib.util
import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax import plan
from inf_jax.config.checks import check
from inf_jax.config.defaults import defaults, run_config
from inf_jax.core.errors import UserError
from inf_jax.data.step_shapes import batch_shapes, plan_inputs
from inf_jax.distributed.mesh import batch_sharding, make_mesh
from inf_jax.losses.objective import parse_objective
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf.backbone import configured_encoder
from inf_jax.models.hf.config import config_from_hf, read_config
from inf_jax.planning import compile as planning
from inf_jax.planning.chips import CHIPS, Chip
from inf_jax.planning.flops import model_flops, product_flops
from inf_jax.planning.hlo import Collective, collectives
from inf_jax.planning.hlo_cost import Work, works
from inf_jax.planning.roofline import collective_seconds, predict
from inf_jax.planning.topology import parse, topology
from inf_jax.training.setup import make_program, make_training
from launch.bench import plan as bench_plan

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = {"query_tokens": 10, "passage_tokens": 20}
CHIP = Chip(
    libtpu="",
    flops=1e12,
    hbm=1e9,
    usable=1e9,
    hbm_rate=1e11,
    links=4,
    wraps=4,
    link_rate=1e10,
    dcn_rate=1e9,
    clock=0,
    source="made up",
)


# Chips and topologies.


def test_chips_are_plausible():
    for name, chip in CHIPS.items():
        assert name == "cpu" or chip.source.startswith("https://")
        rates = (chip.flops, chip.hbm_rate, chip.links * chip.link_rate, chip.dcn_rate)
        assert list(rates) == sorted(rates, reverse=True) and chip.dcn_rate > 0
        assert 0.9 * chip.hbm < chip.usable < 1.01 * chip.hbm
        # what makes a chip bound by its memory: 100 to 600 operations a byte on all TPUs
        assert name == "cpu" or 100 < chip.flops / chip.hbm_rate < 600
    assert "made up" in CHIPS["cpu"].source
    assert round(CHIPS["v4"].clock / 1e6) == 1049  # 1,050 MHz by the TPU v4 paper


def test_links_in_use():
    v5e = CHIPS["v5e"]
    assert v5e.rate((16, 16)) == 4 * 50e9  # two rings
    assert v5e.rate((4, 8)) == 2 * 50e9  # two lines: a chip at the end has one link of each
    assert v5e.rate((16, 1)) == 2 * 50e9
    assert CHIPS["v5p"].rate((4, 4, 8)) == 6 * 100e9
    half = CHIPS["tpu7x"].share(2)
    assert half.flops == CHIPS["tpu7x"].flops / 2 and half.rate((4, 4, 4)) == 6 * 50e9


def test_topologies():
    assert parse("v5p:8x8x8") == ("v5p", (8, 8, 8))
    for wrong in ("v5e", "v5e:", "h100:8", "v5e:16x"):
        with pytest.raises(UserError, match="write CHIP:AxB"):
            parse(wrong)
    target = topology("cpu:2x2", slices=2)
    assert (target.chips, len(target.devices), target.device) == (8, 8, CHIPS["cpu"])
    with pytest.raises(UserError, match="8 virtual devices"):
        topology("cpu:9")


# What programs compute, move and send.


def test_work_of_this_compiler():
    """A loop of 5 turns over slices of a stack, on 8 devices."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(x, stack):
        def turn(x, w):
            y = jnp.tanh(x @ w)
            return jax.lax.ppermute(y, "d", [(i, (i + 1) % 8) for i in range(8)]), None

        x = jax.lax.scan(turn, x, stack)[0]
        return jax.lax.psum(x, "d")

    specs = jax.sharding.PartitionSpec("d"), jax.sharding.PartitionSpec()
    step = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=specs[1])
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((64, 256), (5, 256, 256))]
    compiled = jax.jit(step).lower(*shapes).compile()
    found = works(compiled.as_text())
    assert sum(w.times * w.flops for w in found) == 5 * 2 * 8 * 256 * 256
    once = compiled.cost_analysis()["flops"]
    assert sum(w.flops for w in found) <= once < 1.1 * sum(w.flops for w in found)
    # a turn reads its slice of the stack (256 KiB), not the stack; the vectors are small beside it
    traffic = sum(w.times * w.traffic for w in found)
    assert 5 * 256 * 256 * 4 <= traffic < 3.5 * 5 * 256 * 256 * 4
    moved = collectives(compiled.as_text())
    assert [(c.kind, c.times, c.size, c.group) for c in moved] == [
        ("collective-permute", 5, 8 * 256 * 4, 2),
        ("all-reduce", 1, 8 * 256 * 4, 8),
    ]


# Lines as libtpu prints them, less layouts that do not matter.
TPU_TEXT = """\
HloModule jit_step, is_scheduled=true

%products (param_0: bf16[16,512,768], param_1: bf16[768,12,64]) -> bf16[12,64,16,512] {
  %param_0 = bf16[12,16,512,768]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[1,768,12,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = f32[16,12,512,512]{2,3,1,0:T(8,128)} convolution(%a, %b), \
window={size=16x12 stride=15x11 lhs_dilate=16x12}, dim_labels=01bf_01oi->01bf
  %a = bf16[16,12,512,64]{3,2,1,0} parameter(2)
  %b = bf16[16,12,512,64]{3,2,1,0} parameter(3)
}

ENTRY %main (x: f32[96,768], y: f32[1536,768]) -> f32[96,1536] {
  %x = f32[96,768]{1,0:T(8,128)} parameter(0)
  %y = f32[1536,768]{1,0:T(8,128)S(1)} parameter(1)
  %fusion = f32[16,12,512,512]{2,3,1,0:T(8,128)S(1)} fusion(%x), kind=kOutput, calls=%products, \
backend_config={"estimated_cycles":"1500"}
  %copy-start = (f32[96,768]{1,0:T(8,128)S(1)}, f32[96,768]{1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%x)
  %copy-done = f32[96,768]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %both = (f32[8,128]{1,0:T(8,128)}, f32[16]{0}) all-reduce(%p, %q), channel_id=1, \
replica_groups=mesh['axis_0'=1,'axis_1'=8,'axis_2'=2], device_ids=([2,8]T(1,0)) {'axis_1'}, \
to_apply=%add
  %part = f32[8,128]{1,0} reduce-scatter(%r), channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0)
  %send = (f32[2,8,128]{2,1,0}, u32[], token[]) send(%part, %after), channel_id=3, \
is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name=\
"xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %tile = f32[96,1536]{1,0:T(8,128)S(1)} fusion(%x), kind=kOutput, calls=%products
  %send-done = token[] send-done(%send), channel_id=3
  ROOT %convolution.2 = f32[96,1536]{1,0:T(8,128)} convolution(%x, %y), dim_labels=bf_oi->bf, \
operand_precision={highest,highest}
}
"""


def test_work_of_a_tpu_program():
    found = [w for w in works(TPU_TEXT) if w.flops or w.traffic or w.cycles]
    batched, copied, *_, last = found
    # a batched product is a convolution whose window meets one entry at a place
    assert batched.flops == batched.unit_flops == 2 * 16 * 12 * 512 * 512 * 64
    assert batched.cycles == 1500
    # one side of the copy is memory, and nothing waits for it
    assert copied.traffic == 96 * 768 * 4 and not copied.waits
    assert last.flops == 2 * 96 * 1536 * 768 and last.unit_flops == 6 * last.flops
    assert last.traffic == 4 * (96 * 768 + 96 * 1536)  # y is on the chip
    reduced, part, sent = collectives(TPU_TEXT)
    assert (reduced.size, reduced.groups) == (
        4 * (1024 + 16),
        (tuple(range(8)), tuple(range(8, 16))),
    )
    assert part.groups == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert sent == Collective("dcn all-reduce", 1, 8192, waits=False, beside=True)


KERNEL = """\
  %splash_mha_{name}.{number} = ({results}) custom-call(%blocks, %blocks, %q, %kv, %kv), \
custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q{suffix}\\": 128, \\"block_kv{suffix}\\": 128}}"
}}}}, metadata={{op_name="jit(step)/attention/splash_mha_{name}/pallas_call"}}
"""
KERNELS_TEXT = (
    """\
HloModule jit_step, is_scheduled=true

ENTRY %main (q: bf16[3,8,512,64], kv: bf16[3,2,512,64]) -> bf16[3,8,512,64] {
  %blocks = s8[1,4,2]{2,1,0} parameter(0)
  %q = bf16[3,8,512,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %kv = bf16[3,2,512,64]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(2)
"""
    + KERNEL.format(name="fwd_segmented", number=1, results="bf16[3,8,512,64]{3,2}", suffix="")
    + KERNEL.format(
        name="dkv_segmented",
        number=2,
        results="f32[3,128,64]{2,1,0}, bf16[3,2,512,64]{3,2,1,0}, bf16[3,2,512,64]{3,2,1,0}",
        suffix="_dkv",
    )
    + KERNEL.format(
        name="dkv_segmented",
        number=3,
        results="bf16[3,4,8,512,64]{4,3}, bf16[3,2,512,64]{3,2}, bf16[3,2,512,64]{3,2}",
        suffix="_dkv",
    )
    + KERNEL.format(name="dq_segmented", number=4, results="bf16[3,8,512,64]{3,2}", suffix="_dq")
    + """\
  ROOT %other = bf16[3,8,512,64]{3,2} custom-call(%q), custom_call_target="tpu_custom_call"
}
"""
)


def test_work_of_attention_kernels():
    found = [w for w in works(KERNELS_TEXT) if w.flops or w.traffic]
    # 3 rows, 8 heads, a grid of 4 x 2 blocks of 128 x 128 pairs
    product = 2 * 3 * 8 * 4 * 2 * 128 * 128 * 64
    assert [w.flops / product for w in found] == [2, 4, 5, 3]
    assert all(w.unit_flops == w.flops and w.waits for w in found)
    assert [w.kernel for w in found[:2]] == ["splash_mha_fwd_segmented", "splash_mha_dkv_segmented"]
    q = 3 * 8 * 512 * 64 * 2  # k and v are on the chip
    assert found[0].traffic == 2 * 8 + q + q
    assert found[1].traffic == 2 * 8 + q + 4 * 3 * 128 * 64 + 2 * (q // 4)
    # the compiler has no cycles of them
    clocked = dataclasses.replace(CHIP, clock=1e9)
    other = Work(times=1, flops=1.0, unit_flops=1.0, traffic=0, cycles=10**9, waits=True)
    ran = predict([*found, other], [], clocked)
    assert ran.compiler == pytest.approx(1 + predict(found, [], clocked).work)


def test_seconds_of_collectives():
    def seconds(kind: str, size: int, n: int, shape=(4, 4), slices=1) -> float:
        c = Collective(kind, 1, size, waits=True, beside=False, groups=(tuple(range(n)),))
        return collective_seconds(c, CHIP, shape=shape, slices=slices)

    whole = 4 * 1e10  # two rings of a 4 x 4 torus, both ways
    assert seconds("all-gather", 16_000, 16) == pytest.approx(15_000 / whole + 4e-6)
    assert seconds("all-reduce", 16_000, 16) == pytest.approx(30_000 / whole + 4e-6)
    assert seconds("reduce-scatter", 1_000, 16) == pytest.approx(15_000 / whole + 4e-6)
    # a part of the slice has one ring
    assert seconds("all-gather", 16_000, 4) == pytest.approx(12_000 / 2e10 + 2e-6)
    assert seconds("all-gather", 16_000, 1) == 0
    assert seconds("collective-permute", 16_000, 2) == pytest.approx(16_000 / 1e10 + 1e-6)
    assert seconds("dcn all-reduce", 16_000, 2, slices=2) == 16_000 / 1e9
    unknown = Collective("all-gather", 1, 16_000, waits=True, beside=False)
    assert collective_seconds(unknown, CHIP, shape=(4, 4), slices=1) == seconds(
        "all-gather", 16_000, 16
    )


def test_roofline():
    work = [
        Work(times=3, flops=1e12, unit_flops=2e12, traffic=10**9, cycles=5, waits=True),
        Work(times=2, flops=0, unit_flops=0, traffic=10**11, cycles=0, waits=True),
        Work(times=1, flops=0, unit_flops=0, traffic=10**11, cycles=0, waits=False),
    ]
    moved = [
        Collective("collective-permute", 10, 10**10, waits=False, beside=True),
        Collective("collective-permute", 1, 10**10, waits=True, beside=False),
    ]
    found = predict(work, moved, CHIP)
    assert found.compute == pytest.approx(6)
    assert found.memory == pytest.approx(0.03 + 2 + 1)
    assert found.work == pytest.approx(3 * 2 + 2 * 1)
    assert (found.hidden, found.exposed) == (
        pytest.approx(10, abs=1e-4),
        pytest.approx(1, abs=1e-4),
    )
    assert found.step == pytest.approx(10 + 1, abs=1e-3)
    assert found.compiler is None  # the chip's clock is not known
    assert predict(work, [], CHIP).step == pytest.approx(8)


# Operations by formula.


def bert_base(**options):
    config = defaults()
    config.model.name = "bert-base-uncased"
    config.model.scan_layers = False
    config.data.max_passage_tokens = config.data.row_tokens = 128
    config.data.texts_per_row = 1
    config.train.batch_size = 32
    config.train.health = False
    for key, value in options.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    shape, source = plan.model_shape(config.model.name)
    return config, shape, source


def test_flops_of_bert_base_against_a_hand_count():
    """Formula, traced step and XLA's analysis of it, all of rows full of one text each."""
    config, shape, source = bert_base()
    read, mesh = run_config(config), make_mesh(devices=jax.devices()[:1])
    inputs = plan_inputs(read, devices=1, query_tokens=40, passage_tokens=80)._replace(rows=(192,))
    program = make_program(
        read, configured_encoder(read, shape, source=source), mesh, source=source
    )
    batch = batch_shapes(read, inputs, sharding=batch_sharding(mesh))
    traced = program.step.trace(program.shapes, batch)
    tokens, pairs = 192 * 128, 96
    model = model_flops(shape, program.objective, tokens=tokens, squares=192 * 128**2, pairs=pairs)
    # by hand: BERT-base has 85,054,464 parameters in its layers, of which 84,934,656 multiply
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert weights == 84_934_656
    attention = 12 * 2 * (128 * 128 * 768) * 192  # multiply-adds of q k^T and of weights times v
    scores = pairs * pairs * 768
    assert model == 6 * (weights * tokens + attention + scores)
    assert product_flops(traced.jaxpr.jaxpr) == pytest.approx(model, rel=0.01)
    assert traced.lower().cost_analysis()["flops"] == pytest.approx(model, rel=0.05)


def test_a_program_with_adapters_has_no_gradients_of_the_kernels():
    """Formula and traced step; and what is at rest: the base in two bytes, without moments."""
    options = {"model__lora_rank": 16, "model__frozen_dtype": "bfloat16"}
    options["model__scan_layers"] = True  # unrolled, the first layer's input has no gradient
    config, shape, source = bert_base(**options)
    read, mesh = run_config(config), make_mesh(devices=jax.devices()[:1])
    inputs = plan_inputs(read, devices=1, query_tokens=40, passage_tokens=80)._replace(rows=(192,))
    program = make_program(
        read, configured_encoder(read, shape, source=source), mesh, source=source
    )
    batch = batch_shapes(read, inputs, sharding=batch_sharding(mesh))
    traced = program.step.trace(program.shapes, batch)
    adapters = 12 * 16 * (4 * 2 * 768 + 2 * (768 + 3072))
    assert program.split.adapter_size == adapters
    assert sum(x.size for x in jax.tree.leaves(program.shapes.params)) == adapters
    tokens, pairs = 192 * 128, 96
    how = {"tokens": tokens, "squares": 192 * 128**2, "pairs": pairs}
    model = model_flops(shape, program.objective, **how, adapter=adapters)
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072)
    whole = model_flops(shape, program.objective, **how)
    assert model == whole - 2 * weights * tokens + 6 * adapters * tokens
    assert product_flops(traced.jaxpr.jaxpr) == pytest.approx(model, rel=0.01)
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.shapes))
    assert state == pytest.approx(2 * 109e6 + 3 * 4 * adapters, rel=0.01)


def test_flops_of_the_blocks():
    shape = config_from_hf(json.loads(plan.PUBLIC.read_text())["bert-base-uncased"])
    none = {"tokens": 0, "squares": 0, "pairs": 10}

    def loss(objective, **more):
        return model_flops(shape, parse_objective(objective), **none, **more)

    one = 3 * 2 * 10 * 10 * 768
    assert loss("uni(P)") == loss("multi(P,IQ)") == one  # rows and columns of one matrix
    assert loss("uni(P,IQ,QQ,PP)") == 3 * one
    assert loss("uni(P,I)", instructions=3) == one + 3 * 2 * 10 * 3 * 768
    assert loss("uni(P)", dims=(768, 384)) == 1.5 * one


@pytest.mark.parametrize(
    ("name", "parameters"),  # as published, less the pooler's width^2 + width
    [
        ("bert-base-uncased", 109_482_240 - 590_592),
        ("intfloat/e5-base-v2", 109_482_240 - 590_592),
        ("intfloat/e5-large-v2", 335_141_888 - 1_049_600),
        ("sentence-transformers/all-MiniLM-L6-v2", 22_713_216 - 147_840),
    ],
)
def test_public_models(name, parameters):
    shape, source = plan.model_shape(name)
    tree = jax.eval_shape(make_encoder(shape).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(tree)) == parameters
    assert name in source


def test_model_config_override(tiny_model_dir, tmp_path):
    for path in (tiny_model_dir, tiny_model_dir / "config.json"):
        assert plan.model_shape("no/such", str(path))[0].width == 32
    with pytest.raises(UserError, match="--model-config=FILE"):
        plan.model_shape(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"nothing\.json"):
        plan.model_shape("no/such", str(tmp_path / "nothing.json"))


# The real step.

VARIANTS = {
    "shared": {},
    "separate": {"model.towers": "separate", "train.chunks_per_device": 2},
    "block I": {"loss.objective": "multi(P,I)", "loss.instruction_negatives": 2},
    "attention": {"loss.objective": "multi(P,I)", "model.query_encoder": "attention"},
}


def changed(config, overrides):
    for key, value in overrides.items():
        config = planning.with_option(config, key, value)
    return config


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_planned_program_is_the_trained_one(tiny_config, variant):
    """The same lowered program, from shapes alone as from the loader's first batch."""
    config = changed(tiny_config, {"train.batch_size": 16, **VARIANTS[variant]})
    training = make_training(run_config(config))
    real = training.loader.host_batch(0)
    read = run_config(config)
    inputs = plan_inputs(read, devices=8, **LENGTHS)
    batch = batch_shapes(read, inputs, sharding=batch_sharding(training.mesh))
    assert inputs.measured and "measured on" in inputs.note
    assert (inputs.rows, inputs.fill) == (training.loader.plan.rows, training.loader.plan.fill)
    told = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), batch)
    assert told == jax.tree.map(lambda x: (x.shape, np.asarray(x).dtype), real)
    lengths = training.loader.dataset.text_lengths
    if variant == "shared":
        assert inputs.squares == pytest.approx(16 * np.square(lengths).sum(1).mean())
    directory = training.model.directory
    encoder = configured_encoder(read, read_config(directory), source=directory)
    program = make_program(read, encoder, make_mesh(devices=jax.devices()), source=directory)
    assert program.shapes == training.shapes
    if variant == "shared":
        texts = [s.lower(training.shapes, batch).as_text() for s in (program.step, training.step)]
        assert texts[0] == texts[1] and "stablehlo.dot_general" in texts[0]


def test_assumed_lengths(tiny_config):
    config = changed(tiny_config, {"data.dir": "nowhere", "train.batch_size": 160})
    inputs = plan_inputs(run_config(config), devices=8, query_tokens=8, passage_tokens=20)
    assert not inputs.measured
    assert "ASSUMED" in inputs.note and "no dataset here" in inputs.note
    assert inputs.pairs == 480
    assert inputs.tokens == pytest.approx(480 * 28, rel=0.02)
    slots = 8 * inputs.rows[0] * 64
    assert 0.8 < inputs.fill == inputs.tokens / slots <= 1
    # the mean of the squares is above the square of the mean
    assert 480 * (8**2 + 20**2) < inputs.squares < 1.2 * 480 * (8**2 + 20**2)
    long = plan_inputs(run_config(config), devices=8, query_tokens=90, passage_tokens=90)
    assert long.tokens == 480 * (16 + 32)  # cut at the config's limits


@pytest.fixture
def config_file(tiny_config, tmp_path, monkeypatch):
    quick = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    monkeypatch.setattr(  # compiling is most of the time
        "inf_jax.training.setup.compiler_options",
        lambda mesh: quick if mesh.devices.flat[0].platform == "cpu" else {},
    )
    tiny_config.train.health = False
    lines = ["from inf_jax.config import defaults", "def get_config():", "    c = defaults()"]
    for section, value in tiny_config.to_dict().items():
        values = value.items() if isinstance(value, dict) else [(None, value)]
        for key, v in values:
            lines.append(f"    c.{f'{section}.{key}' if key else section} = {v!r}")
    path = tmp_path / "tiny.py"
    path.write_text("\n".join([*lines, "    return c", ""]))
    return path


def test_plan_of_virtual_devices(config_file, tiny_config, tmp_path, capsys):
    file = tmp_path / "plan.json"
    options = [f"--config={config_file}", f"--json={file}", "--config.mesh.fsdp=2"]
    plan.main([*options, "--topology=cpu:8", "--config.train.chunks_per_device=2"])
    said, found = capsys.readouterr().out, json.loads(file.read_text())
    assert "MADE UP" in said and "measured on" in said and "DOES NOT FIT" not in said
    assert found["attention"] == "xla" and re.search(r"attention\W+xla\W", said)
    memory = found["hbm"]
    assert memory["fits"] and memory["limit"] == CHIPS["cpu"].usable
    assert memory["needed"] == memory["arguments"] + memory["outputs"] + memory["temp"] - (
        memory["reused"] - memory["code"]
    )
    # arguments: the state on its shards and the batch
    assert memory["arguments"] == pytest.approx(memory["at_rest"], rel=0.01)
    flops, seconds, rates = found["flops"], found["seconds"], found["rates"]
    # GradCache encodes once more, rows are padded, and health has products of its own
    assert flops["model"] < flops["compiled"]
    assert flops["compiled"] == pytest.approx(flops["traced"], rel=0.02)
    kinds = {c["kind"]: c for c in found["collectives"]}
    assert kinds["all-reduce"]["bytes"] > 0
    axes = {(c["kind"], c["axes"]) for c in found["collectives"]}
    # weights and their gradients, these over the copies too; the dense loss takes all vectors
    assert {("all-gather", "fsdp"), ("reduce-scatter", "fsdp"), ("all-reduce", "data")} < axes
    assert ("all-gather", "data fsdp") in axes
    assert found["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1}
    assert seconds["step"] >= max(seconds["compute"], seconds["memory"], seconds["work"])
    assert rates["mfu"] == pytest.approx(flops["model"] / (1e12 * seconds["step"]))
    assert rates["examples_per_second"] == pytest.approx(8 / seconds["step"])
    assert rates["run_hours"] == pytest.approx(4 * seconds["step"] / 3600)
    assert rates["run_tokens"] == pytest.approx(4 * found["batch"]["tokens"])
    row = bench_plan._row("tiny.py", found | {"compile_seconds": 1})
    text = bench_plan.summary([row], version="0", note="measured")
    assert "| tiny.py | cpu:8 |" in text and len({x.count("|") for x in text.split("\n")[2:]}) == 1


def test_unfit_says_what_helps(config_file, tiny_config, tmp_path, capsys):
    file = tmp_path / "plan.json"
    options = [f"--config={config_file}", f"--json={file}", "--compare=cpu:1,cpu:2"]
    plan.main([*options, "--hbm-gib=0.0009"])
    said, (one, two) = capsys.readouterr().out, json.loads(file.read_text())
    assert "NO" in said and not one["hbm"]["fits"] and (one["chips"], two["chips"]) == (1, 2)
    over = one["hbm"]["needed"] - one["hbm"]["limit"]
    message = plan.unfit(one)
    assert one["hbm"]["free"] == -over < 0
    assert f"{over / 2**30:.2f} GiB too much" in message
    for option in ("model.remat=full", "model.dtype=bfloat16", "train.chunks_per_device="):
        assert f"--config.{option}" in message
    assert "mesh.fsdp=2" in plan.unfit(two) and "mesh.fsdp" not in message
    # each piece of advice is a config that the checks let through
    for option in two["advice"]:
        planning.with_option(tiny_config, option["key"], option["value"])


def fake_plan(per_example: float, limit: float):
    """make_plan of a program whose memory is linear in the batch."""

    def make(config, target, **_):
        needed = per_example * config.train.batch_size
        memory = {"needed": needed, "limit": limit, "free": limit - needed, "at_rest": 0}
        batch = {"pairs": 3 * config.train.batch_size, "examples": config.train.batch_size}
        found = {"hbm": memory | {"fits": needed <= limit}, "batch": batch, "devices": 8}
        found |= {"topology": target.name, "slices": 1, "tensor_divides": 4}
        found |= {"parameters": 2**20, "trained_parameters": 2**20}
        return found | {"advice": planning.advice(config, found)}

    return make


def test_search(config_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "make_plan", fake_plan(2**20, 1000 * 2**20))
    monkeypatch.setattr(plan, "show", lambda found: None)
    file = tmp_path / "plan.json"
    options = [f"--config={config_file}", f"--json={file}", "--topology=cpu:8"]
    plan.main([*options, "--search=batch_size"])
    found = json.loads(file.read_text())
    assert 940 < found["batch"]["examples"] <= 1000 and found["batch"]["examples"] % 8 == 0
    assert "largest batch that fits" in capsys.readouterr().out
    assert len(found["searched"]) < 14
    monkeypatch.setattr(plan, "make_plan", fake_plan(2**30, 2**30))
    with pytest.raises(UserError, match=r"needs 8\.00 GiB of a device's 1\.00, 7\.00 GiB too"):
        plan.main([*options, "--search=batch_size"])
    monkeypatch.setattr(plan, "make_plan", fake_plan(2**30, 2**30))
    with pytest.raises(UserError, match=r"7\.00 GiB too much"):
        plan.main(options)
    assert json.loads(file.read_text())["hbm"]["fits"] is False  # written all the same


@pytest.mark.parametrize("bound", [7, 8, 100, 4096, 5000])
def test_largest(bound):
    asked = []

    def fits(n):
        asked.append(n)
        return n <= bound

    found = planning.largest(fits, start=64, unit=8)
    assert found % 8 == 0 and found <= bound
    assert found + max(8, found // 16 + 8) > bound
    assert len(asked) == len(set(asked)) < 20


def test_largest_stops():
    assert planning.largest(lambda n: True, start=8, unit=8, most=64) == 64


def test_refusals_of_the_compiler():
    new = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (400.00G) exceeds available HBM (15.75G)."
    )
    old = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 37.20G of 15.75G hbm. Exceeded hbm capacity by 21.45G.\n\nTotal hbm usage >= "
        "37.70G:\n    reserved        530.00M"
    )
    assert planning.exhausted(new) == (400 * 2**30, 15.75 * 2**30)
    assert planning.exhausted(old) == (37.2 * 2**30, 15.75 * 2**30)
    with pytest.raises(UserError, match="the compiler failed: INTERNAL"):
        planning.exhausted("INTERNAL: 3G of 4G")


def test_advice_fits_the_cause():
    config = defaults()
    config.loss.engine = "dense"
    config.data.row_tokens = 512
    gib = 2**30

    def keys(state, needed, pairs=4096, trained=2**30):
        found = {
            "hbm": {"at_rest": state * gib, "needed": needed * gib, "limit": 16 * gib},
            "batch": {"pairs": pairs},
            "devices": 8,
            "slices": 1,
            "parameters": 2**30,
            "trained_parameters": trained,
            "tensor_divides": 16,
        }
        return {o["key"]: o["value"] for o in planning.advice(config, found)}

    found = keys(1, 100)  # 99 GiB of activations in a room of 15
    assert next(iter(found)) == "loss.engine" and "mesh.fsdp" not in found
    assert found["train.chunks_per_device"] == 8 and found["data.row_tokens"] == 128
    assert keys(20, 24)["mesh.fsdp"] == 8  # 20 to 4.8 takes 4.2
    assert "model.frozen_dtype" not in found
    assert keys(1, 100, trained=2**20)["model.frozen_dtype"] == "bfloat16"
    config.model.remat, config.model.dtype, config.loss.engine = "full", "bfloat16", "ring"
    assert set(keys(1, 100)) == {"train.chunks_per_device", "data.row_tokens"}
    config.mesh.fsdp = 2
    config.train.chunks_per_device = 2
    found = keys(1, 20)
    assert found["mesh.gather"] == "layer" and "mesh.tensor" not in found  # 8 GiB of 16
    config.mesh.gather = "layer"
    found = keys(1, 20, pairs=8)  # a chunk is one pair
    assert found["mesh.tensor"] == 2 and "train.chunks_per_device" not in found
    assert "mesh.gather" not in found
    config.mesh.update({"fsdp": 2, "tensor": 4})  # all devices share a copy
    assert not {"mesh.fsdp", "mesh.tensor"} & set(keys(20, 40, pairs=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name what to plan for"),
        (["--topology=cpu:8", "--compare=cpu:8"], "name what to plan for"),
        (["--topology=cpu:8", "--slices=0"], "--slices: must be above 0"),
        (["--topology=cpu:8", "--slices=x"], "--slices"),
        (["--topology=cpu:8", "--search=lr"], "--search"),
        (["--topology=cpu:8", "--hbm-gib=-1"], "--hbm-gib: must be above 0"),
        (["--topology=cpu:8", "--nonsense=1"], "nonsense"),
    ],
)
def test_command_line(config_file, options, message):
    with pytest.raises(UserError, match=message):
        plan.main([f"--config={config_file}", *options])


def test_help(capsys):
    with pytest.raises(SystemExit) as ended:
        plan.main(["--help"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "--search=batch_size" in said and "batch_size: 64" in said


# Large batches.


def scaling_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scaling_configs():
    module = scaling_module(ROOT / "configs" / "scaling" / "e5_large.py")
    assert len(module.NAMES) == 10
    for name in module.NAMES:
        config = module.get_config(name)
        check(config)
        pairs, (target, chips) = int(name.split("-")[1]), module.TOPOLOGIES[name.split("-")[0]]
        assert math.prod(parse(target)[1]) == chips
        assert 0 <= pairs - 3 * config.train.batch_size < 3
        assert pairs % (chips * config.train.chunks_per_device) == 0
        assert config.train.steps * pairs == module.RUN_PAIRS
    with pytest.raises(ValueError, match="one of v5e-4096"):
        module.get_config("v5e-1")


def test_backbones_configs():
    module = scaling_module(ROOT / "configs" / "scaling" / "backbones.py")
    for name in module.NAMES:
        config = module.get_config(name)
        check(config)
        shape, _ = plan.model_shape(config.model.name)
        assert config.data.row_tokens % 128 == 0  # splash attention wants it
        assert math.prod(parse(module.TOPOLOGY)[1]) % config.mesh.fsdp == 0
        assert shape.width % config.mesh.fsdp == 0
    with pytest.raises(ValueError, match="one of e5-large"):
        module.get_config("gpt")
    planned = {program[0].partition(":")[2] for program in bench_plan.BACKBONES}
    assert planned == set(module.NAMES)


# The real compiler.


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (the extra aot) is not installed"
)
def test_plan_of_a_tpu(config_file, tmp_path):
    file = tmp_path / "plan.json"
    options = [f"--config={config_file}", f"--json={file}", "--topology=v5e:2x2"]
    options += ["--config.model.dtype=bfloat16", "--config.train.chunks_per_device=2"]
    plan.main([*options, "--config.data.row_tokens=128"])
    found = json.loads(file.read_text())
    assert found["hbm"]["fits"] and found["hbm"]["limit"] == 15.75 * 2**30
    assert found["flops"]["compiled"] == pytest.approx(found["flops"]["traced"], rel=0.05)
    assert found["seconds"]["compiler"] > 0
    assert {name.split("_")[2] for name in found["kernels"]} == {"fwd", "dkv"}
    assert any(c["kind"] == "all-reduce" and c["group"] == 4 for c in found["collectives"])
    with pytest.raises(UserError, match="the compiler has no such one"):
        topology("v5e:3x5")
