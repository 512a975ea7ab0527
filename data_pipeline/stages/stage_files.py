"""Output files of the stages: complete or absent, with a fingerprint of all that they depend on."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data_pipeline.config import FactoryConfig
from data_pipeline.items import Item, read_items
from inf_jax.core.errors import UserError
from inf_jax.io.atomic import atomic_file, atomic_write
from inf_jax.io.json_files import read_json, sha256_of_file

# Reasons that another run may not have.
_TRANSIENT_REASONS = ("budget", "unanswered", "rejected")


class StageFile:
    """The output of one stage: `<name>.jsonl` and its metadata `<name>.meta.json`.

    Args:
      out_dir: directory of the factory.
      name: e.g. "judged".
      settings: everything that the stage depends on, as JSON.
      source: fingerprint of its input.
    """

    def __init__(self, out_dir: Path, name: str, *, settings: Any, source: str):
        self.name, self.path = name, out_dir / f"{name}.jsonl"
        self._meta = out_dir / f"{name}.meta.json"
        recipe = json.dumps([name, settings, source], sort_keys=True)
        self.fingerprint = hashlib.sha256(recipe.encode()).hexdigest()[:16]

    def metadata(self) -> dict[str, Any] | None:
        """The metadata if the file is complete and has this fingerprint, else None.

        Its keys: items and alive (counts), sha256, complete (no item lacks budget or an answer),
        extra.
        """
        with contextlib.suppress(OSError, ValueError, KeyError):
            meta = read_json(self._meta, kind=dict)
            if meta["fingerprint"] != self.fingerprint:
                return None
            whole = all(name in meta for name in ("items", "alive", "complete", "extra"))
            if whole and sha256_of_file(self.path) == meta["sha256"]:
                return meta
        return None

    @contextlib.contextmanager
    def writing(self, extra: Callable[[], dict] = dict) -> Iterator[Callable[[Item], None]]:
        """Yields a function that writes an item; the file appears when the block succeeds.

        Args:
          extra: called at the end for the metadata's `extra`.

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
                counts["complete"] &= not any(r.endswith(_TRANSIENT_REASONS) for r in item.reasons)

            yield write
        meta = counts | {"sha256": checksum.hexdigest(), "fingerprint": self.fingerprint}
        meta["extra"] = extra()
        atomic_write(self._meta, json.dumps(meta, indent=2) + "\n")

    def read(self) -> Iterator[Item]:
        """The items; raises UserError if the file is missing or damaged."""
        return read_items(self.path)


def stage_files(config: FactoryConfig, model_settings: dict[str, list]) -> dict[str, StageFile]:
    """Stage -> its output file, in order; each depends on its settings and on the file before.

    `model_settings` is what the answers of a stage's models depend on.
    """
    source, evaluation = map(dataclasses.asdict, (config.source, config.evaluation))
    score, review = map(dataclasses.asdict, (config.score, config.review))
    texts = [state_of(source["path"]), evaluation, [state_of(p) for p in evaluation["paths"]]]
    types = [config.generate.types, config.generate.type_weights]
    settings: dict[str, tuple[str, list]] = {
        "pairs": ("pairs", [config.seed, source, *texts, *types]),
        "generate": ("generated", [*model_settings["generate"], config.llm.max_attempts]),
        "filter": ("filtered", [dataclasses.asdict(config.filter)]),
        "judge": ("judged", [*model_settings["judge"], config.llm.max_attempts]),
        # retraining changes the files of a model directory
        "score": ("scored", [score, state_of(score["model"], only_directory=True)]),
        "corpus": ("outcomes", [review, state_of(review["path"])]),
    }
    if not config.score.model:
        del settings["score"]
    files: dict[str, StageFile] = {}
    fingerprint = ""
    for stage, (name, own) in settings.items():
        files[stage] = StageFile(Path(config.out_dir), name, settings=own, source=fingerprint)
        fingerprint = files[stage].fingerprint
    return files


def state_of(path: str, *, only_directory: bool = False) -> list:
    """[name, size, mtime] of each file under a path, which tell whether they have changed.

    Args:
      path: a file or directory; "" for none.
      only_directory: return [] for anything but a directory, e.g. the name of a model.
    """
    root = Path(path)
    if not path or (only_directory and not root.is_dir()):
        return []
    files = sorted(f for f in root.rglob("*") if f.is_file()) if root.is_dir() else [root]
    try:
        return [[str(f), (stat := f.stat()).st_size, stat.st_mtime_ns] for f in files]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
