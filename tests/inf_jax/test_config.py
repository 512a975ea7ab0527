"""The command line and the checks: one clear message, exit code 1."""

from pathlib import Path

import pytest

from inf_jax import config as cfg
from inf_jax.core.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
DEMO = f"--config={CONFIGS}/medquad_minilm.py"


def test_every_shipped_config_is_valid():
    # data_*.py are the triplet factory's, see tests/data_pipeline/commands/test_run.py
    names = sorted(p.name for p in CONFIGS.glob("*.py") if not p.name.startswith("data_"))
    assert "medquad_minilm.py" in names
    for name in names:
        config = cfg.parse(["main", f"--config={CONFIGS / name}"])
        assert config.out_dir


def test_overrides():
    config = cfg.parse(["main", DEMO, "--config.optim.lr=3e-4", "--config.model.dropout=0.1"])
    assert config.optim.lr == 3e-4
    assert config.model.dropout == 0.1


def test_block_i_needs_no_sampled_negatives():
    for sampled in (0, 3):
        config = cfg.parse(
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
        (["--config.optim.lrr=1"], "lrr"),
        (["--config.train.steps=many"], "many"),
        (["--config.train.steps=0"], r"train\.steps=0: must be above 0"),
        (["--config.model.pooling=max"], r"model\.pooling='max': one of mean, cls, last"),
        (["--config.model.dropout=1.5"], r"model\.dropout=1\.5: must be in \[0, 1\)"),
        (["--config.model.append_eos=True"], r"append_eos='True': one of auto, always, never"),
        (["--config.model.projection=-1"], r"model\.projection=-1: must not be negative"),
        (["--config.model.projection_bias=True"], r"projection_bias=True: there is no model\.proj"),
        (
            ["--config.model.projection=8", "--config.model.query_encoder=attention"],
            r"model\.projection=8: with model\.query_encoder='attention'",
        ),
        (["--config.eval.dims=(8, 8)"], r"eval\.dims=\(8, 8\): different whole numbers above 0"),
        (["--config.data.row_tokens=16"], r"data\.row_tokens=16: a row must hold the longest"),
        (["--config.optim.warmup_steps=9999"], r"warmup_steps=9999 exceeds train\.steps"),
        (["--config.optim.weight_decay=-1"], r"weight_decay=-1\.0: must not be negative"),
        (["--config.optim.weight_decay=nan"], r"weight_decay=nan: must be a finite number"),
        (["--config.train.hang_minutes=-1"], r"hang_minutes=-1\.0: must not be negative"),
        (["--config.train.max_spike=-1"], r"max_spike=-1\.0: must not be negative"),
        (["--config.train.spike_steps=0"], r"spike_steps=0: must be above 0"),
        (["--config.train.profile_at=-1"], r"profile_at=-1: must not be negative"),
        (["--config.train.profile_steps=0"], r"profile_steps=0: must be above 0"),
        (["--config.export.min_cosine=7"], r"min_cosine=7\.0: must be in \(0, 1\]"),
        (["--config.loss.instruction_negatives=-1"], r"instruction_negatives=-1: must not be neg"),
        (["--config.loss.instruction_negatives=2"], r"multi\(P,IQ\) has no block I that would"),
        (["--config.model.query_encoder=both"], "query_encoder='both': one of joint, attention"),
        (
            [
                "--config.loss.objective=uni(P,I)",
                "--config.loss.instruction_negatives=2",
                "--config.model.query_encoder=attention",
            ],
            "negatives=2: with model.query_encoder='attention' a chunk's.* none is drawn",
        ),
        (["--config.loss.objective=foo(P)"], r"loss\.objective: objective kind 'foo'"),
        ([f"--config.seed={2**32}"], "must be below"),
        (["stray"], "unexpected stray"),
        (["--nonsense=1"], "nonsense"),
    ],
)
def test_bad_command_lines(arguments, message):
    with pytest.raises(UserError, match=message):
        cfg.parse(["main", DEMO, *arguments])


def test_the_models_directory_is_no_out_dir(tmp_path):
    (tmp_path / "model").mkdir()
    flags = [f"--config.model.name={tmp_path}/model", f"--config.out_dir={tmp_path}/model/../model"]
    with pytest.raises(UserError, match=r"is model\.name.s directory"):
        cfg.parse(["main", DEMO, *flags])


def test_all_problems_at_once():
    with pytest.raises(UserError) as error:
        cfg.parse(["main", DEMO, "--config.train.steps=0", "--config.loss.mask=none"])
    assert "train.steps" in str(error.value)
    assert "loss.mask" in str(error.value)


def test_config_file_problems(tmp_path):
    with pytest.raises(UserError, match="name a config file"):
        cfg.parse(["main"])
    with pytest.raises(UserError, match="nowhere"):
        cfg.parse(["main", "--config=nowhere.py"])
    file = tmp_path / "c.py"
    head = "from inf_jax.config import defaults\ndef get_config():\n    c = defaults()\n"
    file.write_text(head + "    c.optim.learning_rate = 1\n    return c\n")
    with pytest.raises(UserError, match="learning_rate"):
        cfg.parse(["main", f"--config={file}"])
    file.write_text(head + "    with c.unlocked():\n        c.optim.extra = 1\n    return c\n")
    with pytest.raises(UserError, match=r"optim\.extra"):
        cfg.parse(["main", f"--config={file}"])


def test_help_lists_the_keys(capsys):
    with pytest.raises(SystemExit) as stop:
        cfg.parse(["main", "--help"], "What it does.")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "What it does." in out
    assert "warmup_steps" in out


def test_unread_keys_are_named():
    log = cfg.ReadLog(cfg.defaults())
    assert log.optim.lr == 1e-5
    unread = log.unread("optim")
    assert "optim.lr" not in unread
    assert "optim.b1" in unread
    with pytest.raises(UserError, match=r"nothing reads: .*optim\.b1"):
        cfg.check_all_read(log, "optim")
    assert set(log.unread("")) == {"out_dir", "seed"}
