"""Reads tables of separated columns (.tsv, .tsv.gz), and finds the files of a dataset's layout."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.sources.files import Row, decoded, lines_of
from inf_jax.core.errors import UserError


def find_file(directory: str | Path, name: str) -> Path:
    """The file of that name in a directory, else its `.gz`.

    Raises:
      UserError: `directory` is not a directory, or has neither; names similar files that exist.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give the one that holds {name}")
    plain = directory / name
    for file in (plain, plain.with_name(f"{plain.name}.gz")):
        if file.is_file():
            return file
    kind = plain.suffix
    others = sorted(f.name for f in plain.parent.glob("*") if f.name.endswith((kind, f"{kind}.gz")))
    raise UserError(
        f"neither {plain} nor {plain}.gz exists; {kind} files there: {', '.join(others) or 'none'}"
    )


def read_table(
    path: str | Path,
    columns: Sequence[str],
    *,
    separator: str | None = "\t",
    header: bool = False,
    quoted: bool = False,
) -> Iterator[Row]:
    """Yields the rows of a plain or .gz table, without blank lines; all values are strings.

    Args:
      columns: names of all columns.
      separator: None for any white space.
      header: whether the first line holds the names of the columns.
      quoted: whether values may be in double quotes, as Python's csv module writes them.

    Raises:
      UserError: the header or the number of columns differs, or the file is damaged.
    """
    for where, data in lines_of(Path(path)):
        text = decoded(data, where)
        try:
            values = next(csv.reader([text], delimiter=separator)) if quoted else None
        except csv.Error as error:
            raise UserError(f"{where}: {error}; correct the line or remove it") from error
        values = values or text.split(separator)
        if header:
            header = False
            if values != list(columns):
                raise UserError(
                    f"{where}: the header must name the columns {', '.join(columns)}, but is "
                    f"{text!r:.80}; insert a header before the first row"
                )
            continue
        if len(values) != len(columns):
            raise UserError(
                f"{where}: {len(values)} columns, expected {len(columns)} ({', '.join(columns)}); "
                "correct the line or remove it"
            )
        yield Row(where, dict(zip(columns, values, strict=True)))


def int_field(row: Row, name: str) -> int:
    """The integer in a field; raises UserError if it holds none."""
    try:
        return int(row.values[name])
    except ValueError:
        raise UserError(
            f"{row.where}: {name} is {row.values[name]!r:.40}, expected an integer; correct the "
            "line or remove it"
        ) from None
