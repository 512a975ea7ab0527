"""Plans all shipped configs: each is compiled ahead of time for its TPUs. No TPU is needed.

    python launch/bench.py plan --write
    python launch/bench.py plan --only scaling/e5_large.py:v5e-1048576
    python launch/bench.py plan --backbones     other model families, with splash and XLA attention

Each plan is `python -m inf_jax.plan` in its own process, and nothing is run. Needs the extra aot
(libtpu).
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inf_jax.core.cli_flags import FlagParser, check_choice

from .paper.cells import paper_config
from .report import ROOT, publish, table

HELP = "memory and step time of each shipped config on its TPUs, by compilation alone"

TAKES_CONFIG = True

# config, topology, slices, config override
PROGRAMS = (
    ("medquad_minilm.py", "v5e:2x2", 1, ""),
    ("inf_ir_e5_base.py", "v5e:2x4", 1, ""),
    *((f"paper/inf_embed.py:{name}", "v5e:2x4", 1, "") for name in paper_config().BACKBONES),
    *((f"scaling/e5_large.py:v5e-{4096 * 4**n}", "v5e:16x16", 1, "") for n in range(5)),
    *((f"scaling/e5_large.py:v5p-{4096 * 4**n}", "v5p:8x8x8", 1, "") for n in range(5)),
    ("scaling/e5_large.py:v5e-1048576", "v5e:16x16", 2, ""),
    *((f"scaling/qwen2_5.py:v5e-{16384 * 4**n}", "v5e:16x16", 1, "") for n in range(4)),
    *((f"scaling/qwen2_5.py:v5p-{16384 * 4**n}", "v5p:8x8x8", 1, "") for n in range(4)),
)
BACKBONES = tuple(
    (f"scaling/backbones.py:{name}", "v5e:16x16", 1, f"model.attention={attention}")
    for name in ("e5-large", "modernbert-large", "qwen2.5-1.5b", "llama-3.1-8b")
    for attention in ("splash", "xla")
)


def add_arguments(parser: FlagParser) -> None:
    """Flags of `bench.py plan`."""
    add = parser.add
    add("--only", "only these, spelled as in the table", many=True, default=[], metavar="CONFIG")
    parser.add_boolean("--backbones", "plan scaling/backbones.py instead")
    add("--cache", "keep plans in DIR and reuse those already there", metavar="DIR")
    parser.add_boolean("--write", "append the table to launch/benchmarks.md")


def main(args: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Plans one config after another and prints the table."""
    known = BACKBONES if args.backbones else PROGRAMS
    names = list(dict.fromkeys(p[0] for p in known))
    for name in args.only:
        check_choice("--only", name, names)
    programs = [p for p in known if not args.only or p[0] in args.only]
    rows = []
    for config, topology, slices, override in programs:
        own = [f"--config.{override}"] if override else []
        result = plan(config, topology, slices, [*own, *overrides], cache=args.cache)
        rows.append(_row(f"{config} {override}".strip(), result))
        print(*rows[-1], sep="; ", flush=True)
    if any("NO" in row for row in rows):
        print("error: a shipped config does not fit its chips, see NO above", file=sys.stderr)
    text = summary(rows, version=_libtpu(), note=result["batch"]["note"].partition(";")[0])
    publish("plan", text, threads=os.cpu_count() or 1, write=args.write)


def plan(
    config: str, topology: str, slices: int, overrides: Sequence[str], *, cache: str | None = None
) -> dict[str, Any]:
    """The JSON of one plan, with `compile_seconds` of the whole process.

    inf_jax.plan writes it also if the program does not fit (exit code 1).

    Raises:
      SystemExit: no plan was written.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = cache or stack.enter_context(tempfile.TemporaryDirectory())
        file = Path(folder).resolve() / plan_file(config, topology, slices, overrides)
        if file.exists():
            return json.loads(file.read_text())
        command = [sys.executable, "-m", "inf_jax.plan", f"--config=configs/{config}"]
        command += [f"--topology={topology}", f"--slices={slices}", f"--json={file}", *overrides]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not file.exists():
            raise SystemExit(f"error: {config} on {topology}: {done.stderr[-2000:]}")
        result = json.loads(file.read_text())
        result["compile_seconds"] = time.perf_counter() - started
        file.write_text(json.dumps(result, indent=2))
    return result


def plan_file(config: str, topology: str, slices: int, overrides: Sequence[str]) -> str:
    """The name of a plan's file in the directory of --cache."""
    return re.sub(r"\W+", "-", f"{config} {topology} {slices} {' '.join(overrides)}") + ".json"


def summary(rows: Sequence[Sequence[str]], *, version: str, note: str) -> str:
    """The Markdown report.

    Args:
      rows: one per plan, from `_row`.
      version: of libtpu.
      note: where the token counts of the texts come from.
    """
    header = (
        "config",
        "chips",
        "pairs per step",
        "GiB needed",
        "fits",
        "model TFLOP",
        "compiled TFLOP",
        "of which kernels",
        "collectives MiB",
        "s per step, roofline",
        "s, compiler's cycles",
        "MFU",
        "examples/s",
        "run h",
        "planned in s",
    )
    return (
        f"`python -m inf_jax.plan`, libtpu {version}; lengths {note}. GiB, TFLOP and MiB are per "
        "chip. Seconds are lower bounds from the roofline model of "
        "`inf_jax/planning/roofline.py`; MFU, examples/s and hours follow from them. The next "
        "column is the compiler's own cycle count at the chip's clock; it has no cycles for "
        "attention kernels, so their roofline seconds are added. Nothing was run.\n\n"
        + table(header, rows)
    )


def _row(config: str, result: dict[str, Any]) -> tuple[str, ...]:
    """The table's cells of one plan."""
    memory, batch = result["hbm"], result["batch"]
    chips = f"{result['slices']} x " if result["slices"] > 1 else ""
    row = (
        config,
        chips + result["topology"],
        f"{batch['pairs']:,.0f}",
        f"{memory['needed'] / 2**30:.2f} of {memory['limit'] / 2**30:.2f}",
        "yes" if memory["fits"] else "NO",
    )
    if "seconds" not in result:
        return (*row, *[""] * 9, f"{result['compile_seconds']:.0f}")
    flops, seconds, rates = result["flops"], result["seconds"], result["rates"]
    moved = sum(c["bytes"] for c in result["collectives"])
    kernels = sum(k["flops"] for k in result["kernels"].values())
    return (
        *row,
        f"{flops['model'] / 1e12:,.2f}",
        f"{flops['compiled'] / 1e12:,.2f}",
        f"{kernels / 1e12:,.2f}" if kernels else "",
        f"{moved / 2**20:,.0f}",
        f"{seconds['step']:.4f}",
        f"{seconds['compiler']:.4f}" if seconds["compiler"] else "",
        f"{rates['mfu']:.1%}",
        f"{rates['examples_per_second']:,.0f}",
        f"{rates['run_hours']:.2f}",
        f"{result['compile_seconds']:.0f}",
    )


def _libtpu() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
