"""Reads tables of separated columns, and finds the files of a dataset's layout."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.sources.files import (
    COMPRESSED,
    Row,
    decoded,
    directories_with_files,
    input_files,
    lines_of,
)
from inf_jax.core.errors import UserError

# Words in the names of files -> the split that they name.
_SPLITS = {name: name for name in ("train", "test", "dev")} | {"training": "train"}
_SPLITS |= dict.fromkeys(("eval", "val", "valid", "validation"), "dev")


def find_file(directory: str | Path, name: str, *others: str) -> Path:
    """The first of the named files that a directory has, plain or compressed.

    Args:
      others: names that are taken if there is no file of the first, or directories of files.

    Raises:
      UserError: `directory` is not a directory, or has none of them; names similar files that
        exist.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give the one that holds {name}")
    for file in (directory / each for each in (name, *others)):
        for option in (file, *(file.with_name(file.name + suffix) for suffix in COMPRESSED)):
            if option.is_file():
                return option
        if not file.suffix and file.is_dir():
            return file
    plain = directory / name
    kind = plain.suffix
    kinds = (kind, *(kind + suffix for suffix in COMPRESSED))
    there = sorted(file.name for file in plain.parent.glob("*") if file.name.endswith(kinds))
    also = f"; also read: {', '.join(others)}" if others else ""
    raise UserError(
        f"neither {plain} nor {plain}.gz exists; {kind} files there: {', '.join(there) or 'none'}"
        f"{also}"
    )


def one_split(path: str | Path) -> None:
    """Raises UserError if the names of a directory's files say that they are different splits, or
    further files are in directories below it."""
    files = input_files(path)
    if Path(path).is_dir() and (below := directories_with_files(Path(path))):
        raise UserError(
            f"{path} holds files, and so does {', '.join(below)} in it; name one of these "
            "directories, or put all files into one"
        )
    found: dict[str, str] = {}  # split -> a file of it
    for name in (file.name for file in files):
        named = {_SPLITS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _SPLITS}
        if len(named) == 1:
            found.setdefault(*named, name)
    if len(found) > 1:
        raise UserError(
            f"{path} holds files of several splits ({', '.join(sorted(found.values()))}); name the "
            "one file, or a directory with the files of one split"
        )


def read_table(path: str | Path, columns: Sequence[str]) -> Iterator[Row]:
    """Yields the rows of a plain or compressed table with tabs between its columns and no header.

    Blank lines are left out; all values are strings.

    Args:
      columns: names of all columns.

    Raises:
      UserError: the number of columns differs, or the file is damaged.
    """
    for where, data in lines_of(Path(path)):
        values = decoded(data, where).split("\t")
        if len(values) != len(columns):
            raise wrong_columns(where, len(values), columns)
        yield Row(where, dict(zip(columns, values, strict=True)))


def wrong_columns(where: str, count: int, columns: Sequence[str]) -> UserError:
    """The error for a row with another number of columns than expected."""
    return UserError(
        f"{where}: {count} columns, expected {len(columns)} ({', '.join(columns)}); correct the "
        "line or remove it"
    )
