"""Streams the rows of jsonl(.gz), parquet and JSON array files; errors name file and row."""

import codecs
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inf_jax.core.errors import UserError


class Row(NamedTuple):
    """One row; `where` is `file:number`, the number of the line (parquet, JSON: row) from 1."""

    where: str
    values: Mapping[str, Any]


def input_files(path: str | Path) -> list[Path]:
    """The file itself, or a directory's jsonl and parquet files sorted by name.

    Raises:
      UserError: `path` does not exist, or there is no file of a supported type.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.is_file() and f.name.endswith(_IN_DIRECTORY))
        if files:
            return files
        raise UserError(f"{path} holds no {', '.join(_IN_DIRECTORY)} file; name the file itself")
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path")
    if not _reader(path):
        raise UserError(f"{path} has an unsupported file type; give one of {', '.join(_READERS)}")
    return [path]


def read_rows(path: str | Path) -> Iterator[Row]:
    """Streams the rows of a file, or of all files of a directory, in order.

    Raises:
      UserError: as `input_files`, or a row or file is damaged; names file and line.
    """
    for file in input_files(path):
        yield from _reader(file)(file)


def id_field(row: Row, *names: str) -> str:
    """As `text_field` with integers; raises UserError also for an empty value."""
    if text := text_field(row, *names, integers=True):
        return text
    name = next(name for name in names if name in row.values)
    raise UserError(f"{row.where}: field {name!r} is empty; give each row a unique id")


def text_field(row: Row, *names: str, integers: bool = False) -> str:
    """The stripped text of the first of the fields `names` that the row has; "" for null.

    Raises:
      UserError: the row has none of the fields, or the field holds no text (nor an integer, if
        `integers`); names row, field and what there is instead.
    """
    for name in names:
        if name in row.values:
            value = row.values[name]
            if value is None:
                return ""
            if integers and type(value) is int:  # not a bool
                return str(value)
            if isinstance(value, str):
                return _encodable(value.strip(), row.where, name)
            raise UserError(
                f"{row.where}: field {name!r} holds {type(value).__name__} {value!r:.40}, "
                "expected text; correct the row or remove it"
            )
    present = ", ".join(row.values) or "no fields"
    raise UserError(f"{row.where}: no field {names[0]!r}; the row has: {present}")


def _encodable(text: str, where: str, name: str) -> str:
    # JSON escapes can spell half of a surrogate pair, which has no UTF-8 encoding
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {name!r} contains a lone surrogate, {text[error.start]!a}; correct "
            "the row or remove it"
        ) from error
    return text


def lines_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields `file:number` and the bytes of each line of a plain or .gz file that is not blank.

    Raises:
      UserError: the file cannot be read or is damaged; names the last good line.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    line = 0
    try:
        with opener(path, "rb") as file:
            for line, data in enumerate(file, 1):
                if not data.isspace():
                    yield f"{path}:{line}", data
    except (OSError, EOFError, zlib.error) as error:  # gzip raises all three on damage
        raise unreadable(path, f"line {line}", error) from error


def unreadable(path: str | Path, after: str, error: Exception) -> UserError:
    """The error for a damaged file; `after` is the last good line or row."""
    return UserError(f"cannot read {path} after {after}: {error}; download or copy it again")


def decoded(data: bytes, where: str) -> str:
    """A line's text without the line break; raises UserError if it is not UTF-8."""
    try:
        # files saved on Windows may begin with a byte order mark
        return data.rstrip(b"\r\n").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from error


def _jsonl(path: Path) -> Iterator[Row]:
    for where, data in lines_of(path):
        yield Row(where, json_object(data, where))


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """Parses a line that holds a JSON object; raises UserError for anything else."""
    try:
        row = json.loads(decoded(data, where))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: malformed JSON, {error.msg} at column {error.colno}; "
            "each line must be one JSON object; correct or remove it"
        ) from error
    return _check_object(row, where)


def _check_object(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise UserError(f"{where}: a JSON {type(row).__name__}, expected an object with named fields")


def _json(path: Path) -> Iterator[Row]:
    # ijson's C backends replace half of a surrogate pair by "?" without an error
    from ijson.backends import python as ijson
    from ijson.common import JSONError

    number = 0
    try:
        with open(path, "rb") as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            events = ijson.parse(file, use_float=True)
            first = next(events)
            if first[1] != "start_array":
                raise JSONError("it does not begin with '['")
            elements = ijson.items(itertools.chain([first], events), "item")
            for number, row in enumerate(elements, 1):
                yield Row(f"{path}:{number}", _check_object(row, f"{path}:{number}"))
    except (JSONError, json.JSONDecodeError) as error:
        if error.args and isinstance(error.args[0], UnicodeDecodeError):
            raise UserError(
                f"{path}: not UTF-8 ({error.args[0].reason}) after row {number}; save the file as "
                "UTF-8"
            ) from error
        raise UserError(
            f"{path}:{number + 1}: malformed JSON, {error}; the file must be one array of objects "
            "(rename a file with one object per line to .jsonl); correct or download it again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path} after row {number}: {error}") from error


def parquet_rows(
    path: str | Path, *, row_groups: Sequence[int] | None = None, first: int = 0
) -> Iterator[Row]:
    """Streams the rows of a parquet file.

    Args:
      row_groups: numbers of those to read; None for all.
      first: number of rows before them.

    Raises:
      UserError: the file cannot be read or is damaged; names the last good row.
    """
    import pyarrow  # slow to import, needed by parquet only
    import pyarrow.parquet

    number = first
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024, row_groups=row_groups):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}:{number}", values)
    except (OSError, pyarrow.ArrowException) as error:
        raise unreadable(f"{path} as parquet", f"row {number}", error) from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".parquet": parquet_rows,
    ".json": _json,
}
# not .json: such a file among data files usually describes them
_IN_DIRECTORY = (".jsonl", ".jsonl.gz", ".parquet")


def _reader(path: Path) -> Callable[[Path], Iterator[Row]] | None:
    return next((r for suffix, r in _READERS.items() if path.name.endswith(suffix)), None)
