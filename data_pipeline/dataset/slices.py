"""Splits source files into slices that workers read in parallel, with the files' row numbers.

jsonl is split at line ends, parquet at row groups; a compressed file is one slice. A slice holds
the number of lines before it, so that ids and errors are the same as when reading the whole file.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipeline.sources.files import (
    Row,
    file_rows,
    input_files,
    json_object,
    no_rows,
    parquet_rows,
    unreadable,
)

_BYTES = 64 << 20  # a few seconds of work, little memory


class Slice(NamedTuple):
    """A part of a source file.

    Attributes:
      file: path.
      start, stop: range of bytes (jsonl) or row groups (parquet); 0, 0 for the whole file.
      first: number of lines or rows before the slice.
    """

    file: str
    start: int
    stop: int
    first: int


def slices(path: str | os.PathLike, *, size: int = _BYTES) -> list[Slice]:
    """The slices of a file, or of all files of a directory, in order.

    Args:
      size: minimal number of bytes of a slice of a jsonl file.

    Raises:
      UserError: a file is missing, unreadable or of an unsupported type, or all are empty.
    """
    parts = [part for file in input_files(path) for part in _slices(file, size)]
    if not parts:
        raise no_rows(path)
    return parts


def read_slice(part: Slice) -> Iterator[tuple[int, Row]]:
    """Yields the rows of a slice, each with its line or row number in the file, from 1.

    Raises:
      UserError: a row or file is damaged; names file and line, as `read_rows`.
    """
    if not part.stop:
        rows = file_rows(Path(part.file))
    elif part.file.endswith(".parquet"):
        groups = range(part.start, part.stop)
        rows = parquet_rows(part.file, row_groups=groups, first=part.first)
    else:
        rows = _jsonl_rows(part)
    for row in rows:
        yield int(row.where.rpartition(":")[2]), row


def _slices(file: Path, size: int) -> Iterator[Slice]:
    if file.name.endswith(".jsonl"):
        return _jsonl_slices(file, size)
    if file.name.endswith(".parquet"):
        return _parquet_slices(file)
    return iter([Slice(str(file), 0, 0, 0)])


def _jsonl_slices(file: Path, size: int) -> Iterator[Slice]:
    start = first = 0
    try:
        with open(file, "rb") as data:
            while block := data.read(size):
                block += data.readline()
                stop = start + len(block)
                yield Slice(str(file), start, stop, first)
                start, first = stop, first + block.count(b"\n")
    except OSError as error:
        raise unreadable(file, f"line {first}", error) from error


def _jsonl_rows(part: Slice) -> Iterator[Row]:
    number, position = part.first, part.start
    try:
        with open(part.file, "rb") as file:
            file.seek(part.start)
            while position < part.stop:
                data = file.readline()
                if not data:
                    raise EOFError("the file has become shorter during this run")
                position, number = position + len(data), number + 1
                if data.strip():
                    where = f"{part.file}:{number}"
                    yield Row(where, json_object(data, where))
    except (OSError, EOFError) as error:
        raise unreadable(part.file, f"line {number}", error) from error


def _parquet_slices(file: Path) -> Iterator[Slice]:
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(file)
        counts = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable(f"{file} as parquet", "row 0", error) from error
    first = 0
    for n, count in enumerate(counts):
        yield Slice(str(file), n, n + 1, first)
        first += count
