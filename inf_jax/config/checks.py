"""Checks a run's config for impossible values and combinations."""

import re
from pathlib import Path

from ml_collections import ConfigDict

from inf_jax.config.idle import idle_keys
from inf_jax.config.mixture import NAME, mixture_sources
from inf_jax.config.schema import key_problems, raise_problems, value_of
from inf_jax.config.sections import RunConfig
from inf_jax.core.choices import AUTO, QUERY_ENCODERS, RETRIEVAL_METRICS
from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import query_encoder
from inf_jax.io.paths import checkpoint_path_problem, is_url, url_problem
from inf_jax.losses.objective import TAUGHT, Objective, parse_objective
from inf_jax.text.templates import TextConfig

_MOST_PARAPHRASES = 100


def check_config(config: ConfigDict) -> None:
    """Raises UserError that lists every impossible value."""
    problems = key_problems(RunConfig(), config)
    data, train, name, out_dir = config.data, config.train, config.model.name, config.out_dir
    longest, warmup = max(data.max_query_tokens, data.max_passage_tokens), config.optim.warmup_steps
    if data.row_tokens < longest:
        row = f"data.row_tokens={data.row_tokens}"
        problems.append(f"{row}: a row must hold the longest text, {longest} tokens")
    if config.optim.lr_scaling != "none" and not config.optim.lr_batch:
        problems.append(
            f"optim.lr_scaling={config.optim.lr_scaling!r}: give optim.lr_batch, the pairs a step "
            "that optim.lr is for"
        )
    if warmup > train.steps:
        problems.append(f"optim.warmup_steps={warmup} exceeds train.steps={train.steps}")
    if config.seed >= 2**32:
        problems.append(f"seed={config.seed}: must be below 2**32")
    if not out_dir:
        problems.append("out_dir is empty: name a directory")
    problems += [
        f"{key}={path!r}: {problem}"
        for key, path, check in (
            ("out_dir", out_dir, checkpoint_path_problem),
            ("model.start_from", config.model.start_from, checkpoint_path_problem),
            ("data.dir", data.dir, url_problem),
            ("export.dir", config.export.dir, url_problem),
            ("train.compilation_cache", config.train.compilation_cache, url_problem),
        )
        if path and (problem := check(path))
    ]
    problems += _name_problems(data) + _mixture_problems(data) + _wording_problems(data)
    if is_url(config.eval.benchmark):
        problems.append(
            f"eval.benchmark={config.eval.benchmark!r}: is read from a local disk; copy it to each "
            "host, `gcloud storage cp -r`"
        )
    problems += _best_problems(config)
    if train.hang_minutes and not 1e-3 <= train.hang_minutes <= 1e5:
        problems.append(f"train.hang_minutes={train.hang_minutes!r}: 0, or from 0.001 to 100,000")
    if out_dir and name and Path(out_dir).resolve() == Path(name).resolve():
        problems.append(
            f"out_dir={out_dir!r}: is model.name's directory, whose config.json training would "
            "overwrite; give another"
        )
    problems += _freezing_problems(config) + _head_problems(config) + _loss_problems(config)
    problems += _query_encoder_problems(config)
    raise_problems([*problems, *idle_keys(config, asks=True)])


def _name_problems(data: ConfigDict) -> list[str]:
    named = {"data.version": data.version}
    if not data.mixture.strip():
        named["data.source"] = data.source
    return [
        f"{key}={name!r}: give one that a directory below data.dir/inf_ir has: letters, digits, "
        "'.', '_' and '-'"
        for key, name in named.items()
        if not NAME.fullmatch(name)
    ]


def _mixture_problems(data: ConfigDict) -> list[str]:
    try:
        sources = mixture_sources(data.mixture)
    except UserError as error:
        return [f"data.mixture={data.mixture!r}: {error}"]
    temperature = f"data.mixture_temperature={data.mixture_temperature:g}"
    if data.mixture_temperature and any(source.weight for source in sources):
        return [f"{temperature}: gives the weights; name data.mixture's sources without theirs"]
    if sources and data.shuffle == "windows":
        return ["data.shuffle='windows': data.mixture draws from all of its sources; set 'global'"]
    if len(sources) == 1:
        return [f"data.mixture={data.mixture!r}: of one source; name it data.source"]
    return []


def _wording_problems(data: ConfigDict) -> list[str]:
    problems = []
    for template in data.more_templates:
        try:
            TextConfig(query_template=template)
        except UserError as error:
            problems.append(f"data.more_templates: {error}")
    if data.paraphrases > _MOST_PARAPHRASES:
        problems.append(
            f"data.paraphrases={data.paraphrases}: each is a copy of the tokenised split; at most "
            f"{_MOST_PARAPHRASES}"
        )
    varied = data.more_templates or data.paraphrases or data.drop_instructions
    if varied and data.shuffle == "windows":
        problems.append(
            "data.shuffle='windows': data.more_templates, data.paraphrases and "
            "data.drop_instructions draw from several copies of the split; set 'global'"
        )
    return problems


def _best_problems(config: ConfigDict) -> list[str]:
    train = config.train
    best = f"train.best_metric={train.best_metric!r}"
    if not train.keep_best or not train.best_metric.startswith("dev/"):
        return []
    if train.best_metric not in RETRIEVAL_METRICS:
        return [] if train.dev_every else [f"{best}: needs train.dev_every"]
    if not train.eval_every:
        return [f"{best}: needs train.eval_every"]
    if train.best_mode == "min":
        return [f"{best}: higher is better; set train.best_mode='max'"]
    return []


def _freezing_problems(config: ConfigDict) -> list[str]:
    problems = []
    for key in ("model.freeze", "model.lora_targets"):
        try:
            re.compile(value_of(config, key))
        except re.error as error:
            problems.append(f"{key}={value_of(config, key)!r}: not a regular expression ({error})")
    return problems


def _head_problems(config: ConfigDict) -> list[str]:
    dims = config.eval.dims
    return [] if _are_dims(dims) else [f"eval.dims={dims}: must be distinct positive integers"]


def _are_dims(dims) -> bool:
    return all(isinstance(d, int) and d > 0 for d in dims) and len(set(dims)) == len(dims)


def _loss_problems(config: ConfigDict) -> list[str]:
    loss = config.loss
    try:
        objective = parse_objective(loss.objective)
    except UserError as error:
        return [f"loss.objective: {error}"]
    problems = []
    sampled = f"loss.instruction_negatives={loss.instruction_negatives}"
    if loss.instruction_negatives > 0 and "I" not in objective.blocks:
        problems.append(
            f"{sampled}: loss.objective={loss.objective} has no block I that would use them; add "
            "the block or set it to 0"
        )
    name, automatic = config.model.query_encoder, config.train.chunks_per_device == AUTO
    in_chunk = name in QUERY_ENCODERS and not query_encoder(name).samples_instructions
    if automatic and in_chunk and "I" in objective.blocks:
        problems.append(
            f"train.chunks_per_device={AUTO!r}: with model.query_encoder={name!r} and block I a "
            "query's candidates are those of its chunk; give the number of chunks"
        )
    taught = objective.has(*TAUGHT)
    if taught and loss.negatives <= 0:
        problems.append(
            f"loss.objective={loss.objective}: a teacher's scores are of a row's own passages; set "
            "loss.negatives to the number of hard negatives to draw"
        )
    if loss.teacher and not taught:
        problems.append(
            f"loss.teacher={loss.teacher!r}: loss.objective={loss.objective} has no distil(P) or "
            "margin(P) that would use its scores; add one, or leave it empty"
        )
    if loss.negatives > 0 and not taught and "P" not in objective.blocks:
        problems.append(
            f"loss.negatives={loss.negatives}: loss.objective={loss.objective} has no block P that "
            "would use them; add the block or set it to 0"
        )
    problems += _by_score_problems(config, objective)
    if loss.learn_scale and loss.scale > loss.max_scale:
        problems.append(f"loss.scale={loss.scale} exceeds loss.max_scale={loss.max_scale}")
    if not _are_dims(loss.dims):
        problems.append(f"loss.dims={loss.dims}: must be distinct positive integers")
    numbers = all(isinstance(w, int | float) and w > 0 for w in loss.dim_weights)
    if loss.dim_weights and (len(loss.dim_weights) != len(loss.dims) or not numbers):
        problems.append(f"loss.dim_weights={loss.dim_weights}: one above 0 for each of loss.dims")
    return problems


def _by_score_problems(config: ConfigDict, objective: Objective) -> list[str]:
    loss, problems = config.loss, []
    softmax = {b for t in objective.terms if t.kind in ("uni", "multi") for b in t.blocks}
    if loss.mask_margin and not set(objective.blocks) - {"I"}:
        problems.append(
            f"loss.mask_margin={loss.mask_margin}: loss.objective={loss.objective} has no block "
            "whose candidates it would mask; set it to 0"
        )
    if loss.hardness and not softmax:
        problems.append(
            f"loss.hardness={loss.hardness}: loss.objective={loss.objective} has no softmax over "
            "candidates; set it to 0"
        )
    if loss.hardness and not config.model.normalise:
        problems.append(
            f"loss.hardness={loss.hardness}: weighs by cosines, and vectors that are not of unit "
            "length have scores whose exponentials leave float32; set model.normalise=True"
        )
    has_hard = loss.negatives > 0 and "P" in softmax
    if loss.hardness > 0 and loss.hardness_of == "hard" and softmax and not has_hard:
        problems.append(
            f"loss.hardness={loss.hardness}: weighs hard negatives in block P, of which this run "
            "has none: set loss.negatives, or loss.hardness_of='all'"
        )
    return problems


def _query_encoder_problems(config: ConfigDict) -> list[str]:
    model, template, problems = config.model, config.data.query_template, []
    if model.query_encoder not in QUERY_ENCODERS:
        return []  # is among the problems of the keys
    encoder, drawn = query_encoder(model.query_encoder), config.loss.instruction_negatives
    given = f"model.query_encoder={model.query_encoder!r}"
    if model.projection and not encoder.pooled:
        problems.append(
            f"model.projection={model.projection}: with {given} there is no layer after it; set it "
            "to 0"
        )
    if drawn > 0 and not encoder.samples_instructions:
        problems.append(
            f"loss.instruction_negatives={drawn}: with {given} a chunk's instructions are each "
            "other's negatives and none is sampled; set it to 0"
        )
    if encoder.texts_per_query > 1 and template != "{query} {instruction}":
        problems.append(
            f"data.query_template={template!r}: {given} encodes query and instruction separately, "
            "without a template; leave the default"
        )
    if encoder.texts_per_query > 1 and config.data.more_templates:
        problems.append(
            f"data.more_templates={config.data.more_templates!r}: {given} encodes query and "
            "instruction separately, without a template; leave it empty"
        )
    return problems
