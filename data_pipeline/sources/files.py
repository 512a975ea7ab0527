"""Streams the rows of jsonl, parquet and JSON array files; errors name file and row.

All but parquet may be compressed: .gz, .bz2, .xz, .zst.
"""

import bz2
import codecs
import gzip
import io
import json
import lzma
import math
import reprlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from inf_jax.core.errors import UserError
from inf_jax.io.json_files import parse_json


class Row(NamedTuple):
    """One row; `where` is `file:number`, the number of the line (parquet, JSON: row) from 1."""

    where: str
    values: Mapping[str, Any]


def input_files(path: str | Path) -> list[Path]:
    """The file itself, or a directory's jsonl and parquet files by name, without hidden ones.

    Raises:
      UserError: `path` does not exist, or there is no file of a supported type.
    """
    path = Path(path)
    if path.is_dir():
        visible = (f for f in path.iterdir() if f.is_file() and not f.name.startswith("."))
        files = sorted(f for f in visible if _reader(f) not in (None, _json))
        if files:
            return files
        below = ", ".join(directories_with_files(path))
        raise UserError(
            f"{path} holds no {', '.join(_IN_DIRECTORY)} file; name the file itself, or the "
            f"directory that holds it{f', such as {below}' if below else ''}"
        )
    if not path.exists():
        pattern = any(letter in path.name for letter in "*?[")
        remedy = "give a directory in place of a pattern" if pattern else "check the path"
        raise UserError(f"{path} does not exist; {remedy}")
    if not _reader(path):
        raise UserError(f"{path} has an unsupported file type; give one of {', '.join(_SHOWN)}")
    return [path]


def read_rows(path: str | Path) -> Iterator[Row]:
    """Streams the rows of a file, or of all files of a directory, in order.

    Raises:
      UserError: as `input_files`, a row or file is damaged (names file and line), or there is no
        row at all.
    """
    empty = True
    for file in input_files(path):
        for row in file_rows(file):
            empty = False
            yield row
    if empty:
        raise no_rows(path)


def directories_with_files(path: Path) -> list[str]:
    """The names of the directories in a directory that hold jsonl or parquet files."""
    return [
        each.name
        for each in sorted(path.iterdir())
        if each.is_dir() and not each.name.startswith(".")
        if any(_reader(file) not in (None, _json) for file in each.rglob("*") if file.is_file())
    ]


def no_rows(path: str | Path) -> UserError:
    """The error for a file, or a directory of files, without any row."""
    return UserError(f"{path} holds no rows; copy it again or give another file")


def file_rows(file: Path) -> Iterator[Row]:
    """As `read_rows` for one of the `input_files`, which may be empty."""
    return _reader(file)(file)


def id_field(row: Row, *names: str) -> str:
    """As `text_field`; whole numbers are ids too, and an empty value raises UserError."""
    name = _present(row, names)
    value = row.values.get(name)
    # integers of a column that lacks some; above 2**53 others have become the same number
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if type(value) is int:  # not a bool
        return str(value)
    if text := text_field(row, *names):
        return text
    raise UserError(f"{row.where}: field {name!r} is empty; give each row a unique id")


def text_field(row: Row, *names: str) -> str:
    """The stripped text of the first of the fields `names` that the row has, not null if possible;
    "" for null.

    Raises:
      UserError: the row has none of the fields, or the field holds no text; names row, field and
        what there is instead.
    """
    name = _present(row, names)
    if name not in row.values:
        present = ", ".join(row.values) or "no fields"
        raise UserError(f"{row.where}: no field {names[0]!r}; the row has: {present}")
    value = row.values[name]
    if value is None:
        return ""
    if isinstance(value, str):
        return _encodable(value.strip(), row.where, name)
    raise UserError(
        f"{row.where}: field {name!r} holds {type(value).__name__} {reprlib.repr(value)}, "
        "expected text; correct the row or remove it"
    )


def title_field(row: Row, name: str) -> str:
    """As `text_field`; "" also for a missing field and for NaN, pandas' word for a missing text."""
    value = row.values.get(name)
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else text_field(row, name)


def _present(row: Row, names: Sequence[str]) -> str:
    """The first name whose field is not null, else the first that there is, else the first."""
    present = [name for name in names if name in row.values]
    filled = (name for name in present if row.values[name] is not None)
    return next(filled, (present or names)[0])


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
    """Yields `file:number` and the bytes of each line of a plain or compressed file that is not
    blank.

    Raises:
      UserError: the file cannot be read or is damaged; names the last good line.
    """
    line = 0
    try:
        with _open(path) as file:
            for line, data in enumerate(file, 1):
                if not data.isspace():
                    yield f"{path}:{line}", data
    except _DAMAGED as error:
        raise unreadable(path, f"line {line}", error) from error


def _open_zstd(path: Path, mode: str) -> BinaryIO:
    import pyarrow  # slow to import, needed by few files only

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path), mode), "zstd"))


_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd}
COMPRESSED = tuple(_OPENERS)
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what the openers' files raise


def _open(path: Path) -> BinaryIO:
    return _OPENERS.get(path.suffix.lower(), open)(path, "rb")


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


_MOST_NESTED = 500  # levels of an element of a JSON array
_ONE_OBJECT = "each line must be one JSON object; correct the line or remove it"


def _jsonl(path: Path) -> Iterator[Row]:
    for where, data in lines_of(path):
        yield Row(where, json_object(data, where))


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """Parses a line that holds a JSON object; raises UserError for anything else."""
    return parse_json(decoded(data, where), where, kind=dict, remedy=_ONE_OBJECT)


def _check_object(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise UserError(f"{where}: a JSON {type(row).__name__}, expected an object with named fields")


def json_members(path: str | Path) -> Iterator[Row]:
    """Streams the members of a JSON file that is one object of objects; `where` is `file:name`.

    Raises:
      UserError: the file is missing or damaged, or is another JSON; names the last good member.
    """
    [file] = input_files(path)
    return _json(file, members=True)


def _json(path: Path, *, members: bool = False) -> Iterator[Row]:
    # ijson's C backends replace half of a surrogate pair by "?" without an error
    from ijson.backends import python as ijson
    from ijson.common import JSONError, ObjectBuilder

    number, depth, name = 0, 0, ""
    try:
        with _open(path) as file:
            if file.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
                file.read(len(codecs.BOM_UTF8))
            events = ijson.basic_parse(file, use_float=True)
            opening = "start_map" if members else "start_array"
            if next(events)[0] != opening:
                raise JSONError(f"it does not begin with '{'{' if members else '['}'")
            builder = ObjectBuilder()
            for event, value in events:
                if depth == 0 and event == opening.replace("start", "end"):
                    continue  # the whole one's
                if depth == 0 and event == "map_key":
                    name = value
                    continue
                builder.event(event, value)
                depth += event.startswith("start_") - event.startswith("end_")
                if depth > _MOST_NESTED:
                    raise JSONError("nested too deeply")
                if depth == 0:
                    number += 1
                    where = f"{path}:{name if members else number}"
                    row = _check_object(builder.value, where)
                    builder = ObjectBuilder()
                    yield Row(where, row)
    except (JSONError, json.JSONDecodeError) as error:
        if error.args and isinstance(error.args[0], UnicodeDecodeError):
            raise UserError(
                f"{path}: not UTF-8 ({error.args[0].reason}) after row {number}; save the file as "
                "UTF-8"
            ) from error
        raise UserError(
            f"{path}:{number + 1}: malformed JSON, {error!s:.80}; the file must be one "
            f"{'object' if members else 'array'} of objects (rename a file with one object a line "
            "to .jsonl); correct or download it again"
        ) from error
    except _DAMAGED as error:
        raise unreadable(path, f"row {number}", error) from error


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
    ".ndjson": _jsonl,
    ".parquet": parquet_rows,
    ".json": _json,
}
# not .json: such a file among data files usually describes them
_IN_DIRECTORY = (".jsonl", ".jsonl.gz", ".parquet")
_SHOWN = (".jsonl", ".jsonl.gz", ".parquet", ".json", f"{', '.join(COMPRESSED)} of these texts")


def file_type(path: Path) -> str:
    """The suffix of a file's name in lower case, without that of its compression."""
    name = Path(path.name.lower())
    return name.with_suffix("").suffix if name.suffix in COMPRESSED else name.suffix


def _reader(path: Path) -> Callable[[Path], Iterator[Row]] | None:
    reader = _READERS.get(file_type(path))
    # parquet compresses its columns itself
    return None if reader is parquet_rows and path.suffix.lower() in COMPRESSED else reader
