"""Trains and scores one config under many objectives: which blocks, combined how, masked how.

    python launch/ablate.py --config=configs/medquad_minilm.py [--config.train.steps=30 ...]
        [--objectives "uni(P)" "multi(P,IQ)" ...] [--masks identity faithful]

Each cell of the grid is `inf_jax.train` and `inf_jax.evaluate` in processes of their own, with
`<out_dir>/ablation/<objective>-<mask>` as out_dir; all else is the config's. Given again, it goes
on: finished cells are reused. A cell that fails is reported, and the others run. Writes
`<out_dir>/ablation/ablation.md`, `.json` and `.png`: p-MRR and nDCG@10, the best first.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from inf_jax.config import parse
from inf_jax.core import console
from inf_jax.core.errors import UserError, main_guard
from inf_jax.evaluation.scores import METRICS
from inf_jax.io.atomic import atomic_file
from inf_jax.io.storage import is_bucket
from inf_jax.losses.objective import parse_objective

from .options import make_parser
from .options import parse as parse_options
from .process import checkout_environment
from .report import commit, machine, table

OBJECTIVES = """uni(P) uni(IQ) uni(I) uni(P,IQ) uni(P,I) uni(I,IQ) uni(P,I,IQ) uni(P,IQ,QQ,PP)
multi(P,IQ) multi(P,I) multi(I,IQ) multi(P,I,IQ)""".split()
MASKS = ("identity", "faithful")
DRAWN = "--config.loss.instruction_negatives="
OWN = ("--config.loss.objective=", "--config.loss.mask=", "--config.eval.base_from=")
COLUMNS = {key: METRICS[key] for key in ("p_mrr", "ndcg@10", *METRICS)}  # these two in front
COLOURS = {"identity": "#12708a", "faithful": "#c9803a"}
TAIL = 20  # lines of a failed command


class Cell(NamedTuple):
    """One run of the grid.

    Attributes:
      objective, mask: of the loss.
      flags: of its train and evaluate, eval.base_from apart.
      config: what they come to.
    """

    objective: str
    mask: str
    flags: list[str]
    config: ConfigDict

    @property
    def directory(self) -> Path:
        """Its out_dir."""
        return Path(self.config.out_dir)


class Failed(Exception):
    """A cell's command failed; the message is the end of its output."""


def main() -> None:
    """The command line."""
    parser = make_parser("python launch/ablate.py", __doc__)
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--objectives", nargs="+", default=OBJECTIVES, metavar="OBJECTIVE")
    parser.add_argument("--masks", nargs="+", default=MASKS, choices=MASKS)
    args, overrides = parse_options(parser, sys.argv[1:])
    with main_guard():
        run_grid(args, overrides)


def run_grid(args: argparse.Namespace, overrides: list[str]) -> None:
    """Runs what is missing and writes the table; exit code 1 if a cell failed."""
    common = [f"--config={args.config}", *overrides]
    # of the cells with block I alone: the config's own objective may have none
    config = parse(["ablate", *(flag for flag in common if not flag.startswith(DRAWN))])
    cells = make_cells(config, common, args.objectives, args.masks)
    for cell in cells:
        check_unchanged(cell)
    # one base for all; a finished cell of an earlier call has measured it
    base_from = next((str(c.directory / "eval.json") for c in cells if finished(c)), "")
    results = []
    for number, cell in enumerate(cells, 1):
        say = f"[{number}/{len(cells)}] {cell.objective} {cell.mask}"
        result = {"objective": cell.objective, "mask": cell.mask, "out_dir": str(cell.directory)}
        found = finished(cell)
        try:
            if found:
                print(f"{say}: done before, reused", flush=True)
            else:
                print(f"{say}: training", flush=True)
                started = time.monotonic()
                call(cell, "train")
                call(cell, "evaluate", f"--config.eval.base_from={base_from}")
                found = finished(cell)
                if not found:
                    raise Failed(f"{cell.directory}/eval.json is not of the step that was asked")
                print(f"{say}: {time.monotonic() - started:.0f} s", flush=True)
            base_from = base_from or str(cell.directory / "eval.json")
            results.append(result | {key: found[key] for key in ("base", "trained", "step")})
        except Failed as failure:
            print(f"{say}: FAILED\n{failure}", file=sys.stderr, flush=True)
            results.append(result | {"error": str(failure)})
    publish(config, results)
    failed = [f"{r['objective']} {r['mask']}" for r in results if "error" in r]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed: {'; '.join(failed)} (output above, and "
            "train.log and evaluate.log in their directories); the same command runs them again"
        )


def make_cells(
    config: ConfigDict, flags: Sequence[str], objectives: Sequence[str], masks: Sequence[str]
) -> list[Cell]:
    """The grid over a config, which these flags give; each cell's config checked.

    A cell with block I gets as many instruction negatives a row as config or flags say, or 1; none
    are drawn with the query encoder "attention", nor in the other cells.

    Raises:
      UserError: an impossible objective, mask or key, before anything runs.
    """
    given = [flag for flag in flags if flag.startswith(OWN)]
    if given:
        raise UserError(f"{given[0]}: that is the grid's; narrow it by --objectives and --masks")
    if is_bucket(config.out_dir):
        raise UserError(f"out_dir={config.out_dir}: a grid is for one machine; a local directory")
    cells = []
    said = [flag.removeprefix(DRAWN) for flag in flags if flag.startswith(DRAWN)]
    wanted = said[-1] if said else str(config.loss.instruction_negatives or 1)
    flags = [flag for flag in flags if not flag.startswith(DRAWN)]
    drawn = config.model.query_encoder == "joint"
    for objective in dict.fromkeys(parse_objective(text) for text in objectives):
        slug = re.sub(r"[^A-Za-z0-9.]+", "_", str(objective)).strip("_")
        more = [f"--config.loss.objective={objective}"]
        more += [DRAWN + (wanted if drawn and "I" in objective.blocks else "0")]
        for mask in dict.fromkeys(masks):
            out_dir = Path(config.out_dir) / "ablation" / f"{slug}-{mask}"
            own = [*flags, *more, f"--config.loss.mask={mask}", f"--config.out_dir={out_dir}"]
            cells.append(Cell(str(objective), mask, own, parse(["ablate", *own])))
    return cells


def settings(config: dict) -> dict:
    """What a cell's figures depend on, by key (`train.steps`)."""
    flat = {}
    for name, value in config.items():
        inner = value.items() if isinstance(value, dict) else [(None, value)]
        flat |= {f"{name}.{key}" if key else name: v for key, v in inner if name != "export"}
    flat.pop("eval.base_from", None)  # the same figures, wherever they come from
    return json.loads(json.dumps(flat))  # tuples are lists in the files


def check_unchanged(cell: Cell) -> None:
    """Raises UserError if the cell was begun with other settings: figures would not compare."""
    path, now = cell.directory / "config.json", settings(cell.config.to_dict())
    if not path.exists():
        return
    try:
        was = settings(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete {path.parent}") from None
    keys = [k for k in was | now if was.get(k) != now.get(k)]
    if keys:
        differ = "; ".join(f"{k} was {was.get(k)!r}, is now {now.get(k)!r}" for k in keys)
        raise UserError(
            f"{path}: this cell was begun with other settings ({differ}); restore them, give "
            f"another --config.out_dir, or delete {path.parent}"
        )


def finished(cell: Cell) -> dict | None:
    """The cell's eval.json, if it is of the newest step and of these settings."""
    try:
        found = json.loads((cell.directory / "eval.json").read_text())
    except (OSError, ValueError):
        return None
    same = settings(found["config"]) == settings(cell.config.to_dict())
    return found if same and found["step"] == cell.config.train.steps else None


def call(cell: Cell, main: str, *more: str) -> None:
    """`python -m inf_jax.<main>` of a cell, output to `<main>.log`; raises Failed."""
    cell.directory.mkdir(parents=True, exist_ok=True)
    log = cell.directory / f"{main}.log"
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, "-m", f"inf_jax.{main}", *cell.flags, *more],
            env=quiet | checkout_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-TAIL:])
        raise Failed(f"inf_jax.{main} ended with exit code {done.returncode}:\n{tail}")


def publish(config: ConfigDict, results: list[dict]) -> None:
    """The table on screen and in ablation.md, .json and .png; sorted by p-MRR, base first."""
    directory = Path(config.out_dir) / "ablation"
    right = [r for r in results if "trained" in r]
    right.sort(key=lambda r: r["trained"].get("p_mrr", 0.0), reverse=True)
    wrong = [r for r in results if "error" in r]
    base = right[0]["base"] if right else {}
    columns = {key: label for key, label in COLUMNS.items() if key in base}

    def figures(scores: dict[str, float]) -> list[str]:
        return [f"{scores[key]:.1f}" for key in columns]

    header = ("objective", "mask", *columns.values())
    rows = [["base", "", *figures(base)]] if right else []
    rows += [[r["objective"], r["mask"], *figures(r["trained"])] for r in right]
    rows += [[r["objective"], r["mask"], *(["failed"] * max(len(columns), 1))] for r in wrong]
    header = header if columns else (*header, "result")
    title = (
        f"{config.data.source} {config.eval.split}, {config.train.steps} steps of "
        f"{config.train.batch_size} examples, times 100"
    )
    console.table(f"ablation: {title}", rows, header=header)
    failures = "".join(
        f"\nFailed: {r['objective']}, {r['mask']}\n\n```\n{r['error']}\n```\n" for r in wrong
    )
    where = f"commit {commit()}, {machine(os.cpu_count())}"
    text = f"# Ablation\n\n{title}; {where}.\n\n"
    text += f"{table(header, rows)}\n{failures}"
    found = {"units": "times 100", "base": base, "cells": [*right, *wrong]}
    with atomic_file(directory / "ablation.md") as file:
        file.write(text.encode())
    with atomic_file(directory / "ablation.json") as file:
        file.write(json.dumps(found | {"config": config.to_dict()}, indent=2).encode() + b"\n")
    written = "ablation.md and .json"
    if right and {"p_mrr", "ndcg@10"} <= columns.keys():
        draw(directory / "ablation.png", title, right)
        written = "ablation.md, .json and .png"
    print(f"wrote {directory}/{written}")


def draw(path: Path, title: str, results: list[dict]) -> None:
    """Bars of p-MRR and nDCG@10: an objective a row, the best first, a mask a colour."""
    objectives = list(dict.fromkeys(r["objective"] for r in results))
    masks = [m for m in COLOURS if any(r["mask"] == m for r in results)]
    figure = Figure(figsize=(11, 1.7 + 0.42 * len(objectives)), dpi=150, layout="constrained")
    figure.suptitle(f"ablation: {title}", fontsize=12, fontweight="bold", x=0.01, ha="left")
    height = 0.8 / len(masks)
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("p_mrr", "ndcg@10"), strict=True):
        for number, mask in enumerate(masks):
            mine = [r for r in results if r["mask"] == mask]
            shift = (number - (len(masks) - 1) / 2) * height
            drawn = axes.barh(
                [objectives.index(r["objective"]) + shift for r in mine],
                [r["trained"][key] for r in mine],
                height=height,
                color=COLOURS[mask],
                label=mask,
            )
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # over the base's line
            axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=7, bbox=box)
        axes.axvline(results[0]["base"][key], color="#2b2f36", linestyle="--", label="base")
        axes.set_title(METRICS[key], fontsize=10, loc="left")
        axes.set_yticks(range(len(objectives)), objectives, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    axes.invert_yaxis()  # shared: the best on top
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
