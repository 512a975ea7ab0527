"""Reports of benchmarks: Markdown tables, the machine and commit, and launch/benchmarks.md."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REPORT = ROOT / "launch" / "benchmarks.md"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table with aligned columns: the first one to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return f"| {' | '.join([first, *rest])} |"

    rule = "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])])
    return "\n".join([line(cells[0]), f"|{rule}|", *map(line, cells[1:])])


def machine(threads: int) -> str:
    """The machine in words: processor, cores (and how many were used), memory, system, Python."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores ({threads} used), "
        f"{memory:.0f} GiB, Linux, Python {platform.python_version()}"
    )


def commit() -> str:
    """The short hash of the checked-out commit, with a note if the working tree differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    revision = git("rev-parse", "--short", "HEAD") or "none"
    return revision + (" with changes" if git("status", "--porcelain") else "")


def publish(title: str, text: str, *, threads: int, write: bool) -> None:
    """Prints a result; with `write` also appends it to launch/benchmarks.md."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    section = (
        f"## {title}\n\n`python launch/bench.py {shlex.join(sys.argv[1:])}`\n\n"
        f"{today}, commit {commit()}. {machine(threads)}.\n\n{text.rstrip()}\n"
    )
    print(section)
    if not write:
        return
    old = REPORT.read_text() if REPORT.exists() else "# Benchmarks\n\nMade by launch/bench.py.\n"
    REPORT.write_text(f"{old.rstrip()}\n\n{section}")
    print(f"appended to {REPORT.relative_to(ROOT)}")
