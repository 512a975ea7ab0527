"""launch/bench.py loss: contenders must agree, and are reported."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from launch.bench.loss import agree
from launch.bench.loss_aot import PROGRAMS, _trace, demanded
from launch.bench.loss_figure import draw

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
COMMAND = [sys.executable, LAUNCH / "bench.py", "loss"]


def test_disagreement_ends_the_run():
    agree({"torch": {"loss": 1.0}, "one-dense": {"loss": 1.00009}}, "here")
    with pytest.raises(
        SystemExit, match=r"here: loss is 1\.0002 in inf_jax dense, 1\.0 in PyTorch"
    ):
        agree({"torch": {"loss": 1.0}, "one-dense": {"loss": 1.0002}}, "here")
    with pytest.raises(SystemExit, match="nan"):
        agree({"torch": {"loss": 1.0}, "one-dense": {"loss": float("nan")}}, "here")


def test_picture(tmp_path):
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
        [*COMMAND, "--batches=64,100", "--dim=16", "--rounds=1", "--full=64"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "agree within 0.0001" in done.stdout
    tables = done.stdout.split("\n\n")
    seconds = tables[tables.index("multi(P,IQ), seconds:") + 1]
    cells = {
        row.split("|")[1].strip(): [x.strip() for x in row.split("|")[2:4]]
        for row in seconds.splitlines()[2:]
    }
    assert all(float(x) > 0 for x in cells["PyTorch, dense"] + cells["inf_jax blockwise"])
    assert cells["inf_jax ring, 8 devices"][1] == "not a multiple of 8"
    cached = [row[1] for name, row in cells.items() if name.startswith("sentence")]
    assert len(cached) == 3 and sum(x != "" for x in cached) == 1  # the fastest goes on
    second = tables[tables.index("uni(P), seconds:") + 1]
    assert "100" not in second.splitlines()[0]  # above --full the first objective only


def test_what_a_refused_program_would_need():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (38.03G) exceeds available HBM (15.75G)."
    )
    assert demanded(message) == {"demand": 38.03 * 2**30, "limit": 15.75 * 2**30}
    with pytest.raises(SystemExit, match="INTERNAL"):
        demanded("INTERNAL: something else")


@pytest.mark.parametrize(("engine", "variant"), PROGRAMS)
def test_programs_for_tpus_are_traced(engine, variant, monkeypatch):
    from jax.experimental import topologies

    devices = SimpleNamespace(devices=jax.devices())  # in place of a TPU's: 8 of the CPU
    monkeypatch.setattr(topologies, "get_topology_desc", lambda **_: devices)
    program = {"topology": "v5e:2x4", "batch": 64, "engine": engine, "variant": variant}
    traced, flops = _trace(program, dim=16)
    assert traced.jaxpr.in_avals[0].shape == (64, 16)
    assert flops == pytest.approx((6 if engine == "dense" else 4) * 2 * 64 * 64 * 16 / 8)
