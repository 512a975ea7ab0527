"""launch/bench.py: its command line, and the benchmarks without tests of their own."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from inf_jax.core.cli_flags import FlagParser
from launch.bench import command_line, plan
from launch.bench.command_line import COMMANDS

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


def bench(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, LAUNCH / "bench.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def test_the_script_runs_from_any_directory(tmp_path):
    done = bench("--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(f"bench.py {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name):
    parser = FlagParser("")
    COMMANDS[name].add_arguments(parser)
    assert COMMANDS[name].HELP
    for action in parser._parser._actions:
        assert len((action.help or "").split()) > 1 or action.help == argparse.SUPPRESS, action.dest
        assert not any("_" in flag for flag in action.option_strings)


def test_config_overrides(monkeypatch):
    given = []
    monkeypatch.setattr(plan, "main", lambda args, overrides: given.extend([args.only, overrides]))
    command_line.main(["plan", "--only", "a_b", "--config.train.batch_size=3"])
    assert given == [["a_b"], ["--config.train.batch_size=3"]]


def test_factory_reports():
    done = bench("factory", "--records=100")
    assert done.returncode == 0, done.stderr
    assert "`python launch/bench.py factory --records=100`" in done.stdout
    assert done.stdout.count("\n| ") == 11  # header and ten rows
    assert "from 10 to 100 records" in done.stdout
