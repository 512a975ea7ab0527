"""Prints tables on the terminal."""

import os

from rich.console import Console
from rich.table import Table


def table(title: str, rows: list[tuple], header: tuple[str, ...] = ()) -> None:
    """Prints a small table; first column left, the others right."""
    out = Table(title=title, title_justify="left", show_header=bool(header))
    for i, name in enumerate(header or [""] * len(rows[0])):
        out.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        out.add_row(*map(str, row))
    Console(width=None if os.isatty(1) else 100).print(out)
