"""Source files in slices that workers read side by side, each row with its place in the whole.

jsonl is cut at line ends, parquet at its row groups; a compressed file is one slice. A slice knows
how many lines lie before it, so that ids and errors name the same row as one reader of all does.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_pipeline.sources.files import Row, input_files, json_object, read_rows
from inf_jax.core.errors import UserError

_BYTES = 64 << 20  # some seconds of work, little memory


class Slice(NamedTuple):
    """A part of a source file.

    Attributes:
      file: path.
      start, stop: bytes of a jsonl file, row groups of a parquet file; 0, 0 for the whole file.
      first: lines or rows of the file before it.
    """

    file: str
    start: int
    stop: int
    first: int


def slices(path: str | os.PathLike, *, size: int = _BYTES) -> list[Slice]:
    """The slices of a file, or of all files of a directory, in order.

    Args:
      path: as for `read_rows`.
      size: least bytes of a slice of a jsonl file.

    Raises:
      UserError: as `read_rows`, as far as that is seen without reading rows.
    """
    return [part for file in input_files(path) for part in _slices(file, size)]


def read_slice(part: Slice) -> Iterator[tuple[int, Row]]:
    """The rows of a slice, each with its number: the line or row of the file, from 1.

    Raises:
      UserError: a row or file is damaged: names the file and the line, as `read_rows` does.
    """
    if not part.stop:
        for row in read_rows(part.file):
            yield int(row.where.rpartition(":")[2]), row
    else:
        rows = _parquet_rows(part) if part.file.endswith(".parquet") else _jsonl_rows(part)
        for number, values in rows:
            yield number, Row(f"{part.file}:{number}", values)


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
        raise _unreadable(file, first, error) from error


def _jsonl_rows(part: Slice) -> Iterator[tuple[int, dict]]:
    number, place = part.first, part.start
    try:
        with open(part.file, "rb") as file:
            file.seek(part.start)
            while place < part.stop:
                data = file.readline()
                if not data:
                    raise EOFError("it is shorter than it was when this run began")
                place, number = place + len(data), number + 1
                if data.strip():
                    yield number, json_object(data, f"{part.file}:{number}")
    except (OSError, EOFError) as error:
        raise _unreadable(part.file, number, error) from error


def _parquet_slices(file: Path) -> Iterator[Slice]:
    import pyarrow
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.read_metadata(file)
        counts = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, 0, error, kind=" as parquet") from error
    first = 0
    for n, count in enumerate(counts):
        yield Slice(str(file), n, n + 1, first)
        first += count


def _parquet_rows(part: Slice) -> Iterator[tuple[int, dict]]:
    import pyarrow
    import pyarrow.parquet

    number = part.first
    try:
        with pyarrow.parquet.ParquetFile(part.file) as file:
            groups = range(part.start, part.stop)
            for batch in file.iter_batches(batch_size=1024, row_groups=list(groups)):
                for values in batch.to_pylist():
                    number += 1
                    yield number, values
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(part.file, number, error, kind=" as parquet") from error


def _unreadable(file: str | Path, number: int, error: Exception, kind: str = "") -> UserError:
    after = f"row {number}" if kind else f"line {number}"
    return UserError(f"cannot read {file}{kind} after {after}: {error}; get the file again")
