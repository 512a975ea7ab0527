"""Trains and evaluates one config under many objectives and masks, or under any list of overrides.

    python launch/ablate.py --config=configs/medquad_minilm.py [--config.train.steps=30 ...]
        [--objectives "uni(P)" "multi(P,IQ)" ...] [--masks identity faithful]
    python launch/ablate.py --config=configs/medquad_minilm.py --seeds 0 1 2
        --recipes "today:" "slow: optim.lr=5e-5 train.steps=200" "half: average=base,newest"

Each cell of the grid runs `inf_jax.train` and `inf_jax.evaluate` in their own processes, with
out_dir `<out_dir>/ablation/<objective>-<mask>`; everything else comes from the config. The same
command resumes: finished cells are reused. A cell that fails is reported and the others go on.
Writes `<out_dir>/ablation/ablation.md`, `.json` and `.png`: the scores, best p-MRR first.

`--recipes` trains each recipe, `NAME: KEY=VALUE ...`, with each of `--seeds` in its place, and
goes on in the same way; `average=MIXTURE` of a recipe scores what `inf_jax.average --of` makes of
its checkpoints. Writes `<out_dir>/recipes/recipes.md`, `.json` and `.png`: means over the seeds
with intervals, gains over the first recipe (paired by seed), p-MRR against nDCG@10. `--also` names
what else each model is scored on: sources of data.dir, and directories in BEIR's layout.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from ml_collections import ConfigDict

from inf_jax.config.command_line import EXAMPLE, override_check, parse
from inf_jax.config.sections import RunConfig
from inf_jax.core import console
from inf_jax.core.cli_flags import FlagParser, whole_number
from inf_jax.core.errors import UserError, main_guard
from inf_jax.core.query_encoders import query_encoder
from inf_jax.evaluation.scores import METRICS
from inf_jax.io.atomic import atomic_file, atomic_write
from inf_jax.io.storage import is_bucket
from inf_jax.losses.objective import parse_objective

from .cells import COLUMNS, Cell, CellFailedError, call, check_unchanged, finished
from .recipes import compare
from .report import commit, machine, table

OBJECTIVES = """uni(P) uni(IQ) uni(I) uni(P,IQ) uni(P,I) uni(I,IQ) uni(P,I,IQ) uni(P,IQ,QQ,PP)
multi(P,IQ) multi(P,I) multi(I,IQ) multi(P,I,IQ)""".split()
MASKS = ("identity", "faithful")
NEGATIVES = "--config.loss.instruction_negatives="
OF_THE_GRID = ("--config.loss.objective=", "--config.loss.mask=", "--config.eval.base_from=")
COLOURS = {"identity": "#12708a", "faithful": "#c9803a"}


def main() -> None:
    """The command line."""
    with main_guard():
        parser = FlagParser(__doc__, "python launch/ablate.py")
        add = parser.add
        add("--config", "what to train", metavar="NAME", example=EXAMPLE)
        add("--objectives", "of the grid", many=True, default=OBJECTIVES, metavar="OBJECTIVE")
        add("--masks", "of the grid", many=True, default=MASKS, choices=MASKS)
        add("--recipes", "instead of a grid: 'NAME: KEY=VALUE ...'", many=True, metavar="RECIPE")
        add("--seeds", "of the recipes", many=True, of=whole_number, default=[0], metavar="N")
        what = "of the recipes: sources and directories to score too"
        add("--also", what, many=True, default=(), metavar="TASK")
        args, overrides = parser.parse_known(sys.argv[1:], override_check(parser, RunConfig()))
        if args.recipes:
            compare(args, [f"--config={args.config}", *overrides])
            return
        run_grid(args, overrides)


def run_grid(args: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the unfinished cells and writes the report.

    Raises:
      UserError: a cell failed, or was begun with other settings.
    """
    common = [f"--config={args.config}", *overrides]
    # instruction negatives apply only to cells with block I, which this objective may lack
    config = parse(["ablate", *(flag for flag in common if not flag.startswith(NEGATIVES))])
    cells = make_cells(config, common, args.objectives, args.masks)
    for cell in cells:
        check_unchanged(cell)
    # the base model is evaluated once, by the first cell to finish, perhaps in an earlier call
    base_from = next((str(c.directory / "eval.json") for c in cells if finished(c)), "")
    results = []
    for number, cell in enumerate(cells, 1):
        label = f"[{number}/{len(cells)}] {cell.objective} {cell.mask}"
        result = {"objective": cell.objective, "mask": cell.mask, "out_dir": str(cell.directory)}
        scores = finished(cell)
        try:
            if scores:
                print(f"{label}: already finished, reused", flush=True)
            else:
                print(f"{label}: training", flush=True)
                started = time.monotonic()
                call(cell, "train")
                call(cell, "evaluate", f"--config.eval.base_from={base_from}")
                scores = finished(cell)
                if not scores:
                    raise CellFailedError(f"{cell.directory}/eval.json is of another step")
                print(f"{label}: {time.monotonic() - started:.0f} s", flush=True)
            base_from = base_from or str(cell.directory / "eval.json")
            results.append(result | {key: scores[key] for key in ("base", "trained", "step")})
        except CellFailedError as failure:
            print(f"{label}: FAILED\n{failure}", file=sys.stderr, flush=True)
            results.append(result | {"error": str(failure)})
    write_report(config, results)
    failed = [f"{r['objective']} {r['mask']}" for r in results if "error" in r]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed: {'; '.join(failed)} (see above, and "
            "train.log and evaluate.log in their directories); the same command tries them again"
        )


def make_cells(
    config: ConfigDict, flags: Sequence[str], objectives: Sequence[str], masks: Sequence[str]
) -> list[Cell]:
    """The cells of the grid, each with its config checked.

    A cell with block I samples as many instruction negatives per row as the config or the flags
    say, else 1. The other cells, and those with the query encoder "attention", sample none.

    Args:
      config: what `flags` give.
      flags: `--config=FILE` and the overrides of the command line.
      objectives, masks: the two sides of the grid.

    Raises:
      UserError: an impossible objective, mask or key, before anything runs.
    """
    given = [flag for flag in flags if flag.startswith(OF_THE_GRID)]
    if given:
        raise UserError(f"{given[0]}: the grid sets this key; choose by --objectives and --masks")
    if is_bucket(config.out_dir):
        raise UserError(
            f"out_dir={config.out_dir}: a grid runs on one machine; give a local directory"
        )
    cells = []
    given = [flag.removeprefix(NEGATIVES) for flag in flags if flag.startswith(NEGATIVES)]
    negatives = given[-1] if given else str(config.loss.instruction_negatives or 1)
    flags = [flag for flag in flags if not flag.startswith(NEGATIVES)]
    sampled = query_encoder(config.model.query_encoder).samples_instructions
    for objective in dict.fromkeys(parse_objective(text) for text in objectives):
        slug = re.sub(r"[^A-Za-z0-9.]+", "_", str(objective)).strip("_")
        loss = [f"--config.loss.objective={objective}"]
        loss += [NEGATIVES + (negatives if sampled and "I" in objective.blocks else "0")]
        for mask in dict.fromkeys(masks):
            out_dir = Path(config.out_dir) / "ablation" / f"{slug}-{mask}"
            own = [*flags, *loss, f"--config.loss.mask={mask}", f"--config.out_dir={out_dir}"]
            cells.append(Cell(str(objective), mask, own, parse(["ablate", *own])))
    return cells


def write_report(config: ConfigDict, results: list[dict]) -> None:
    """Prints the table and writes ablation.md, .json and .png: the base first, then by p-MRR."""
    directory = Path(config.out_dir) / "ablation"
    scored = [r for r in results if "trained" in r]
    scored.sort(key=lambda r: r["trained"].get("p_mrr", 0.0), reverse=True)
    failed = [r for r in results if "error" in r]
    base = scored[0]["base"] if scored else {}
    columns = {key: label for key, label in COLUMNS.items() if key in base}

    def figures(scores: dict[str, float]) -> list[str]:
        return [f"{scores[key]:.1f}" for key in columns]

    header = ("objective", "mask", *columns.values())
    rows = [["base", "", *figures(base)]] if scored else []
    rows += [[r["objective"], r["mask"], *figures(r["trained"])] for r in scored]
    rows += [[r["objective"], r["mask"], *(["failed"] * max(len(columns), 1))] for r in failed]
    header = header if columns else (*header, "result")
    title = (
        f"{config.data.source} {config.eval.split}, {config.train.steps} steps of "
        f"{config.train.batch_size} pairs, times 100"
    )
    console.table(f"ablation: {title}", rows, header=header)
    failures = "".join(
        f"\nFailed: {r['objective']}, {r['mask']}\n\n```\n{r['error']}\n```\n" for r in failed
    )
    where = f"commit {commit()}, {machine(os.cpu_count())}"
    text = f"# Ablation\n\n{title}; {where}.\n\n"
    text += f"{table(header, rows)}\n{failures}"
    report = {"units": "times 100", "base": base, "cells": [*scored, *failed]}
    atomic_write(directory / "ablation.md", text)
    data = json.dumps(report | {"config": config.to_dict()}, indent=2)
    atomic_write(directory / "ablation.json", data + "\n")
    written = "ablation.md and .json"
    if scored and {"p_mrr", "ndcg@10"} <= columns.keys():
        draw_scores(directory / "ablation.png", title, scored)
        written = "ablation.md, .json and .png"
    print(f"wrote {directory}/{written}")


def draw_scores(path: Path, title: str, results: list[dict]) -> None:
    """Draws bars of p-MRR and nDCG@10: one row per objective, best first; one colour per mask."""
    objectives = list(dict.fromkeys(r["objective"] for r in results))
    masks = [m for m in COLOURS if any(r["mask"] == m for r in results)]
    figure = Figure(figsize=(11, 1.7 + 0.42 * len(objectives)), dpi=150, layout="constrained")
    figure.suptitle(f"ablation: {title}", fontsize=12, fontweight="bold", x=0.01, ha="left")
    height = 0.8 / len(masks)
    for axes, key in zip(figure.subplots(1, 2, sharey=True), ("p_mrr", "ndcg@10"), strict=True):
        for number, mask in enumerate(masks):
            rows = [r for r in results if r["mask"] == mask]
            shift = (number - (len(masks) - 1) / 2) * height
            bars = axes.barh(
                [objectives.index(r["objective"]) + shift for r in rows],
                [r["trained"][key] for r in rows],
                height=height,
                color=COLOURS[mask],
                label=mask,
            )
            box = {
                "facecolor": "white",
                "edgecolor": "none",
                "pad": 0.5,
            }  # drawn over the line of the base
            axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=7, bbox=box)
        axes.axvline(results[0]["base"][key], color="#2b2f36", linestyle="--", label="base")
        axes.set_title(METRICS[key], fontsize=10, loc="left")
        axes.set_yticks(range(len(objectives)), objectives, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
    axes.invert_yaxis()  # shared: the best on top
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
