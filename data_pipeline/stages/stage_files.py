"""The files of the factory's stages: each is whole or absent, and known to be of these settings."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.items import Item, read_items
from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_file
from inf_jax.io.json_files import sha256_of_file

# Reasons that another run may not have: for want of money, or of an answer.
_PASSING = ("budget", "unanswered")


class StageFile:
    """The output of one stage: `<name>.jsonl`, and beside it what made it.

    Args:
      out_dir: of the factory.
      name: e.g. "judged".
      settings: whatever the stage depends on, as JSON.
      source: fingerprint of its input.
    """

    def __init__(self, out_dir: Path, name: str, *, settings: Any, source: str):
        self.name, self.path = name, out_dir / f"{name}.jsonl"
        self._meta = out_dir / f"{name}.meta.json"
        recipe = json.dumps([name, settings, source], sort_keys=True)
        self.fingerprint = hashlib.sha256(recipe.encode()).hexdigest()[:16]

    def found(self) -> dict[str, Any] | None:
        """What is known of the file where it is whole and of these settings; else None.

        Its keys: items, alive, sha256, complete (no item is left out for want of money or of an
        answer), extra.
        """
        with contextlib.suppress(OSError, ValueError, KeyError):
            meta = json.loads(self._meta.read_bytes())
            if meta["fingerprint"] != self.fingerprint:
                return None
            if sha256_of_file(self.path) == meta["sha256"]:
                return meta
        return None

    @contextlib.contextmanager
    def writing(self, extra: Callable[[], dict] = dict) -> Iterator[Callable[[Item], None]]:
        """Gives a function that writes an item; the file appears when the block ends well.

        Args:
          extra: called at the end; what else is to be kept of this stage.

        Raises:
          UserError: the disk is full or read-only.
        """
        counts = {"items": 0, "alive": 0, "complete": True}
        checksum = hashlib.sha256()
        with atomic_file(self.path) as file:

            def write(item: Item) -> None:
                line = item.to_json().encode() + b"\n"
                file.write(line)
                counts["items"] += 1
                counts["alive"] += item.alive
                checksum.update(line)
                counts["complete"] &= not any(map(_may_end_otherwise, item.reasons))

            yield write
        meta = counts | {"sha256": checksum.hexdigest(), "fingerprint": self.fingerprint}
        meta["extra"] = extra()
        with atomic_file(self._meta) as file:
            file.write(json.dumps(meta, indent=2).encode() + b"\n")

    def read(self) -> Iterator[Item]:
        """The items; raises UserError where the file is missing or damaged."""
        return read_items(self.path)


def _may_end_otherwise(reason: str) -> bool:
    return reason.endswith(_PASSING)


def state_of(path: str) -> list:
    """Name, size and time of change of a path's files: what tells that they have changed."""
    if not path:
        return []
    root = Path(path)
    files = sorted(f for f in root.rglob("*") if f.is_file()) if root.is_dir() else [root]
    try:
        return [[str(f), (stat := f.stat()).st_size, stat.st_mtime_ns] for f in files]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
