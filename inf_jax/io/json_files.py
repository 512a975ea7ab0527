"""Reads and writes small JSON files, and hashes files."""

import hashlib
import json
from pathlib import Path
from typing import Any

from inf_jax.core.errors import UserError
from inf_jax.core.json_text import parse_json
from inf_jax.io.storage import AnyPath, new_file, open_to_read, read_bytes

_REQUIRED = object()


def read_json(
    path: AnyPath, default: Any = _REQUIRED, *, kind: type = object, remedy: str = "make it again"
) -> Any:
    """The value of a JSON file, or the default where there is no such file.

    Raises:
      UserError: no file and no default, unreadable, or as `parse_json`; ends in `remedy`.
    """
    end = f"; {remedy}" if remedy else ""
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        if default is not _REQUIRED:
            return default
        raise UserError(f"{path}: no such file{end}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}{end}") from error
    return parse_json(data, path, kind=kind, remedy=remedy)


def path_inside(directory: AnyPath, name: str, source: object) -> AnyPath:
    """`directory / name` for a name in a file of others; a link may lead elsewhere (hub's cache).

    Raises:
      UserError: the name is absolute or climbs out of the directory; begins with `source`.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise UserError(
            f"{source} names {name!r}, which is outside of {directory}; move that file into the "
            "directory and name it from there"
        )
    return directory / name


def write_json(path: AnyPath, value: Any, *, sort_keys: bool = False) -> None:
    """Writes a value as indented JSON, whole or not at all. Raises UserError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=sort_keys)
    with new_file(path) as file:
        file.write(f"{text}\n".encode())


def sha256_of_file(path: AnyPath) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits. Raises OSError; UserError in a bucket."""
    with open_to_read(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
