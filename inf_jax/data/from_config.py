"""Builds text settings, tokenised splits, batch layouts and loaders from a run's config."""

import dataclasses
import shlex
from collections.abc import Sequence

from inf_jax.config.mixture import mixture_sources
from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError
from inf_jax.core.query_encoders import query_encoder
from inf_jax.data.layout import BatchLayout
from inf_jax.data.loader import Loader, larger_than_data
from inf_jax.data.mixture.dataset import MixtureDataset, check_alike
from inf_jax.data.mixture.from_config import mixing_of
from inf_jax.data.sampler import ORDER
from inf_jax.data.tokenise import tokenise_plan
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.data.tokenised.opening import open_tokenised
from inf_jax.data.tokenised.plans import TokenisingPlan, plan_shards, split_names
from inf_jax.data.tokenised.rewriting import AS_WRITTEN, Rewriting
from inf_jax.data.tokenised.shuffle import SHUFFLE, is_large
from inf_jax.data.tokenised.varied import VariedDataset, check_instructed
from inf_jax.distributed.coordination import primary_first
from inf_jax.io.storage import AnyPath, as_path, exists, is_bucket
from inf_jax.losses.objective import TAUGHT, parse_objective
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer


def text_config(config: RunConfig) -> TextConfig:
    """Templates and limits of the `data` section."""
    names = (field.name for field in dataclasses.fields(TextConfig))
    return TextConfig(**{name: getattr(config.data, name) for name in names})


def dataset_dir(config: RunConfig) -> AnyPath:
    """`<data.dir>/inf_ir/<source>/<version>`; raises UserError where nothing was built."""
    root = as_path(config.data.dir)
    directory = root / "inf_ir" / config.data.source / config.data.version
    if not exists(directory / "dataset_info.json"):
        if is_bucket(root):
            raise UserError(
                f"{directory}: no dataset here; build it on a local disk with `python -m "
                f"data_pipeline.build` and upload it: `gcloud storage rsync -r out/data {root}`"
            )
        flags = [f"--source={config.data.source}", f"--data-dir={root}"]
        if config.data.source == "synthetic":
            flags.append(f"--count={4 * config.train.batch_size}")
        build = f"python -m data_pipeline.build {shlex.join(flags)}"
        built = sorted(file.parent for file in root.glob("inf_ir/*/*/dataset_info.json"))
        names = ", ".join(f"{each.parent.name}@{each.name}" for each in built)
        there = f"; data.dir has {names}" if names else ""
        remedy = f"build it (and give --name, if it has one of its own) with `{build}`"
        if versions := [one.name for one in built if one.parent.name == config.data.source]:
            remedy = f"set data.version (of a mixture: NAME@VERSION) to {' or '.join(versions)}"
        raise UserError(f"{directory}: no dataset here{there}; {remedy}")
    return directory


def source_configs(config: RunConfig) -> list[RunConfig]:
    """The config of each source that is trained on, as if it were the only one."""
    sources = mixture_sources(config.data.mixture)
    if not sources:
        return [config]
    return [_of_source(config, one.name, one.version) for one in sources]


def eval_config(config: RunConfig) -> RunConfig:
    """The config with the source of eval.split as the only one.

    Raises:
      UserError: no source of the mixture has the split.
    """
    split, sources = config.eval.split, mixture_sources(config.data.mixture)
    versions = {one.name: one.version for one in sources}
    if config.eval.source:
        return _of_source(config, config.eval.source, versions.get(config.eval.source, ""))
    if not sources:
        return config
    for each in source_configs(config):
        if split in split_names(dataset_dir(each)):
            return each
    raise UserError(
        f"eval.split={split}: none of {', '.join(versions)} has this split; set eval.source to the "
        "name of a dataset that has it"
    )


def check_datasets(config: RunConfig) -> None:
    """Raises UserError where a source that is trained on was not built."""
    for each in source_configs(config):
        dataset_dir(each)


def _of_source(config: RunConfig, name: str, version: str) -> RunConfig:
    changes = {"source": name, "version": version or config.data.version, "mixture": ""}
    changes["shuffle"] = "global"  # of a mixture's sources
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def rewriting_of(config: RunConfig) -> Rewriting:
    """What the run changes in the pairs of its training split, whatever their wording."""
    return Rewriting(poisoned=config.data.poisoned_pairs, query_alone=config.data.query_alone)


def wordings_of(config: RunConfig) -> list[tuple[RunConfig, Rewriting]]:
    """The training split's wordings as configs of their own: those that pairs draw from, and last
    the one without instructions, if some lose theirs."""
    data, base = config.data, rewriting_of(config)
    each = [
        (template, dataclasses.replace(base, wording=wording))
        for template in dict.fromkeys((data.query_template, *data.more_templates))
        for wording in range(1 + data.paraphrases)
    ]
    if data.drop_instructions:
        each.append((data.query_template, dataclasses.replace(base, instructions=False)))
    shared = {"stage_mb": max(1, data.stage_mb // len(each))}
    if len(each) > 1:
        shared["shuffle"] = "global"  # by other lengths a wording would be in another order
    found = []
    for template, rewriting in each:
        own = dataclasses.replace(data, query_template=template, **shared)
        found.append((dataclasses.replace(config, data=own), rewriting))
    return found


def training_wordings(
    config: RunConfig, tokenizer: TextTokenizer, *, expected: str | None = None
) -> TokenisedDataset | MixtureDataset | VariedDataset:
    """As `training_data`, of the training split in all of its wordings."""
    each, split = wordings_of(config), config.data.train_split
    parts: list[str | None] = [*(expected or "").split("|")]
    if len(parts) != len(each):
        parts = [expected] * len(each)  # of other wordings: refused where a run is resumed
    found = [
        training_data(own, tokenizer, split, expected=part, rewriting=rewriting)
        for (own, rewriting), part in zip(each, parts, strict=True)
    ]
    if len(found) == 1:
        return found[0]
    share = config.data.drop_instructions
    dropped = found.pop() if share else None
    return VariedDataset(found[0], found[1:], dropped=dropped, share=share)


def training_data(
    config: RunConfig,
    tokenizer: TextTokenizer,
    split: str,
    *,
    expected: str | None = None,
    rewriting: Rewriting = AS_WRITTEN,
) -> TokenisedDataset | MixtureDataset:
    """The tokenised split of the config's source, or of all sources of its mixture; of another
    split than the training split, of those that have it.

    Args:
      expected: the fingerprint of a run that is resumed.

    Raises:
      UserError: as of `tokenise`, or no source has the split.
    """
    configs, trains = source_configs(config), split == config.data.train_split
    if not config.data.mixture.strip():
        config = config if trains else eval_config(config)
        options = {"expected": expected, "rewriting": rewriting}
        return tokenised_split(config, tokenizer, split, **options)
    fingerprints = (expected or "").split("+")
    if len(fingerprints) != len(configs):  # of other sources: refused where a run is resumed
        fingerprints = [None] * len(configs)
    numbers = [
        n for n, each in enumerate(configs) if trains or split in split_names(dataset_dir(each))
    ]
    if not numbers:
        names = ", ".join(each.data.source for each in configs)
        raise UserError(f"eval.split={split}: none of {names} has this split")
    found = [
        tokenised_split(configs[n], tokenizer, split, expected=fingerprints[n], rewriting=rewriting)
        for n in numbers
    ]
    check_alike(found)
    mixing = mixing_of(config, found, numbers)
    if not trains:
        mixing = dataclasses.replace(mixing, homogeneous=False, max_epochs=0.0)
    return MixtureDataset(found, mixing, numbers=numbers)


def tokenised_split(
    config: RunConfig,
    tokenizer: TextTokenizer,
    split: str,
    *,
    expected: str | None = None,
    rewriting: Rewriting = AS_WRITTEN,
) -> TokenisedDataset:
    """The split's tokenised records, written now if there are none; `expected` as of `tokenise`."""
    text = text_config(config)
    plan = plan_shards(
        dataset_dir(config),
        split,
        tokenizer=tokenizer,
        text=text,
        out_dir=as_path(config.data.dir) / "tokenised" / config.data.source,
        rewriting=rewriting,
    )
    plan = _as_ordered(config, plan, expected)
    directory = tokenise_plan(plan, tokenizer=tokenizer, text=text, expected=expected)
    return open_tokenised(directory, limit=config.data.stage_mb << 20)


def _as_ordered(config: RunConfig, plan: TokenisingPlan, expected: str | None) -> TokenisingPlan:
    """The plan for records that are shuffled, to be read in windows, or as they are; of a run that
    is resumed, as it began."""
    shuffle = config.data.shuffle if plan.recipe["split"] == config.data.train_split else "global"
    before = [plan.as_shuffled(True, version=v) for v in range(1, SHUFFLE)]
    windows, stored = plan.as_shuffled(True), plan.as_shuffled(False)
    large = is_large(plan.num_examples, plan.directory, batch=config.train.batch_size)
    auto = [windows if large else stored, stored, windows, *before]
    plans = {"auto": auto, "windows": [windows, *before], "global": [stored]}[shuffle]
    return next((one for one in plans if one.fingerprint == expected), plans[0])


def batch_layout(config: RunConfig, *, devices: int, pairs_per_example: int) -> BatchLayout:
    """The shapes of a training batch that is split over this many devices.

    Raises:
      UserError: as of `BatchLayout`, or train.batch_size holds no whole number of examples.
    """
    objective = parse_objective(config.loss.objective)
    block_i = "I" in objective.blocks
    size, k = config.train.batch_size, pairs_per_example
    if size % k:
        near = " or ".join(f"{n:,}" for n in (size - size % k, size + k - size % k) if n)
        if config.data.mixture.strip():
            raise UserError(
                f"train.batch_size={size} counts pairs, and data.mixture is dealt in units of {k}, "
                f"whole examples of each source: give {near}"
            )
        raise UserError(
            f"train.batch_size={size} counts pairs, and an example of data.source="
            f"{config.data.source} has {k}: give {near} (or {k * size:,}, if examples were meant)"
        )
    return BatchLayout(
        batch_size=size // k,
        pairs_per_example=k,
        chunks=devices * config.train.chunks_per_device,
        row_tokens=config.data.row_tokens,
        texts_per_row=config.data.texts_per_row or max(16, config.data.row_tokens // 8),
        towers=config.model.towers,
        query_encoder=query_encoder(config.model.query_encoder),
        instruction_negatives=config.loss.instruction_negatives if block_i else None,
        negatives=config.loss.negatives,
        teacher=objective.has(*TAUGHT) and not config.loss.teacher,
        mixture=bool(config.data.mixture.strip()),
        queries_alone=config.data.query_alone or config.data.drop_instructions > 0,
    )


def make_loader(
    config: RunConfig,
    tokenizer: TextTokenizer,
    *,
    devices: int,
    parts: Sequence[int] | None = None,
    split: str | None = None,
    steps: int | None = None,
    expected: str | None = None,
    order: int | None = None,
) -> Loader:
    """The loader of a split, by default of the training split for the steps of the run.

    Args:
      devices: that a batch is split over.
      parts: this process's parts of a batch, see `mesh.local_parts`; None is all.
      split: of another split than the training split, a batch is at most all of it.
      expected: the tokenised split must have this fingerprint.
      order: of the examples, a key of `example_order.ORDERS`; None is that of new runs.

    Raises:
      UserError: the dataset is missing, it has too few examples for these devices, or a step of a
        new run is larger than it (but with data.repeat_in_step).
    """
    batch_layout(config, devices=devices, pairs_per_example=1)  # raises before any long work
    name = split or config.data.train_split
    with primary_first(f"tokenised {name}"):
        if name == config.data.train_split:
            dataset = training_wordings(config, tokenizer, expected=expected)
            varied = ("paraphrases", "drop_instructions", "query_alone")
            if order is None:  # of a new run
                check_instructed(dataset, {key: getattr(config.data, key) for key in varied})
        else:
            dataset = training_data(config, tokenizer, name, expected=expected)
    k, size = dataset.pairs_per_example, config.train.batch_size
    if name != config.data.train_split:  # whose examples may have another number of pairs
        train = dataclasses.replace(config.train, batch_size=max(k, size - size % k))
        config = dataclasses.replace(config, train=train)
    layout = batch_layout(config, devices=devices, pairs_per_example=k)
    if name != config.data.train_split:
        if dataset.num_examples * k < layout.chunks:
            raise UserError(
                f"eval.split={name}: {layout.chunks} chunks need at least {layout.chunks} pairs, "
                f"has {dataset.num_examples} examples; set train.dev_every=0 or name a larger split"
            )
        most = dataset.num_examples
        if layout.mixture:  # a source with few is repeated in a step, and its copies are masked
            pairs = sum(one.num_examples * one.pairs_per_example for one in dataset.sources)
            most = max(-(-layout.chunks // k), pairs // k)
        layout = dataclasses.replace(layout, batch_size=min(layout.batch_size, most))
    each, steps = config.train.chunks_per_device, steps or config.train.steps
    loader = Loader(
        dataset,
        layout,
        seed=config.seed,
        steps=steps,
        mine=None if parts is None else [n * each + i for n in parts for i in range(each)],
        order=ORDER if order is None else order,
        measured=name != config.data.train_split,
    )
    problem = larger_than_data(loader) if name == config.data.train_split else ""
    if problem and order is None and not config.data.repeat_in_step:
        raise UserError(f"{problem}, or set data.repeat_in_step=true")
    epochs, most = steps * layout.batch_size / dataset.num_examples, config.data.max_epochs
    if name == config.data.train_split and not layout.mixture and 0 < most < epochs:
        raise UserError(
            f"data.max_epochs={most:g}: {steps:,} steps would read the data {epochs:.2f} times; "
            "raise it, lower train.steps, or add data"
        )
    return loader
