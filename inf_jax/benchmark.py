"""Scores any model on public benchmarks and on directories of your own, beside others.

    python -m inf_jax.benchmark --model=out/medquad_minilm/export --suite=followir,bright \\
        --data-dir=/data/hub --baseline=sentence-transformers/all-MiniLM-L6-v2,bm25

--suite names public benchmarks (followir, mfollowir, instructir, ifir, bright, nanobeir, beir,
nevir, mair, infosearch), retrieval tasks of mteb (NFCorpus), and directories in BEIR's layout, with
instructions and changed judgements where given (inf_jax/benchmarks/beir_files.py). Public ones are
read from --data-dir, where `hf download` puts them; a message says how. Several models of --model,
separated by commas, are seeds of one run and count as one. Prints the template that each model's
queries had, the scores times 100 and the difference from each baseline with its 95 % interval
(paired bootstrap over questions), and writes OUT_DIR/scores.json, per_query.parquet and
benchmark.png. --noise also scores every model on perturbed instructions and shows what each metric
loses. --inspect also writes OUT_DIR/inspect.html: the 50 queries whose ranks changed most from the
first baseline to the model, and between two instructions of a query, with their passages side by
side.
"""

import argparse
import functools
import sys
from pathlib import Path

from inf_jax.benchmarks.bootstrap import DRAWS
from inf_jax.benchmarks.contenders import BM25, ModelOptions, check_models, score_model
from inf_jax.benchmarks.placement import PLACEMENTS
from inf_jax.benchmarks.report.files import write_results
from inf_jax.benchmarks.report.inspect import write_inspection
from inf_jax.benchmarks.report.rows import compare_models
from inf_jax.benchmarks.report.tables import print_noise, print_tables
from inf_jax.benchmarks.suites import task_sources
from inf_jax.core.choices import ATTENTION_MASKS, DTYPES, IDENTICAL_IDS
from inf_jax.core.cli_flags import FlagParser, at_least, names_among
from inf_jax.core.errors import UsageError, main_guard
from inf_jax.io import storage
from inf_jax.io.paths import is_url
from inf_jax.models.hf.resolve import resolve_model
from inf_jax.text.noise import RULES
from inf_jax.text.templates import TextConfig
from inf_jax.training.run_model import has_checkpoints, is_run, open_model


def main(argv: list[str]) -> None:
    """Runs the command line, given without the program's name.

    Raises:
      UserError: no such model, task or file, or one that cannot be scored.
    """
    parser = _flags()
    args = parser.parse(argv)
    if args.query_template:
        if BM25 in args.model:
            raise UsageError("command line: --query-template with --model=bm25; leave it out")
        TextConfig(query_template=args.query_template)
    models = [*args.model, *args.baseline]
    check_models(models, is_run)
    _refuse_same(models)
    if not any(map(has_checkpoints, models)):
        parser.refuse_idle(args, ["checkpoint"], "no model is the out_dir of a run")
    if set(models) == {BM25}:
        parser.refuse_idle(args, ["dtype", "mask", "placement"], "no model but bm25")
    labels = _labels(args.model, args.baseline)
    out_dir = storage.as_path(args.out_dir)
    storage.check_access(out_dir)
    sources = task_sources(
        args.suite, Path(args.data_dir), split=args.split, identical_ids=args.identical_ids
    )
    if all(source.suite != "local" for source in sources):
        why = "of directories alone, and --suite names none"
        parser.refuse_idle(args, ["split", "identical_ids"], why)
    options = ModelOptions(
        args.placement, args.dtype, args.mask, args.noise, args.seed, args.inspect
    )
    scores = {}
    for number, (label, names) in enumerate(labels.items()):
        template = args.query_template if number == 0 else ""
        open_it = functools.partial(open_model, which=args.checkpoint)
        each = [
            score_model(name, sources, options, open_model=open_it, template=template)
            for name in names
        ]
        scores[label] = {source.name: [one[source.name] for one in each] for source in sources}
    compared = compare_models(scores, draws=args.draws, seed=args.seed)
    print_tables(compared)
    if args.noise:
        print_noise(compared)
    settings = {
        "models": labels,
        "suite": args.suite,
        "split": args.split,
        "checkpoint": args.checkpoint,
        "placement": args.placement,
        "dtype": args.dtype,
        "draws": args.draws,
        "seed": args.seed,
        "noise": args.noise,
    }
    write_results(out_dir, compared, settings)
    print(f"wrote {out_dir}/scores.json, per_query.parquet and benchmark.png")
    if args.inspect:
        write_inspection(out_dir / "inspect.html", compared, sources)
        page = out_dir / "inspect.html"
        local = "" if storage.is_bucket(args.out_dir) else f": {page.resolve().as_uri()}"
        print(f"wrote {page}, to open in a browser{local}")


def _refuse_same(models: list[str]) -> None:
    """UsageError if two names are one model, whose differences would be none."""
    places: dict[str, str] = {}
    for name in models:
        place = name.rstrip("/")
        if name != BM25 and not is_url(name):
            path = Path(name).expanduser() if is_run(name) else resolve_model(name)
            place = str(path.resolve())
        if place in places:
            raise UsageError(
                "command line: the same model is named twice"
                + (f", {places[place]} and {name}" if places[place] != name else f", {name}")
                + "; leave one out"
            )
        places[place] = name


def _labels(models: list[str], baselines: list[str]) -> dict[str, list[str]]:
    """Short label -> models: the last two parts of a path, if they tell the models apart."""
    short = ["/".join(name.rstrip("/").split("/")[-2:]) for name in (*models, *baselines)]
    if len(set(short)) < len(short):
        short = [*models, *baselines]
    of_models, others = short[: len(models)], short[len(models) :]
    first = of_models[0] if len(models) == 1 else f"{len(models)} seeds"
    return {first: models} | {label: [n] for label, n in zip(others, baselines, strict=True)}


def _flags() -> FlagParser:
    rules = "\n".join(f"  {kind}: {rule}" for kind, rule in RULES.items())
    flags = FlagParser(
        __doc__, "python -m inf_jax.benchmark", more_help=f"noise in instructions:\n{rules}"
    )
    names = names_among(())
    flags.add(
        "--model",
        "directory, a run's out_dir, hub id, package:MODULE/PATH, bm25; with commas: seeds of one",
        of=_some(names),
        metavar="MODEL",
        example="out/medquad_minilm/export",
    )
    flags.add(
        "--suite",
        "benchmarks, tasks of mteb or directories, separated by commas",
        of=_some(names),
        metavar="SUITE",
        example="followir",
    )
    flags.add("--baseline", "models to compare with, as --model", default=[], of=names)
    flags.add(
        "--checkpoint",
        "of models that are runs: newest, best (needs train.keep_best) or a step",
        default="newest",
    )
    flags.add("--data-dir", "where the public benchmarks' files are", default=".", metavar="DIR")
    flags.add("--out-dir", "where results go", default="out/benchmark", metavar="DIR")
    flags.add("--split", "of directories: the file in qrels", default="test")
    flags.add(
        "--identical-ids",
        "of directories whose query ids are document ids: is a query's own document a result",
        choices=IDENTICAL_IDS,
    )
    flags.add(
        "--placement",
        "of instructions: as the benchmark's own code, as mteb, or the model's own template",
        default="benchmark",
        choices=PLACEMENTS,
    )
    flags.add(
        "--query-template",
        "of --model, for all tasks: 'Instruct: {instruction}\\nQuery: {query}'",
        default="",
        of=lambda text: text.replace("\\n", "\n"),
    )
    flags.add("--dtype", "of the computation", default="float32", choices=DTYPES)
    flags.add("--mask", "attention mask of the models", default="model", choices=ATTENTION_MASKS)
    flags.add("--draws", "of the bootstrap", default=DRAWS, of=at_least(1))
    flags.add("--seed", "of the bootstrap and the noise", default=0, of=at_least(0))
    flags.add(
        "--noise",
        f"kinds of noise in instructions to score as well: {', '.join(RULES)}",
        default=[],
        of=names_among(RULES),
    )
    flags.add_boolean("--inspect", "also write inspect.html, to look at what changed")
    return flags


def _some(convert):
    """`convert`, and an error where it gives nothing."""

    def checked(text: str) -> list[str]:
        if not (found := convert(text)):
            raise argparse.ArgumentTypeError("names nothing")
        return found

    return checked


if __name__ == "__main__":
    with main_guard():
        main(sys.argv[1:])
