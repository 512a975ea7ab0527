"""Resolves a model's name (directory, `package:NAME/SUB` of an installed package or hub id)."""

import importlib.util
import os
import re
from pathlib import Path

from inf_jax.core.errors import UserError


def _models_below(directory: Path) -> list[str]:
    return [file.parent.name for file in directory.glob("*/config.json")]


def resolve_model(name: str) -> Path:
    """The directory of a model; downloads it if `name` is a hub id.

    Raises:
      UserError: the package is not installed, there is no such directory, or the download failed.
    """
    name = os.path.expanduser(name)
    if name.startswith("package:"):
        package, _, sub = name.removeprefix("package:").partition("/")
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package):
            raise UserError(f"model {name!r}: no name of a package; write package:NAME/DIRECTORY")
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):  # its parent is missing; a module without a file
            spec = None
        if spec is None or not spec.submodule_search_locations:
            top = package.partition(".")[0].replace("_", "-")
            raise UserError(
                f"model {name!r}: the package {package} is not installed; "
                f"pip install {top} (see the extras of setup.py)"
            )
        directory = Path(spec.submodule_search_locations[0]) / sub
        if not directory.is_dir():
            raise UserError(
                f"model {name!r}: the package {package} has no directory {sub}; there are: "
                f"{', '.join(sorted(_models_below(directory.parent))) or 'none with a model'}"
            )
        return directory
    if Path(name).is_dir():
        return Path(name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"model {name!r}: no such directory")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # every kind of network, permission and name error of the hub client
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise UserError(
            f"model {name!r}: not a local directory, and could not be downloaded from the "
            f"Hugging Face hub ({type(error).__name__}: {reason})"
        ) from None
