"""Makes the paper's results again: data, training, export, benchmarks, and a table beside it.

    python launch/reproduce.py --inf-ir=downloads/inf_ir --data-dir=/data/hub
    python launch/reproduce.py --inf-ir=downloads/inf_ir --data-dir=/data/hub --questions
    python launch/reproduce.py --smoke [--questions]

The grid trains the nine backbones of the paper's code with its twelve losses and its hyper-
parameters (configs/paper/inf_embed.py); --backbones and --objectives choose. --questions answers,
on one backbone, what its reviewers asked: the same rows without instructions; the corpus before its
filter; Promptriever's data at equal size; 0 to 8 instruction negatives, with seconds a step; the
attention encoder; noisy instructions; three seeds, by instruction type. --smoke runs all of it with
tiny models on a laptop, in minutes; its scores mean nothing.

Every step is a command of inf_jax or data_pipeline in a process of its own, with its log beside its
results. The same command goes on where it stopped; a run that fails is reported and the others go
on. Writes OUT_DIR/grid.md, .json and .png, or OUT_DIR/questions.md and .json. Flags
--config.KEY=VALUE change every run.
"""

import argparse
import sys
from pathlib import Path

from inf_jax.config.command_line import override_check
from inf_jax.config.sections import RunConfig
from inf_jax.core.cli_flags import FlagParser, at_least, names_among
from inf_jax.core.errors import UserError, main_guard
from inf_jax.text.noise import RULES

from . import data, smoke
from .cells import SEEDS, WITHOUT, Asked, Cell, grid, paper_config, questions
from .results import write_grid, write_questions
from .runs import Settings, build, failed, result


def main() -> None:
    """The command line."""
    with main_guard():
        parser = _flags()
        reproduce(*parser.parse_known(sys.argv[1:], override_check(parser, RunConfig())))


def reproduce(args: argparse.Namespace, overrides: list[str]) -> None:
    """Runs the cells that are not finished and writes the tables.

    Raises:
      UserError: files are missing, or a run failed.
    """
    _refuse_idle_flags(args)
    settings = _settings(args, overrides)
    for name in ("inf_ir", "unfiltered", "promptriever"):
        if getattr(args, name) or name == "inf_ir":
            data.check(name, getattr(args, name))
    build(settings, "inf_ir", ["--source=inf_ir", f"--path-train={args.inf_ir}"])
    if args.questions:
        rows = settings.out_dir / f"{WITHOUT}.jsonl"
        if not rows.exists():
            data.pairs_without_instructions(args.inf_ir, rows)
        build(settings, WITHOUT, ["--source=fields", f"--path-train={rows}"])
        if args.unfiltered:
            build(settings, "unfiltered", ["--source=inf_ir", f"--path-train={args.unfiltered}"])
        if args.promptriever:
            rows = settings.out_dir / f"promptriever-{args.promptriever_rows}.jsonl"
            if not rows.exists():
                count = data.instructed_rows(args.promptriever, rows, args.promptriever_rows)
                print(f"{count:,} rows of Promptriever")
            flags = ["--source=fields", f"--path-train={rows}"]
            build(settings, "promptriever", flags)
        asked = Asked(bool(args.unfiltered), bool(args.promptriever), tuple(args.noises))
        if args.smoke:
            asked = asked._replace(negatives=(0, 1), seeds=(0, 1))
        cells = questions(args.backbones[0], asked)
    else:
        cells = grid(args.backbones, args.objectives, args.seeds)
    results, failures = [], []
    for number, cell in enumerate(cells, 1):
        print(f"[{number}/{len(cells)}] {cell.backbone} {cell.question} {cell.name}", flush=True)
        try:
            results.append((cell, result(settings, cell)))
        except UserError as error:
            failed(cell, error)
            failures.append(cell)
    write = write_questions if args.questions else write_grid
    write(settings.out_dir, results)
    if failures:
        raise UserError(
            f"{len(failures)} of {len(cells)} runs failed: {'; '.join(map(_name, failures))} (see "
            "above, and the logs in their directories); the same command tries them again"
        )


def _refuse_idle_flags(args: argparse.Namespace) -> None:
    """UsageError for flags of the grid with --questions, of these without, files with --smoke."""
    parser = _flags()
    of_questions = ("unfiltered", "promptriever", "promptriever_rows", "noises")
    if args.smoke:
        files = (*of_questions[:-1], "inf_ir", "suite", "data_dir")
        parser.refuse_idle(args, files, "--smoke has files of its own")
    if args.questions:
        parser.refuse_idle(args, ("objectives", "seeds"), "--questions has its own")
    else:
        parser.refuse_idle(args, of_questions, "there is no --questions")


def _settings(args: argparse.Namespace, overrides: list[str]) -> Settings:
    """The settings of all cells; with --smoke also puts tiny files into `args`."""
    known = paper_config()
    out_dir = Path(args.out_dir or ("out/paper_smoke" if args.smoke else "out/paper")).resolve()
    args.backbones = args.backbones or list(smoke.BACKBONES if args.smoke else known.BACKBONES)
    if args.questions:
        args.backbones = args.backbones[:1]
    args.objectives = args.objectives or list(smoke.OBJECTIVES if args.smoke else known.OBJECTIVES)
    keys = tuple(flag.removeprefix("--config.") for flag in overrides)
    if not args.smoke:
        benchmark = (f"--suite={','.join(args.suite)}", f"--data-dir={args.data_dir}")
        return Settings(out_dir, keys, {}, benchmark)
    args.inf_ir = args.unfiltered = str(smoke.data(out_dir / "files"))
    rows = out_dir / "files" / "rows_of_promptriever.jsonl"
    args.promptriever = str(smoke.promptriever(Path(args.inf_ir), rows))
    models = {
        name: str(smoke.model(known.BACKBONES[name].model, out_dir / "models" / name))
        for name in args.backbones
    }
    return Settings(out_dir, (*smoke.KEYS, *keys), models, smoke.BENCHMARK)


def _name(cell: Cell) -> str:
    return " ".join(filter(None, (cell.backbone, cell.question, cell.name)))


def _flags() -> FlagParser:
    known = paper_config()
    parser = FlagParser(__doc__, "python launch/reproduce.py")
    add = parser.add
    add("--inf-ir", "the released corpus: a file, or a directory of them", default="")
    add("--unfiltered", "the same before its filter, for --questions", default="")
    add("--promptriever", "Promptriever's training rows, for --questions", default="")
    add(
        "--promptriever-rows",
        "how many of them: as many as InF-IR's pairs",
        default=3 * known.EXAMPLES,
        of=at_least(1),
        metavar="N",
    )
    parser.add_boolean("--questions", "the reviewers' questions in place of the grid")
    parser.add_boolean("--smoke", "tiny models, data and benchmark: to try all commands")
    choices = tuple(known.BACKBONES)
    add("--backbones", "of the grid; --questions takes the first", many=True, choices=choices)
    add("--objectives", "of the grid", many=True, choices=known.OBJECTIVES)
    add("--seeds", "of the grid, pooled", many=True, of=at_least(0), default=[SEEDS[0]])
    add("--noises", "of --questions", many=True, choices=tuple(RULES), default=tuple(RULES))
    add("--suite", "benchmarks", default=["followir"], of=names_among(()), metavar="NAMES")
    add("--data-dir", "where the benchmarks' files are", default=".", metavar="DIR")
    add("--out-dir", "default: out/paper, with --smoke out/paper_smoke", default="")
    return parser
