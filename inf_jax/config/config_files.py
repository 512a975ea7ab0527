"""Finds and loads config files, by path or by the name of a shipped config."""

import importlib.util
import re
import traceback
from difflib import get_close_matches
from pathlib import Path

from ml_collections import ConfigDict

from inf_jax.core.errors import UserError, first_line

_PACKAGE = Path(__file__).resolve().parents[1]


def shipped_directory() -> Path:
    """The directory of the shipped configs: inside an installed package, next to it in a clone."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def shipped_names() -> list[str]:
    """Names under which `load_config` finds the shipped configs, e.g. "scaling/e5_large"."""
    root = shipped_directory()
    paths = (path for path in root.rglob("*.py") if path.name != "__init__.py")
    return sorted(str(path.relative_to(root).with_suffix("")) for path in paths)


def load_config(spec: str) -> ConfigDict:
    """The ConfigDict of `FILE[:ARGUMENT]`, or of a shipped config's `NAME[:ARGUMENT]`.

    The file defines `get_config() -> ConfigDict`, or `get_config(argument: str)`.

    Raises:
      UserError: the file is missing, fails, or returns something else.
    """
    name, colon, argument = spec.partition(":")
    path = _find(name)
    module_spec = importlib.util.spec_from_file_location(f"inf_jax_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config={spec}: {path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise UserError(f"{path}: defines no function get_config()")
        config = get_config(argument) if colon else get_config()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        raise UserError(f"{path}{_line_of(error, path)}: {_reason(error)}") from error
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"{path}: get_config() must return a ConfigDict, not {kind}")
    return config


def _find(name: str) -> Path:
    path = Path(name).expanduser().absolute()
    if path.is_file():
        return path
    shipped = shipped_directory() / f"{name.removesuffix('.py')}.py"
    if (
        not name.startswith((".", "/", "~"))
        and shipped.is_file()
        and shipped.is_relative_to(shipped_directory())
    ):
        return shipped
    if path.is_dir():
        raise UserError(f"--config={name}: is a directory, not a config file")
    known = shipped_names()
    close = get_close_matches(Path(name).stem, known, n=1) or get_close_matches(name, known, n=1)
    nearest = f"; did you mean {close[0]}?" if close else ""
    raise UserError(
        f"--config={name}: no such file, and no shipped config of that name{nearest} "
        f"(shipped: {', '.join(known)})"
    )


def _line_of(error: BaseException, path: Path) -> str:
    """ ", line N" of the last call in the config file that led to the error."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f", line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
    """One line, also for ConfigDict's own errors, which hold a whole section or Python types."""
    text = str(error)
    if key := re.search(r'Key \W*"(\w+)\W*" does not exist', text):
        close = re.search(r'Did you mean \W*"(\w+)', text)
        return f"no such key {key[1]}" + (f"; did you mean {close[1]}?" if close else "")
    if key := re.search(r"override field '([\w.]+)'.* to type <class '(\w+)'>", text):
        return f"{key[1]}: must be of type {key[2]}"
    return f"{type(error).__name__}: {first_line(error)}"
