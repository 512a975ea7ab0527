"""launch/ablate.py on the tiny model: a failing cell, resuming, reuse, other settings."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

from inf_jax.core.errors import UserError
from inf_jax.losses.objective import parse_objective
from launch.bench.ablation import MASKS, OBJECTIVES, main, make_cells
from tests.inf_jax.processes import WITHOUT_TORCH, write_config
from tests.xla_flags import quick_flags

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture
def ablate(tiny_config, tmp_path, monkeypatch, capsys):
    """Runs the command with these further arguments; returns (exit code, output).

    In this process: it starts others, for each cell.
    """
    tiny_config.train.steps = 2
    tiny_config.train.health = False
    tiny_config.optim.lr = 1e-3
    path = write_config(tiny_config, tmp_path / "config.py")
    monkeypatch.setenv("XLA_FLAGS", quick_flags())
    monkeypatch.setenv("PYTHONPATH", str(WITHOUT_TORCH))

    def call(*more: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ablate.py", f"--config={path}", *more])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


def test_two_cells_one_of_which_fails_at_first(ablate, tiny_config):
    root = Path(tiny_config.out_dir, "ablation")
    good, bad = root / "uni_P-identity", root / "multi_P_IQ-identity"
    grid = ("--objectives", "multi(P,IQ)", "uni(P)", "--masks", "identity")
    bad.mkdir(parents=True)
    (bad / "command.txt").mkdir()  # in the way

    code, out = ablate(*grid)
    assert code == 1, out
    assert "[1/2] multi(P,IQ) identity: FAILED\ninf_jax.train ended with exit code" in out
    assert "error: 1 of 2 cells failed: multi(P,IQ) identity" in out
    failed, done = sorted(json.loads((root / "ablation.json").read_text())["cells"], key=len)
    assert done["objective"] == "uni(P)" and done["step"] == 2
    assert "command.txt: Is a directory" in failed["error"]  # the end of its output
    text = (root / "ablation.md").read_text()
    assert "Failed: multi(P,IQ), identity" in text and failed["error"] in text
    evaluated = (good / "eval.json").stat().st_mtime_ns

    (bad / "command.txt").rmdir()
    code, out = ablate(*grid)
    assert code == 0, out
    assert "[2/2] uni(P) identity: already finished, reused" in out
    assert (good / "eval.json").stat().st_mtime_ns == evaluated
    found = json.loads((root / "ablation.json").read_text())
    # the base was measured once
    assert "base: queries" in (good / "evaluate.log").read_text()
    assert "base: queries" not in (bad / "evaluate.log").read_text()
    scores = {
        c["objective"]: json.loads(Path(c["out_dir"], "eval.json").read_text())
        for c in found["cells"]
    }
    assert scores.keys() == {"uni(P)", "multi(P,IQ)"}
    for cell in found["cells"]:
        ours = scores[cell["objective"]]
        assert cell["trained"] == ours["trained"] != found["base"] == ours["base"]
        assert ours["config"]["loss"]["objective"] == cell["objective"]
    by_rank = [c["trained"]["p_mrr"] for c in found["cells"]]
    assert by_rank == sorted(by_rank, reverse=True)

    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in (root / "ablation.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert rows[0][:4] == ["objective", "mask", "p-MRR", "nDCG@10"]
    assert rows[2][:3] == ["base", "", f"{found['base']['p_mrr']:.1f}"]
    for row, cell in zip(rows[3:], found["cells"], strict=True):
        figures = [f"{cell['trained'][key]:.1f}" for key in ("p_mrr", "ndcg@10")]
        assert row[:4] == [cell["objective"], "identity", *figures]
    assert matplotlib.image.imread(root / "ablation.png").shape[1] == 1650

    code, out = ablate(*grid, "--config.train.steps=3")
    assert code == 1
    assert "begun with other settings (train.steps was 2, is now 3)" in out


def test_grid(tiny_config, tmp_path):
    path = write_config(tiny_config, tmp_path / "config.py")
    assert len(OBJECTIVES) == 12
    flags = [f"--config={path}", "--config.loss.instruction_negatives=3"]
    cells = make_cells(tiny_config, flags, OBJECTIVES, MASKS)
    assert len({cell.config.out_dir for cell in cells}) == len(cells) == 2 * len(OBJECTIVES)
    for cell in cells:
        assert cell.config.loss.objective == cell.objective
        assert cell.config.loss.mask == cell.mask
        block_i = "I" in parse_objective(cell.objective).blocks
        assert cell.config.loss.instruction_negatives == (3 if block_i else 0)
        same = cell.config.copy_and_resolve_references()
        same.out_dir, same.loss = tiny_config.out_dir, tiny_config.loss
        assert same.to_json() == tiny_config.to_json()  # a tuple of a file may be a list


def test_grid_with_the_attention_query_encoder_draws_nothing(tiny_config, tmp_path):
    tiny_config.model.query_encoder = "attention"
    path = write_config(tiny_config, tmp_path / "config.py")
    cells = make_cells(tiny_config, [f"--config={path}"], ["uni(P,I)"], ["identity"])
    assert [cell.config.loss.instruction_negatives for cell in cells] == [0]


def test_impossible_command_lines(tiny_config):
    bucket = tiny_config.copy_and_resolve_references()
    bucket.out_dir = "gs://runs/run"
    with pytest.raises(UserError, match=r"out_dir=gs://runs/run: .* give a local directory"):
        make_cells(bucket, [], ["uni(P)"], MASKS)
    with pytest.raises(UserError, match="unknown block 'X'"):
        make_cells(tiny_config, [], ["uni(X)"], MASKS)
    with pytest.raises(UserError, match="choose by --objectives and --masks"):
        make_cells(tiny_config, ["--config.loss.mask=faithful"], ["uni(P)"], MASKS)
    done = subprocess.run(
        [sys.executable, LAUNCH / "ablate.py", "--steps=3"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "unknown flag --steps; did you mean --config.train.steps?" in done.stderr
