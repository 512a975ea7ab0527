"""Which values of a run's config are impossible."""

import math
import re
from pathlib import Path

from ml_collections import ConfigDict

from inf_jax.core.errors import UserError
from inf_jax.losses.checks import ENGINES
from inf_jax.losses.objective import parse_objective
from inf_jax.text import eos


def check(config: ConfigDict) -> None:
    """Raises UserError that lists every impossible value."""
    choices = {
        "model.towers": ("shared", "separate"),
        "model.query_encoder": ("joint", "attention"),
        "model.mask": ("model", "causal", "bidirectional"),
        "model.append_eos": eos.CHOICES,
        "model.pooling": ("mean", "cls", "last", "weighted_mean"),
        "model.dtype": ("float32", "bfloat16"),
        "model.frozen_dtype": ("float32", "bfloat16"),
        "export.dtype": ("float32", "bfloat16"),
        "model.remat": ("none", "dots", "full"),
        "model.attention": ("auto", "xla", "splash", "cudnn"),
        "loss.mask": ("identity", "faithful"),
        "loss.engine": ("auto", *ENGINES),
        "loss.tile_dtype": ("float32", "bfloat16"),
        "mesh.gather": ("auto", "layer", "step"),
        "optim.schedule": ("linear", "cosine", "constant"),
        "train.best_mode": ("min", "max"),
    }
    problems = [
        f"{key}={value_of(config, key)!r}: must be a finite number"
        for key in keys_of(config)
        if isinstance(value_of(config, key), float) and not math.isfinite(value_of(config, key))
    ]
    problems += [
        f"{key}={value_of(config, key)!r}: one of {', '.join(allowed)}"
        for key, allowed in choices.items()
        if value_of(config, key) not in allowed
    ]
    positive = """data.max_query_tokens data.max_passage_tokens data.row_tokens data.texts_per_row
        data.prefetch model.lora_alpha loss.scale loss.max_scale optim.lr optim.eps optim.clip_norm
        optim.max_nonfinite train.steps train.batch_size train.chunks_per_device train.log_every
        train.checkpoint_every train.keep_checkpoints train.dev_batches train.spike_steps
        train.profile_steps mesh.fsdp mesh.tensor eval.batch_rows eval.max_passage_tokens
        eval.top_k""".split()
    problems += [
        f"{k}={value_of(config, k)!r}: must be above 0"
        for k in positive
        if not value_of(config, k) > 0
    ]
    not_negative = ("model.lora_rank", "model.freeze_layers", "model.projection")
    not_negative += ("seed", "loss.instruction_negatives", "optim.warmup_steps")
    not_negative += ("optim.weight_decay", "train.checkpoint_minutes", "train.keep_best")
    not_negative += ("train.dev_every", "train.hang_minutes", "train.max_spike", "train.profile_at")
    problems += [
        f"{k}={value_of(config, k)!r}: must not be negative"
        for k in not_negative
        if value_of(config, k) < 0
    ]
    below_one = ("model.dropout", "optim.final_ratio", "optim.b1", "optim.b2")
    problems += [
        f"{k}={value_of(config, k)!r}: must be in [0, 1)"
        for k in below_one
        if not 0 <= value_of(config, k) < 1
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
    problems += [
        f"{key}={value_of(config, key)!r}: a local directory, or gs://BUCKET/DIRECTORY"
        for key in ("out_dir", "export.dir")
        if re.match(r"\w+:/", value_of(config, key))
        and not re.fullmatch(r"gs://[a-z0-9][\w.-]+(/[^/]+)+/?", value_of(config, key))
    ]
    if re.match(r"\w+:/", config.data.dir):
        problems.append(
            f"data.dir={config.data.dir!r}: records are read from a local disk; copy them to each "
            "host, `gcloud storage cp -r`"
        )
    train = config.train
    if train.keep_best and train.best_metric.startswith("dev/") and not train.dev_every:
        problems.append(f"train.best_metric={train.best_metric!r}: needs train.dev_every")
    if train.hang_minutes and not 1e-3 <= train.hang_minutes <= 1e5:
        problems.append(f"train.hang_minutes={train.hang_minutes!r}: 0, or from 0.001 to 100,000")
    name = config.model.name
    if config.out_dir and name and Path(config.out_dir).resolve() == Path(name).resolve():
        problems.append(
            f"out_dir={config.out_dir!r}: is model.name's directory, whose config.json "
            "training would overwrite; give another"
        )
    problems += _pattern_problems(config)
    problems += _head_problems(config)
    problems += _loss_problems(config)
    if problems:
        raise UserError("config: " + "; ".join(problems))


def _pattern_problems(config: ConfigDict) -> list[str]:
    problems = []
    for key in ("model.freeze", "model.lora_targets"):
        try:
            re.compile(value_of(config, key))
        except re.error as error:
            problems.append(f"{key}={value_of(config, key)!r}: no regular expression ({error})")
    model = config.model
    if config.export.adapter and not model.lora_rank:
        problems.append("export.adapter: a run without model.lora_rank has no adapter to export")
    if model.frozen_dtype != "float32" and not (
        model.lora_rank or model.freeze or model.freeze_layers
    ):
        problems.append("model.frozen_dtype: nothing is frozen without lora_rank or freeze")
    return problems


def keys_of(config: ConfigDict, prefix: str = "") -> list[str]:
    """All keys, `section.key`."""
    keys = []
    for name, value in config.items():
        whole = f"{prefix}{name}"
        keys += keys_of(value, f"{whole}.") if isinstance(value, ConfigDict) else [whole]
    return keys


def _head_problems(config: ConfigDict) -> list[str]:
    model, dims, problems = config.model, config.eval.dims, []
    if model.projection and model.query_encoder == "attention":
        problems.append(
            f"model.projection={model.projection}: with model.query_encoder='attention' there is "
            "no layer after it; set it to 0"
        )
    if model.projection_bias and not model.projection:
        problems.append("model.projection_bias=True: there is no model.projection")
    if not _are_dims(dims):
        problems.append(f"eval.dims={dims}: different whole numbers above 0")
    return problems


def _are_dims(dims) -> bool:
    return all(isinstance(d, int) and d > 0 for d in dims) and len(set(dims)) == len(dims)


def _loss_problems(config: ConfigDict) -> list[str]:
    loss, attention = config.loss, config.model.query_encoder == "attention"
    try:
        objective = parse_objective(loss.objective)
    except UserError as error:
        return [f"loss.objective: {error}"]
    problems = []
    sampled = f"loss.instruction_negatives={loss.instruction_negatives}"
    if loss.instruction_negatives > 0 and attention:
        problems.append(
            f"{sampled}: with model.query_encoder='attention' a chunk's instructions are each "
            "other's negatives and none is drawn; set it to 0"
        )
    if loss.instruction_negatives > 0 and "I" not in objective.blocks:
        problems.append(
            f"{sampled}: loss.objective={loss.objective} has no block I that would use them; add "
            "the block or set it to 0"
        )
    if objective.has("distil"):
        problems.append(
            f"loss.objective={loss.objective}: the records hold no teacher's scores; distil is for "
            "callers of inf_jax.losses.contrastive_loss"
        )
    if attention and config.data.query_template != "{query} {instruction}":
        problems.append(
            f"data.query_template={config.data.query_template!r}: model.query_encoder='attention' "
            "reads query and instruction apart, without a template; leave the default"
        )
    if loss.learn_scale and loss.scale > loss.max_scale:
        problems.append(f"loss.scale={loss.scale} exceeds loss.max_scale={loss.max_scale}")
    if not _are_dims(loss.dims):
        problems.append(f"loss.dims={loss.dims}: different whole numbers above 0")
    numbers = all(isinstance(w, int | float) and w > 0 for w in loss.dim_weights)
    if loss.dim_weights and (len(loss.dim_weights) != len(loss.dims) or not numbers):
        problems.append(f"loss.dim_weights={loss.dim_weights}: one above 0 for each of loss.dims")
    return problems


def value_of(config: ConfigDict, key: str):
    """The value of `section.key`."""
    for name in key.split("."):
        config = config[name]
    return config
