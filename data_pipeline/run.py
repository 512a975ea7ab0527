"""The triplet factory: from <query, passage> pairs to a validated corpus in TFRecords.

    python -m data_pipeline.run --config=configs/data_msmarco.py --dry-run
    python -m data_pipeline.run --config=configs/data_msmarco.py --max-usd=20

Stages: pairs, generate, filter, judge, score, corpus, report, build. A run may be killed and run
again at any time: stages with unchanged input and settings are reused, and no request that has an
answer is sent again. Corpus, report, audit page and journal are in `config.out_dir`.
"""

import contextlib
import importlib.util
import shlex
import sys

from rich.console import Console
from rich.table import Table

from inf_jax.config.command_line import command_line, parse_flags, say_idle
from inf_jax.config.resume import save_resolved
from inf_jax.core.cli_flags import FlagParser, at_least, names_among, number
from inf_jax.core.errors import UsageError, main_guard
from inf_jax.io.atomic import atomic_write

# The extra `pipeline` of setup.py; some of it is first imported in the middle of a run.
_EXTRA = ("datasketch", "httpx2", "ijson", "jinja2", "openai", "py3langid", "pydantic")
if missing := [name for name in _EXTRA if importlib.util.find_spec(name) is None]:
    sys.exit(f"error: not installed: {', '.join(missing)}; run pip install 'inf_jax[pipeline]'")

from data_pipeline.config import FactoryConfig, check_factory, factory_config, idle  # noqa: E402
from data_pipeline.report.tables import report_tables  # noqa: E402
from data_pipeline.stages.factory import STAGES, Factory  # noqa: E402


def main(argv: list[str]) -> None:
    """Runs a factory; a UserError is printed as one line, with exit code 1."""
    with main_guard():
        _run(argv)


def _run(argv: list[str]) -> None:
    resolved, own = parse_flags(
        argv, __doc__, sections=FactoryConfig(), example="data_msmarco", define=_define
    )
    if own["dry_run"] and own["stages"]:
        raise UsageError("--stages: the estimate of --dry-run is of all stages; leave it out")
    check_factory(resolved)
    say_idle(idle(resolved))
    stages = [stage for stage in STAGES if stage in (own["stages"] or STAGES)]
    names = ("max_usd", "forget_batches", "retry_rejected")
    factory = Factory(factory_config(resolved), **{name: own[name] for name in names})
    with contextlib.closing(factory):
        if own["dry_run"]:
            factory.run(["pairs"])
            _show_estimate(factory)
            return
        save_resolved(resolved, factory.out_dir / "config.json")
        atomic_write(factory.out_dir / "command.txt", command_line() + "\n")
        try:
            factory.run(stages)
        finally:
            _show_end(factory)


def _define(parser: FlagParser) -> None:
    text = "estimate the cost of the requests left, and send nothing"
    parser.add_boolean("--dry-run", text)
    text = "cap on the cost of the corpus over all its runs, active requests included"
    parser.add("--max-usd", text, of=at_least(0, number), metavar="X")
    text = "give up the batches of earlier runs; their possible cost stays counted"
    parser.add_boolean("--forget-batches", text)
    text = "ask again what the endpoint rejected in earlier runs, e.g. for its content"
    parser.add_boolean("--retry-rejected", text)
    text = f"run only these, of {','.join(STAGES)}"
    parser.add("--stages", text, of=names_among(STAGES), default=[], metavar="NAME,NAME")


def _show_end(factory: Factory) -> None:
    """Prints the report and where the outputs are, for the stages that were run."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if factory.report:
        for table in report_tables(factory.report).values():
            console.print(table.terminal())
        console.print(f"audit page, for a human review: {factory.out_dir / 'audit.html'}")
        console.print(f"corpus: {factory.out_dir / 'corpus' / 'train.jsonl'}, with DATA_CARD.md")
    if factory.dataset:
        command = ["python", "-m", "inf_jax.train", "--config=medquad_minilm"]
        command += ["--config.data.source=factory"]
        command += [f"--config.data.dir={factory.dataset.parents[2]}"]
        command += [f"--config.out_dir={factory.out_dir / 'run'}"]
        text = f"dataset: {factory.dataset}; to train on it:\n  {shlex.join(command)}"
        console.print(text)


def _show_estimate(factory: Factory) -> None:
    table = Table(title="requests left (estimated)", title_justify="left")
    for name in ("stage", "model", "answered", "requests", "tokens in", "tokens out", "USD"):
        table.add_column(name, justify="left" if name in ("stage", "model") else "right")
    estimates = factory.estimate()
    for one in estimates:
        numbers = (one.known, one.requests, one.prompt_tokens, one.completion_tokens)
        table.add_row(one.stage, one.model, *(f"{n:,.0f}" for n in numbers), f"{one.usd:.2f}")
    table.add_section()
    table.add_row("", "", "", "", "", "", f"{sum(one.usd for one in estimates):.2f}")
    Console(highlight=False).print(table)
    print(f"spent so far: {factory.journal.spent()[0]:.2f} USD; nothing was sent")


if __name__ == "__main__":
    main(sys.argv)
