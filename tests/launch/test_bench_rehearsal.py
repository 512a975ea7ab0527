"""Memory and rate of synthetic pairs, end to end: what is measured and said."""

import sys

import pytest

from inf_jax.config.command_line import parse
from inf_jax.config.defaults import run_config
from inf_jax.losses.objective import parse_objective
from launch.bench.rehearsal import _flags, measure, row


def test_a_part_is_measured_by_what_its_process_used(tmp_path):
    log = tmp_path / "part.log"
    code = "import time; x = bytearray(64 << 20); x[::4096] = bytes([1]) * len(x[::4096]); print(7)"
    used = measure([sys.executable, "-S", "-c", code], log=log)
    assert log.read_text() == "7\n"
    assert used.peak >= 64 << 20 and used.seconds > 0
    assert row(1000, "build", 500, used._replace(seconds=2.0, peak=1 << 20), 2.0) == (
        *("1,000", "build", "500", "2", f"{used.cpu_seconds:,.0f}", "250", "1"),
    )
    with pytest.raises(SystemExit, match=r"no such pairs\nerror: .*ended with exit code 1"):
        measure([sys.executable, "-S", "-c", "raise SystemExit('no such pairs')"], log=log)


def test_the_parts_take_the_config_of_plain_pairs(tmp_path):
    config = run_config(parse(["rehearsal", *_flags(tmp_path)]))
    objective = parse_objective(config.loss.objective)
    assert "I" not in objective.blocks and not config.loss.instruction_negatives
    assert config.data.shuffle == "windows"
