"""The command line and the checks: one clear message."""

import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from inf_jax.config.command_line import command_line, parse, run
from inf_jax.config.defaults import run_config
from inf_jax.config.schema import config_dict, keys
from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"
DEMO = f"--config={CONFIGS}/medquad_minilm.py"


def test_every_shipped_config_is_valid():
    # data_*.py are the triplet factory's, see tests/data_pipeline/test_config.py
    names = sorted(p.name for p in CONFIGS.glob("*.py") if not p.name.startswith("data_"))
    assert "medquad_minilm.py" in names
    for name in names:
        config = parse(["main", f"--config={CONFIGS / name}"])
        assert config.out_dir


def test_overrides():
    config = parse(["main", DEMO, "--config.optim.lr=3e-4", "--config.model.dropout=0.1"])
    assert config.optim.lr == 3e-4
    assert config.model.dropout == 0.1


def test_block_i_needs_no_sampled_negatives():
    for sampled in (0, 3):
        config = parse(
            [
                "main",
                DEMO,
                "--config.loss.objective=multi(P,I)",
                f"--config.loss.instruction_negatives={sampled}",
            ]
        )
        assert config.loss.instruction_negatives == sampled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optim.lrr=1"], r"--config\.optim\.lrr: no such key; did you mean optim\.lr\?"),
        (["--config.train.lr=1"], r"train\.lr: no such key; did you mean optim\.lr\?"),
        (["--config.train=1"], r"--config\.train: is a section"),
        (["--config.train.steps=many"], r"--config\.train\.steps=many: must be a whole number"),
        (["--config.model.normalise=2"], r"model\.normalise=2: must be True or False"),
        (["--config.train.steps=0"], r"train\.steps=0: must be above 0"),
        (["--config.model.pooling=max"], r"model\.pooling='max': must be one of mean, cls, last"),
        (["--config.model.dropout=1.5"], r"model\.dropout=1\.5: must be in \[0, 1\)"),
        (
            ["--config.model.append_eos=True"],
            r"append_eos='True': must be one of auto, always, never",
        ),
        (
            ["--config.data.mixture_batches=homogeneous"],
            r"mixture_batches='homogeneous': there is no data\.mixture",
        ),
        (["--config.data.at_max_epochs=leave"], r"at_max_epochs='leave': there is no data\.mixt"),
        (
            ["--config.data.mixture=a,b", "--config.data.at_max_epochs=leave"],
            r"at_max_epochs='leave': there is no data\.max_epochs",
        ),
        (["--config.optim.lr_batch=64"], r"lr_batch=64: there is no optim\.lr_scaling"),
        (["--config.model.frozen_dtype=bfloat16"], r"frozen_dtype='bfloat16': nothing is frozen"),
        (["--config.export.adapter=True"], r"adapter=True: a run without model\.lora_rank has no"),
        (["--config.model.projection=-1"], r"model\.projection=-1: must not be negative"),
        (["--config.model.projection_bias=True"], r"projection_bias=True: there is no model\.proj"),
        (
            ["--config.model.projection=8", "--config.model.query_encoder=attention"],
            r"model\.projection=8: with model\.query_encoder='attention'",
        ),
        (["--config.eval.dims=(8, 8)"], r"eval\.dims=\(8, 8\): must be distinct positive integers"),
        (["--config.data.row_tokens=16"], r"data\.row_tokens=16: a row must hold the longest"),
        (["--config.optim.warmup_steps=9999"], r"warmup_steps=9999 exceeds train\.steps"),
        (["--config.optim.weight_decay=-1"], r"weight_decay=-1\.0: must not be negative"),
        (["--config.optim.weight_decay=nan"], r"weight_decay=nan: must be a finite number"),
        (["--config.train.hang_minutes=-1"], r"hang_minutes=-1\.0: must not be negative"),
        (["--config.train.max_spike=-1"], r"max_spike=-1\.0: must not be negative"),
        (["--config.train.spike_steps=0"], r"spike_steps=0: must be above 0"),
        (
            ["--config.train.keep_best=1", "--config.train.best_metric=dev/p_mrr"],
            r"train\.best_metric='dev/p_mrr': needs train\.eval_every",
        ),
        (
            [
                "--config.train.keep_best=1",
                "--config.train.best_metric=dev/ndcg@10",
                "--config.train.eval_every=5",
            ],
            r"best_metric='dev/ndcg@10': higher is better; set train\.best_mode='max'",
        ),
        (
            ["--config.train.keep_best=1", "--config.train.best_metric=dev/loss"],
            r"train\.best_metric='dev/loss': needs train\.dev_every",
        ),
        (
            ["--config.loss.objective=distil(P)", "--config.loss.mask_margin=0.1"],
            r"loss\.mask_margin=0\.1: loss\.objective=distil\(P\) has no block",
        ),
        (["--config.loss.mask_relative=True"], r"mask_relative=True: there is no loss\.mask_marg"),
        (["--config.loss.teacher_scale=20"], r"teacher_scale=20\.0: no teacher's scores are read"),
        (["--config.loss.hardness=5"], r"loss\.hardness=5\.0: .* set loss\.negatives, or loss"),
        (
            ["--config.loss.hardness=5", "--config.model.normalise=False"],
            r"loss\.hardness=5\.0: weighs by cosines, .* set model\.normalise=True",
        ),
        (
            ["--config.loss.objective=sigmoid(P)", "--config.loss.hardness=5"],
            r"loss\.hardness=5\.0: loss\.objective=sigmoid\(P\) has no softmax",
        ),
        (["--config.train.profile_at=-1"], r"profile_at=-1: must not be negative"),
        (["--config.train.profile_steps=0"], r"profile_steps=0: must be above 0"),
        (["--config.export.min_cosine=7"], r"min_cosine=7\.0: must be in \(0, 1\]"),
        (["--config.loss.instruction_negatives=-1"], r"instruction_negatives=-1: must not be neg"),
        (
            ["--config.loss.objective=multi(P,IQ)", "--config.loss.instruction_negatives=2"],
            r"multi\(P,IQ\) has no block I that would",
        ),
        (
            ["--config.model.query_encoder=both"],
            "query_encoder='both': must be one of joint, attention",
        ),
        (
            [
                "--config.loss.objective=uni(P,I)",
                "--config.loss.instruction_negatives=2",
                "--config.model.query_encoder=attention",
            ],
            "negatives=2: with model.query_encoder='attention' a chunk's.* none is sampled",
        ),
        (["--config.loss.objective=foo(P)"], r"loss\.objective: objective kind 'foo'"),
        ([f"--config.seed={2**32}"], "must be below"),
        (["stray"], "unexpected stray"),
        (["--no-resume"], "unknown flag --no-resume"),
        (["--confg.out_dir=x"], r"unknown flag --confg\.out_dir; did you mean --config\.out_dir"),
    ],
)
def test_bad_command_lines(arguments, message):
    with pytest.raises(UserError, match=message):
        parse(["main", DEMO, *arguments])


@pytest.mark.parametrize(
    ("given", "without", "part"),
    [
        ("data.source=nevir", "data.mixture=a,b", ""),
        ("model.lora_alpha=32.0", "", "model.lora_rank=4"),
        ("model.lora_targets=up_kernel", "", "model.lora_rank=4"),
        ("model.remat_first=dots", "", "model.remat_first_layers=1"),
        ("loss.max_scale=50.0", "", "loss.learn_scale=True"),
        ("loss.bias=-5.0", "", "loss.objective=sigmoid(P)"),
        ("loss.hardness_of=all", "", "loss.hardness=1"),
        ("optim.final_ratio=0.1", "optim.schedule=constant", ""),
        ("optim.b1=0.8", "optim.name=adafactor", "optim.name=muon"),
        ("optim.b2=0.98", "optim.name=adafactor", "optim.name=lion"),
        ("optim.eps=0.5", "optim.name=lion", "optim.name=lamb"),
        ("train.keep_last_chunk=True", "", "train.chunks_per_device=auto"),
        ("train.dev_batches=2", "", "train.dev_every=5"),
        ("train.best_metric=grad_norm", "", "train.keep_best=1"),
        ("train.best_mode=max", "", "train.keep_best=1"),
        ("train.spike_steps=5", "train.max_spike=0", ""),
        ("mesh.gather=layer", "", "mesh.fsdp=2"),
        ("eval.benchmark_split=dev", "", "eval.benchmark=plants"),
        ("eval.identical_ids=keep", "", "eval.benchmark=plants"),
    ],
)
def test_a_setting_of_a_part_that_is_off_is_said(
    monkeypatch, capsys, tmp_path, given, without, part
):
    """And nothing with the part, nor of a key that is at its default."""
    file = tmp_path / "c.py"
    file.write_text("from inf_jax.config import defaults\n\nget_config = defaults\n")

    def said(*keys: str) -> str:
        flags = [f"--config.{key}" for key in keys if key]
        monkeypatch.setattr(sys, "argv", ["train", f"--config={file}", *flags])
        started = []
        run(started.append, "")
        assert len(started) == 1
        return capsys.readouterr().err

    key, value = given.split("=")
    shown = rf"config: {re.escape(key)}='?{value}'?: .+; it has no effect\n"
    assert re.fullmatch(shown, said(given, without))
    assert said(given, part) == said(without) == ""


def test_the_models_directory_is_no_out_dir(tmp_path):
    (tmp_path / "model").mkdir()
    flags = [f"--config.model.name={tmp_path}/model", f"--config.out_dir={tmp_path}/model/../model"]
    with pytest.raises(UserError, match=r"is model\.name.s directory"):
        parse(["main", DEMO, *flags])


def test_all_problems_at_once():
    with pytest.raises(UserError) as error:
        parse(["main", DEMO, "--config.train.steps=0", "--config.loss.mask=none"])
    assert "train.steps" in str(error.value)
    assert "loss.mask" in str(error.value)


def test_config_file_problems(tmp_path):
    with pytest.raises(UserError, match=r"--config missing, e\.g\. --config=medquad_minilm"):
        parse(["main"])
    with pytest.raises(UserError, match="nowhere"):
        parse(["main", "--config=nowhere.py"])
    file = tmp_path / "c.py"
    head = "from inf_jax.config import defaults\ndef get_config():\n    c = defaults()\n"
    file.write_text(head + "    c.optim.learning_rate = 1\n    return c\n")
    with pytest.raises(UserError, match=r"c\.py, line 4: no such key learning_rate"):
        parse(["main", f"--config={file}"])
    file.write_text(head + "    c.train.step = 1\n    return c\n")
    with pytest.raises(UserError, match=r"line 4: no such key step; did you mean steps\?$"):
        parse(["main", f"--config={file}"])
    file.write_text(head + "    c.train.steps = 'many'\n    return c\n")
    with pytest.raises(UserError, match=r"line 4: steps: must be of type int$"):
        parse(["main", f"--config={file}"])
    for text, message in (
        ("get_config = 3\n", r"c\.py: defines no function get_config\(\)"),
        ("import sys\nsys.exit(3)\n", r"c\.py, line 2: SystemExit: 3"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            parse(["main", f"--config={file}"])
    file.write_text(head + "    return c.train.nothing\n")
    with pytest.raises(UserError, match=r"c\.py, line 4: AttributeError: .*nothing"):
        parse(["main", f"--config={file}"])
    file.write_text("import nowhere_at_all\n")
    with pytest.raises(UserError, match=r"c\.py, line 1: ModuleNotFoundError: No module named"):
        parse(["main", f"--config={file}"])
    file.write_text("def get_config(:\n")
    with pytest.raises(UserError, match=r"c\.py, line 1: "):
        parse(["main", f"--config={file}"])
    file.write_text("def get_config():\n    return {}\n")
    with pytest.raises(UserError, match=r"must return a ConfigDict, not dict"):
        parse(["main", f"--config={file}"])
    file.write_text(head + "    with c.unlocked():\n        c.optim.extra = 1\n    return c\n")
    with pytest.raises(UserError, match=r"optim\.extra"):
        parse(["main", f"--config={file}"])


def test_help_lists_the_keys(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["main", "--help"], "What it does.")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "What it does." in out
    assert "optim.warmup_steps" in out
    assert "steps of linear warm-up [0]" in " ".join(out.split())
    assert "[mean] mean | cls | last | weighted_mean" in " ".join(out.split())
    assert "!!python" not in out
    shown = re.findall(r"^  data\.(\w+) ", out, re.M)
    first = shown.index("more_templates")  # what varies the texts of pairs stands together
    kin = ["more_templates", "paraphrases", "drop_instructions", "query_alone", "poisoned_pairs"]
    assert shown[first : first + 5] == kin


def test_configs_are_found_by_name():
    assert parse(["main", "--config=medquad_minilm"]).out_dir == "out/medquad_minilm"
    assert parse(["main", "--config", "medquad_minilm"]).out_dir == "out/medquad_minilm"
    large = parse(["main", "--config=scaling/e5_large:v5e-16384"])
    assert large.out_dir == "out/scaling/e5_large-v5e-16384"
    with pytest.raises(UserError, match=r"no shipped config of that name; did you mean medquad"):
        parse(["main", "--config=medquad_minilmm"])


def test_a_given_path_is_not_replaced_by_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        parse(["main", "--config=./medquad_minilm.py"])
    with pytest.raises(UserError, match=r"audit\.count.* more: a config of another command\?"):
        parse(["main", "--config=data_msmarco"])


def test_typed_sections_hold_the_values():
    config = parse(["main", DEMO, "--config.loss.dims=(8, 16)", "--config.optim.lr=1"])
    typed = run_config(config)
    assert typed.loss.dims == (8, 16)
    assert typed.optim.lr == 1.0 and isinstance(typed.optim.lr, float)
    assert config_dict(typed).to_dict() == config.to_dict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        typed.seed = 1


def test_every_key_is_explained():
    for each in keys(RunConfig()):
        assert 3 < len(each.doc) < 130, each.name
        assert not each.choices or each.default in each.choices, each.name


def test_a_config_is_checked_without_jax():
    code = (
        "import sys; from inf_jax.config.command_line import parse; parse(sys.argv); "
        "print([name for name in ('jax', 'jaxlib', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, DEMO], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_command_line_is_what_one_would_type(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/inf_jax/train.py", "--config=a b.py"])
    monkeypatch.setattr(
        sys.modules["__main__"], "__spec__", importlib.util.find_spec("inf_jax.train")
    )
    assert command_line() == "python -m inf_jax.train '--config=a b.py'"


def test_a_number_or_auto():
    """A key of numbers takes the word on the command line and in a config file, nothing else."""
    flag = "--config.train.chunks_per_device"
    config = parse(["main", DEMO, f"{flag}=auto"])
    assert config.train.chunks_per_device == "auto" == run_config(config).train.chunks_per_device
    assert parse(["main", DEMO, f"{flag}=4"]).train.chunks_per_device == 4
    for wrong in ("two", "1.5", "True", "", "[1]"):
        with pytest.raises(
            UserError, match=r"chunks_per_device=.*: must be a whole number or auto"
        ):
            parse(["main", DEMO, f"{flag}={wrong}"])
    with pytest.raises(UserError, match=r"chunks_per_device=0: must be above 0"):
        parse(["main", DEMO, f"{flag}=0"])
