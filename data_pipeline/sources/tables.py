"""Tables of separated columns (.tsv, .tsv.gz), and the files of a layout."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.sources.files import Row, decoded, lines_of
from inf_jax.core.errors import UserError


def find_file(directory: str | Path, name: str) -> Path:
    """The file of that name in a directory, or its `.gz`; the plain one where both are there.

    Raises:
      UserError: `directory` is none, or has neither: names the files of that kind that it has.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory; give the one that holds {name}")
    found = directory / name
    for file in (found, found.with_name(f"{found.name}.gz")):
        if file.is_file():
            return file
    kind = found.suffix
    there = sorted(f.name for f in found.parent.glob("*") if f.name.endswith((kind, f"{kind}.gz")))
    raise UserError(
        f"there is no {found}, nor a .gz of it; {kind} files there: {', '.join(there) or 'none'}"
    )


def read_table(
    path: str | Path,
    columns: Sequence[str],
    *,
    separator: str | None = "\t",
    header: bool = False,
    quoted: bool = False,
) -> Iterator[Row]:
    """The rows of a table without empty lines, plain or .gz; every value is a text.

    Args:
      path: the file.
      columns: names of all its columns.
      separator: None for any white space.
      header: whether the first line holds the names of the columns.
      quoted: whether a value may stand in double quotes, as Python's csv module writes it.

    Raises:
      UserError: the header or the number of columns is another, or the file is damaged.
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
                    f"{where}: the header must name the columns {', '.join(columns)}, found "
                    f"{text!r:.80}; put that line before the first row"
                )
            continue
        if len(values) != len(columns):
            raise UserError(
                f"{where}: {len(values)} columns, expected {len(columns)} ({', '.join(columns)}); "
                "correct the line or remove it"
            )
        yield Row(where, dict(zip(columns, values, strict=True)))


def int_field(row: Row, name: str) -> int:
    """The whole number that a text holds.

    Raises:
      UserError: it holds none.
    """
    try:
        return int(row.values[name])
    except ValueError:
        raise UserError(
            f"{row.where}: {name} is {row.values[name]!r:.40}, expected a whole number; correct "
            "the line or remove it"
        ) from None
