"""launch/device_check.py on a CPU with tiny shapes, and how it reports what goes wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import device_check
from tests.xla_flags import quick_flags

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def test_rehearsal(tmp_path):
    pytest.importorskip("sentence_transformers")
    done = subprocess.run(
        ["bash", LAUNCH / "device_check.sh", "--tiny", f"--out={tmp_path}"],
        env={**os.environ, "PYTHON": sys.executable, "XLA_FLAGS": quick_flags()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.endswith("all checks hold\n")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert not [line for line in lines if "error" in line and "ok" not in line]
    assert {line["section"] for line in lines if line.get("ok")} >= {
        "losses",
        "models",
        "attention",
    }
    cases = {line["case"]: line for line in lines}
    name = "MiniLM, 3 pairs, medquad tokens"
    ours, theirs = cases[f"{name}: inf_jax"], cases[f"{name}: sentence-transformers"]
    assert ours["tokens/s"] / ours["pairs/s"] == pytest.approx(
        theirs["tokens/s"] / theirs["pairs/s"]
    )
    loss = "multi(P,IQ), 128 pairs, identity x 32"
    assert cases[f"{loss}: inf_jax"]["loss"] == pytest.approx(
        cases[f"{loss}: PyTorch, dense"]["loss"], rel=0.01
    )
    report = (tmp_path / "report.md").read_text()
    for heading in ("Training step", "Loss and gradients", "Encoding and exact search"):
        assert f"## {heading}\n" in report


def test_a_failed_case_is_a_result(tmp_path, capsys):
    out = device_check.Recorder(tmp_path / "results", "losses", deadline=0, tiny=True)
    with out.case("first"):
        raise RuntimeError("out of\nmemory")
    out("second", ms=1234.5, loss=0.25, ok=True)
    assert out.failed and out.seconds_left() < 0
    assert "RuntimeError" in capsys.readouterr().err
    report = device_check.report(tmp_path / "results", "title")
    assert "| case | error | ok | ms | loss |\n| --- | ---: | ---: | ---: | ---: |\n" in report
    assert "| first | RuntimeError: out of memory | **NO** |  |  |\n" in report
    assert report.endswith("| second |  | yes | 1,234 | 0.25 |\n")


def test_missing_packages_are_named(monkeypatch, capsys):
    monkeypatch.setattr(device_check, "NEEDED", ("jax", "no-such-package"))
    monkeypatch.setattr(sys, "argv", ["device_check.py"])
    with pytest.raises(SystemExit, match="1"):
        device_check.main()
    assert "not installed: no-such-package; without network" in capsys.readouterr().err
