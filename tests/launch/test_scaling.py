"""launch/scaling.py: plans a series, trains what fits."""

import subprocess
import sys

from launch import scaling


def test_series_refuses_what_does_not_fit(monkeypatch, capsys):
    ran = []

    def run(command, **_):
        ran.append(command[2:])
        unfit = command[2] == "inf_jax.plan" and "v5p-4096" in command[3]
        return subprocess.CompletedProcess(command, int(unfit))

    monkeypatch.setattr(scaling.subprocess, "run", run)
    names = ["v5e-4096", "v5p-4096", "v5e-16384"]
    arguments = [*names, "--run", "--query_tokens=9", "--", "--config.seed=1"]
    monkeypatch.setattr(sys, "argv", ["scaling.py", *arguments])
    assert scaling.main() == 1
    output = capsys.readouterr().out
    assert [c[0].partition(".")[2] for c in ran] == ["plan", "train", "plan", "plan", "train"]
    assert ran[0][2:] == ["--topology=v5e:16x16", "--query_tokens=9", "--config.seed=1"]
    assert ran[1][1].endswith("v5e-4096") and ran[1][2:] == ["--config.seed=1"]
    assert ran[2][2] == "--topology=v5p:8x8x8"
    assert [line.split()[0] for line in output.splitlines()[-3:]] == [
        "trained",
        "REFUSED",
        "trained",
    ]
