"""The command plan: the step that training runs, tables, search, advice, errors."""

import importlib.util
import json
import re

import jax
import numpy as np
import pytest

from inf_jax import plan
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import batch_layout
from inf_jax.data.step_shapes import batch_shapes, plan_inputs
from inf_jax.distributed.mesh import batch_sharding, make_mesh
from inf_jax.models.hf.backbone import configured_encoder, run_tokenizer
from inf_jax.models.hf.config import read_config
from inf_jax.planning.advice import advice, with_option
from inf_jax.planning.chips import CHIPS
from inf_jax.planning.report import unfit
from inf_jax.planning.topology import topology
from inf_jax.training.program import make_program
from inf_jax.training.setup import make_training
from launch.bench import plan as bench_plan

LENGTHS = {"query_tokens": 10, "passage_tokens": 20}


VARIANTS = {
    "shared": {},
    "separate": {"model.towers": "separate", "train.chunks_per_device": 2},
    "block I": {"loss.objective": "multi(P,I)", "loss.instruction_negatives": 2},
    "attention": {"loss.objective": "multi(P,I)", "model.query_encoder": "attention"},
}


def changed(config, overrides):
    for key, value in overrides.items():
        config = with_option(config, key, value)
    return config


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_planned_program_is_the_trained_one(tiny_config, variant):
    """The same lowered program, from shapes alone as from the loader's first batch."""
    config = changed(tiny_config, {"train.batch_size": 48, **VARIANTS[variant]})
    training = make_training(run_config(config))
    real = training.loader.host_batch(0)
    read = run_config(config)
    inputs = plan_inputs(read, lambda: run_tokenizer(read), devices=8, **LENGTHS)
    batch = batch_shapes(
        batch_layout(read, devices=8, pairs_per_example=3),
        inputs.rows,
        sharding=batch_sharding(training.program.mesh),
    )
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
    assert program.shapes == training.program.shapes
    if variant == "shared":
        texts = [
            s.lower(training.program.shapes, batch).as_text()
            for s in (program.step, training.program.step)
        ]
        assert texts[0] == texts[1] and "stablehlo.dot_general" in texts[0]


def test_assumed_lengths(tiny_config):
    config = changed(tiny_config, {"data.dir": "nowhere", "train.batch_size": 480})
    inputs = plan_inputs(
        run_config(config),
        lambda: run_tokenizer(run_config(config)),
        devices=8,
        query_tokens=8,
        passage_tokens=20,
    )
    assert not inputs.measured
    assert "ASSUMED" in inputs.note and "no dataset here" in inputs.note
    assert inputs.pairs == 480
    assert inputs.tokens == pytest.approx(480 * 28, rel=0.02)
    slots = 8 * inputs.rows[0] * 64
    assert 0.8 < inputs.fill == inputs.tokens / slots <= 1
    # the mean of the squares is above the square of the mean
    assert 480 * (8**2 + 20**2) < inputs.squares < 1.2 * 480 * (8**2 + 20**2)
    long = plan_inputs(
        run_config(config),
        lambda: run_tokenizer(run_config(config)),
        devices=8,
        query_tokens=90,
        passage_tokens=90,
    )
    assert long.tokens == 480 * (16 + 32)  # cut at the config's limits


@pytest.fixture
def config_file(tiny_config, tmp_path, monkeypatch):
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
    assert "INVENTED" in said and "measured on" in said and "DOES NOT FIT" not in said
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
    message = unfit(one)
    assert one["hbm"]["free"] == -over < 0
    assert f"{over / 2**30:.2f} GiB too much" in message
    for option in ("model.remat=full", "model.dtype=bfloat16", "train.chunks_per_device="):
        assert f"--config.{option}" in message
    assert "mesh.fsdp=2" in unfit(two) and "mesh.fsdp" not in message
    # each piece of advice is a config that the checks let through
    for option in two["advice"]:
        with_option(tiny_config, option["key"], option["value"])


def fake_plan(per_example: float, limit: float):
    """plan_run of a program whose memory is linear in the batch."""

    def make(config, target, args):
        pairs = config.train.batch_size
        needed = per_example * pairs // 3
        memory = {"needed": needed, "limit": limit, "free": limit - needed, "at_rest": 0}
        batch = {"pairs": pairs, "examples": pairs // 3}
        found = {"hbm": memory | {"fits": needed <= limit}, "batch": batch, "devices": 8}
        found |= {"topology": target.name, "slices": 1, "tensor_divides": 4}
        found |= {"parameters": 2**20, "trained_parameters": 2**20}
        return found | {"advice": advice(config, found)}

    return make


def test_search(config_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "plan_run", fake_plan(2**20, 1000 * 2**20))
    monkeypatch.setattr(plan, "print_plan", lambda found: None)
    file = tmp_path / "plan.json"
    options = [f"--config={config_file}", f"--json={file}", "--topology=cpu:8"]
    plan.main([*options, "--search=batch_size"])
    found = json.loads(file.read_text())
    assert 940 < found["batch"]["examples"] <= 1000 and found["batch"]["examples"] % 8 == 0
    assert "largest batch that fits" in capsys.readouterr().out
    assert len(found["searched"]) < 14
    monkeypatch.setattr(plan, "plan_run", fake_plan(2**30, 2**30))
    with pytest.raises(UserError, match=r"needs 8\.00 GiB of a device's 1\.00, 7\.00 GiB too"):
        plan.main([*options, "--search=batch_size"])
    monkeypatch.setattr(plan, "plan_run", fake_plan(2**30, 2**30))
    with pytest.raises(UserError, match=r"7\.00 GiB too much"):
        plan.main(options)
    assert json.loads(file.read_text())["hbm"]["fits"] is False  # written all the same


def test_search_of_the_fastest(config_file, tmp_path, monkeypatch, capsys):
    def make(config, target, args):
        seconds = 1.0 + config.model.scan_layers + (config.model.remat == "full")
        needed = 8 // config.train.chunks_per_device + 8 * (config.model.remat == "none")
        memory = {"needed": needed, "limit": 8, "free": 8 - needed, "fits": needed <= 8}
        flops = {"model": 2.0, "compiled": 3.0}
        found = {"hbm": memory, "flops": flops, "seconds": {"step": seconds}}
        return found | {"rates": {"mfu": 1 / seconds}}

    monkeypatch.setattr(plan, "plan_run", make)
    monkeypatch.setattr(plan, "print_plan", lambda found: None)
    file = tmp_path / "plan.json"
    options = [f"--config={config_file}", f"--json={file}", "--topology=cpu:8"]
    plan.main([*options, "--search=fastest", "--config.model.scan_layers=True"])
    found, said = json.loads(file.read_text()), capsys.readouterr().out
    assert (
        found["overrides"] | {"model.remat": "dots", "model.scan_layers": False}
        == (found["overrides"])
    )
    flags = "--config.model.remat=dots --config.model.scan_layers=False"
    assert f"fastest that fits: {flags}" in said
    assert "does not fit" in said and "1.50" in said
    # only what is left open changes, in any plan; scan_layers stays
    auto = ["--config.model.remat=auto", "--config.train.chunks_per_device=auto"]
    plan.main([*options, *auto])
    found, said = json.loads(file.read_text()), capsys.readouterr().out
    assert found["overrides"] == {"model.remat": "dots", "train.chunks_per_device": 1}
    assert "forms for auto, the fastest first" in said and "scan_layers" not in said
    with pytest.raises(UserError, match=r"--search=batch_size: model.remat and train.chunks_per"):
        plan.main([*options, *auto, "--search=batch_size"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name what to plan for"),
        (["--topology=cpu:8", "--compare=cpu:8"], "name what to plan for"),
        (["--compare=cpu:8", "--search=batch_size"], "--search takes one --topology"),
        (["--topology=cpu:8", "--hbm-gib=-1"], "--hbm-gib: must be above 0"),
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
    assert "--search {batch_size,fastest}" in said and "train.batch_size" in said


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
    with pytest.raises(UserError, match="unknown to the compiler"):
        topology("v5e:3x5")
