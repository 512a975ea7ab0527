"""Prints what `inf_jax.benchmark` found."""

import math
from collections.abc import Sequence

from inf_jax.benchmarks.report.rows import FEW, Compared, ScoreRow, noise_rows, rows_of
from inf_jax.core.console import table


def print_tables(compared: Compared) -> None:
    """Prints what each model was given, and the scores times 100 with their intervals."""
    written: dict[tuple[str, ...], list[str]] = {}
    for label, by_task in compared.scores.items():
        for task, (one, *_) in by_task.items():
            written.setdefault((label, one.template.replace("\n", "\\n"), one.instruction), [])
            written[label, one.template.replace("\n", "\\n"), one.instruction].append(task)
    rows = [
        (label, _names(tasks), template, instruction)
        for (label, template, instruction), tasks in written.items()
    ]
    table("text of a query", rows, ("model", "tasks", "template", "instruction"))
    by_title: dict[str, list[ScoreRow]] = {}
    for row in rows_of(compared):
        by_title.setdefault(row.title, []).append(row)
    header = ["times 100", compared.label]
    for other in list(compared.scores)[1:]:
        header += [other, "difference [95 %]"]
    for title, rows in by_title.items():
        first = [f"{100 * row.values[compared.label]:.1f}" for row in rows]
        table(
            title,
            [(row.name, one, *_cells(row)) for row, one in zip(rows, first, strict=True)],
            tuple(header),
        )


def print_noise(compared: Compared) -> None:
    """Prints the scores with noise in instructions, times 100, and what they lose by it."""
    without = [task for task, by_label in compared.losses.items() if not by_label]
    if without:
        print(f"no instructions, hence no noise: {_names(without)}")
    by_task: dict[tuple[str, ...], list[ScoreRow]] = {}
    for row in noise_rows(compared):
        by_task.setdefault((row.title, *row.differences), []).append(row)
    for (title, *labels), rows in by_task.items():
        header = ["times 100", *(x for label in labels for x in (label, "loss [95 %]"))]
        table(title, [(row.name, *_cells(row)) for row in rows], tuple(header))


def _cells(row: ScoreRow) -> list[str]:
    """Of each label of the differences: value, difference [95 %]."""
    cells = []
    for other, difference in row.differences.items():
        low, high = 100 * difference.low, 100 * difference.high
        cells.append(f"{100 * row.values[other]:.1f}")
        interval = "one question" if math.isnan(low) else f"{low:+.1f}, {high:+.1f}"
        cells.append(f"{100 * difference.value:+.1f} [{interval}]")
    return cells


def _names(tasks: Sequence[str]) -> str:
    return ", ".join(tasks) if len(tasks) <= FEW else f"{tasks[0]} and {len(tasks) - 1} more"
