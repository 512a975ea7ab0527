"""Reads and writes small JSON files, and hashes files."""

import hashlib
import json
from pathlib import Path
from typing import Any

from inf_jax.core.errors import UserError
from inf_jax.io.storage import AnyPath, new_file

_REQUIRED = object()


def read_json(
    path: AnyPath, default: Any = _REQUIRED, *, kind: type = object, remedy: str = "make it again"
) -> Any:
    """The value of a JSON file, or the default where there is no such file.

    Raises:
      UserError: no file and no default, unreadable, not JSON, or not a `kind`; ends in `remedy`.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is not _REQUIRED:
            return default
        raise UserError(f"{path}: no such file; {remedy}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {remedy}") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: not a {kind.__name__}; {remedy}")
    return value


def write_json(path: AnyPath, value: Any, *, sort_keys: bool = False) -> None:
    """Writes a value as indented JSON, whole or not at all. Raises UserError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=sort_keys)
    with new_file(path) as file:
        file.write(f"{text}\n".encode())


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
