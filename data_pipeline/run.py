"""The triplet factory: from <query, passage> pairs to a validated corpus in TFRecords.

    python -m data_pipeline.run --config=configs/data_msmarco.py --dry-run
    python -m data_pipeline.run --config=configs/data_msmarco.py --max-usd=20

Stages: pairs, generate, filter, judge, score, corpus, report, build. A run may be killed and run
again at any time: stages with unchanged input and settings are reused, and no request that has an
answer is sent again. Corpus, report, audit page and journal are in `config.out_dir`.
"""

import contextlib
import math
import sys

from absl import flags
from rich.console import Console
from rich.table import Table

from data_pipeline.config import FactoryConfig, check, factory_config
from data_pipeline.report.tables import report_tables
from data_pipeline.stages.factory import STAGES, Factory
from inf_jax.config.command_line import command_line, parse_flags
from inf_jax.config.resume import save_resolved
from inf_jax.core.errors import UserError, main_guard
from inf_jax.io.atomic import atomic_write


def main(argv: list[str]) -> None:
    """Runs a factory; a UserError is printed as one line, with exit code 1."""
    with main_guard():
        _run(argv)


def _run(argv: list[str]) -> None:
    resolved, values = parse_flags(
        argv, __doc__, sections=FactoryConfig(), example="data_msmarco", define=_define
    )
    check(resolved)
    stages = values["stages"].value or list(STAGES)
    if unknown := sorted(set(stages) - set(STAGES)):
        raise UserError(f"--stages={','.join(unknown)}: choose from {','.join(STAGES)}")
    stages = [stage for stage in STAGES if stage in stages]
    max_usd = values["max-usd"].value
    if max_usd is not None and not math.isfinite(max_usd):
        raise UserError(f"--max-usd={max_usd}: must be a finite number")
    forget = values["forget-batches"].value
    factory = Factory(factory_config(resolved), max_usd=max_usd, forget_batches=forget)
    with contextlib.closing(factory):
        if values["dry-run"].value:
            factory.run(["pairs"])
            _show_estimate(factory)
            return
        save_resolved(resolved, factory.out_dir / "config.json")
        atomic_write(factory.out_dir / "command.txt", command_line() + "\n")
        try:
            factory.run(stages)
        finally:
            _show_end(factory)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean(
        "dry-run",
        False,
        "estimate the cost of the requests left, and send nothing",
        flag_values=values,
    )
    flags.DEFINE_float(
        "max-usd",
        None,
        "cap on the cost of the corpus over all its runs, active requests included",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "forget-batches",
        False,
        "give up the batches of earlier runs; their possible cost stays counted",
        flag_values=values,
    )
    flags.DEFINE_list("stages", [], f"run only these, of {','.join(STAGES)}", flag_values=values)


def _show_end(factory: Factory) -> None:
    """Prints the report and where the outputs are, for the stages that were run."""
    console = Console(highlight=False, soft_wrap=True)
    if factory.report:
        for table in report_tables(factory.report).values():
            console.print(table.terminal())
        console.print(f"audit page, for a human review: {factory.out_dir / 'audit.html'}")
        console.print(f"corpus: {factory.out_dir / 'corpus' / 'train.jsonl'}, with DATA_CARD.md")
    if factory.dataset:
        data_dir = factory.dataset.parents[2]
        console.print(
            f"dataset: {factory.dataset}; to train on it:\n  python -m inf_jax.train "
            "--config=configs/medquad_minilm.py --config.data.source=factory "
            f"--config.data.dir={data_dir} --config.out_dir={factory.out_dir / 'run'}"
        )


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
