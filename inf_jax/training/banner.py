"""Prints the table at the start of a training run and the tables at its end."""

from collections.abc import Mapping

import jax

from inf_jax.config.sections import RunConfig
from inf_jax.core.console import table
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import eval_config
from inf_jax.data.loader import Loader
from inf_jax.data.step_shapes import loader_inputs
from inf_jax.losses.objective import count_negatives
from inf_jax.monitoring.step_timer import StepWork
from inf_jax.planning.chips import peak_flops
from inf_jax.planning.flops import encoder_flops, model_flops
from inf_jax.training.setup import Training

# Metric -> (label in the closing table, format); a name that ends in "/" has one row per block.
_HEALTH = {
    "health/alignment": ("alignment", ".3f"),
    "health/uniformity_query": ("uniformity, queries", ".3f"),
    "health/uniformity_passage": ("uniformity, passages", ".3f"),
    "health/rank_query": ("effective rank, queries", ".1f"),
    "health/rank_passage": ("effective rank, passages", ".1f"),
    "accuracy/": ("in-batch accuracy, block ", ".1%"),
    "false_negatives/": ("suspected false negatives a row, block ", ".2f"),
    "masked/": ("masked candidates, block ", ".2%"),
}

# Timing figure -> (label in the closing table, unit, format).
_PACE = {
    "examples_per_s": ("examples/s", 1, ",.1f"),
    "pairs_per_s": ("pairs/s", 1, ",.1f"),
    "tokens_per_s": ("tokens/s", 1, ",.0f"),
    "mfu": ("MFU", 1, ".1%"),
    "goodput": ("goodput", 1, ".1%"),
    "scoring_s": ("retrieval scores, s, all starts", 1, ",.1f"),
    "scoring_share": ("retrieval scores, share of time", 1, ".1%"),
    "compile_s": ("compiling, s, all starts", 1, ",.1f"),
    "programs_compiled": ("programs compiled", 1, ",.0f"),
    "programs_cached": ("programs from the cache", 1, ",.0f"),
    "device_bytes": ("device memory, GiB", 2**30, ".2f"),
    "device_peak_bytes": ("device memory, peak GiB", 2**30, ".2f"),
    "host_peak_bytes": ("host memory, peak GiB", 2**30, ".2f"),
}


def work_of(training: Training, *, dims: tuple[int, ...] = ()) -> StepWork:
    """The mean work of a run's step; `dims` are the Matryoshka sizes of the loss."""
    inputs, mesh = loader_inputs(training.loader), training.program.mesh
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    teacher, texts = training.program.teacher, {"tokens": inputs.tokens, "squares": inputs.squares}
    return StepWork(
        examples=inputs.examples,
        pairs=inputs.pairs,
        tokens=inputs.tokens,
        flops=model_flops(
            training.model.encoder.config,
            training.program.objective,
            **texts,
            pairs=inputs.pairs,
            candidates=inputs.candidates(training.program.objective),
            dims=dims or (training.model.encoder.width,),
            adapter=training.program.partition.adapter_size,
        )
        + (encoder_flops(teacher.config, **texts) if teacher else 0),
        peak=None if peak is None else peak * mesh.size,
    )


def banner(
    config: RunConfig, training: Training, *, first_step: int, more: Mapping[str, str]
) -> None:
    """Prints what is trained on which data and devices, the negatives of each query, and `more`."""
    loader, mesh, steps = training.loader, training.program.mesh, config.train.steps
    plan, layout, data = loader.plan, loader.layout, loader.dataset
    negatives = count_negatives(
        training.program.objective,
        pairs=round(plan.pairs),
        hard_negatives=plan.negatives,
        instruction_negatives=layout.instruction_candidates,
    )
    inputs = loader_inputs(loader)
    epochs = steps * inputs.examples / data.num_examples
    grids = " + ".join(f"{layout.chunks}x{r}x{layout.row_tokens}" for r in plan.rows)
    shapes = training.program.shapes
    parameters, trained = (
        sum(x.size for x in jax.tree.leaves(tree)) for tree in (shapes.whole, shapes.params)
    )
    table(
        f"inf_jax: {training.program.objective}, steps {first_step} to {steps}",
        [
            ("model", config.model.name),
            ("parameters", f"{parameters:,}, {config.model.towers} towers, {config.model.dtype}"),
            *([("trained parameters", f"{trained:,}")] if trained < parameters else []),
            *([("teacher", config.loss.teacher)] if training.program.teacher else []),
            ("devices", f"{mesh.size} x {jax.devices()[0].device_kind}"),
            ("hosts", jax.process_count()),
            ("mesh", " ".join(f"{name}={size}" for name, size in mesh.shape.items())),
            ("examples", f"{data.num_examples:,} ({epochs:.2f} epochs in {steps} steps)"),
            ("a step", f"{inputs.examples:.0f} examples, {plan.pairs:.0f} pairs"),
            *_mixture(config, loader),
            ("grid (chunks x rows x tokens)", grids),
            ("chunks a device", config.train.chunks_per_device),
            ("remat", config.model.remat),
            ("tokens a step", f"{plan.tokens:,.0f}, fill {plan.fill:.1%}"),
            ("attention", training.model.encoder.attention_in_training(layout.row_tokens)),
            ("shape", "known for all steps" if plan.exact else "from sampled steps"),
            *((f"negatives a query, block {b}", n) for b, n in negatives.items()),
            *_hard_negatives(loader),
            *_instruction_negatives(loader),
            *_old_order(loader),
            *_windows(loader),
            *more.items(),
        ],
    )
    if inputs.warning:
        print(f"WARNING: {inputs.warning}\n")


def _mixture(config: RunConfig, loader: Loader) -> list[tuple[str, str]]:
    """The sources of a mixture: what they give of the run, and which one is scored."""
    if not loader.layout.mixture:
        return []
    dataset, order, steps = loader.dataset, loader.example_order, loader.steps
    pairs, leaving = order.pairs_before(steps), dict(order.leaving(steps))
    counts = zip(dataset.mixing.names, dataset.sources, pairs, order.epochs(steps), strict=True)
    kind = "each step of one source" if dataset.mixing.homogeneous else "steps of all sources"
    return [
        ("mixture", kind),
        *(
            (
                f"  {name}",
                f"{count / sum(pairs):.2%} of the pairs, {one.num_examples:,} examples, "
                f"{epochs:.2f} epochs"
                + (f", until step {leaving[name]:,}" if name in leaving else ""),
            )
            for name, one, count, epochs in counts
        ),
        ("retrieval scores of", f"{_scored(config)} {config.eval.split}"),
    ]


def _scored(config: RunConfig) -> str:
    try:
        return eval_config(config).data.source
    except UserError:
        return "no source,"


def _old_order(loader: Loader) -> list[tuple[str, str]]:
    """What a run that is resumed keeps of an older version."""
    # 5 differs from 4 in `data.windows` alone, 7 from 5 in the windows of small steps outside them
    if _windowed(loader):
        fuller = loader.order < 5
    else:
        fuller = loader.order < 4 or loader.example_order.short_windows
    if not fuller:
        return []
    why = "rows are less full"
    if loader.order == 1:
        why += ", and a step near the end of an epoch may hold an example several times"
    return [("order", f"{loader.order}, as the run began: {why}")]


def _windows(loader: Loader) -> list[tuple[str, str]]:
    """How the records of a shuffled split are read."""
    if not _windowed(loader):
        return []
    order = loader.example_order
    return [("windows", f"of {len(order.steps(0)):,} steps and {order.lanes} lanes")]


def _windowed(loader: Loader) -> bool:
    return not loader.layout.mixture and loader.dataset.windowed


def _hard_negatives(loader: Loader) -> list[tuple[str, str]]:
    """How many of its own are drawn for a pair, or that there are some."""
    if loader.layout.negatives:
        return [("hard negatives a pair", f"{loader.plan.negatives:.2f}")]
    if loader.dataset.negative_counts is None:
        return []
    return [("hard negatives a pair", "0: the data has some, loss.negatives draws them")]


def _instruction_negatives(loader: Loader) -> list[tuple[str, str]]:
    """Where the negatives of block I come from, and the tokens that they cost."""
    plan = loader.plan
    if not loader.layout.block_i:
        return []
    if not loader.layout.query_encoder.samples_instructions:
        return [("block I", "the other instructions of a chunk, no tokens of their own")]
    share = plan.sampled_tokens / plan.tokens
    return [
        ("block I, a query", f"{plan.sampled:.2f} sampled, {plan.poisons:.2f} poisoned at no cost"),
        ("block I, tokens a step", f"{plan.sampled_tokens:,.0f}, {share:.1%} of all"),
    ]


def summary(
    training: Training, *, steps: int, seconds: float, metrics: dict, pace: dict[str, float]
) -> None:
    """Prints the speed of a finished run and the health of its last step.

    Args:
      steps, seconds: since this start, compilation included.
      metrics: of the last step.
      pace: timing figures of all steps of all starts (`inf_jax.monitoring.step_timer`).
    """
    fill = f"{training.loader.plan.fill:.1%}"
    table("trained", [("steps", steps), ("seconds", f"{seconds:.0f}"), ("fill", fill)])
    table("pace of all steps, compilation not included", pace_rows(pace))
    if rows := health_rows(metrics):
        table("health of the last step", rows)


def health_rows(metrics: dict) -> list[tuple[str, str]]:
    """(label, value) of the health figures among these metrics, in the order of `_HEALTH`."""
    return [
        (label + name.removeprefix(key), format(value, form))
        for key, (label, form) in _HEALTH.items()
        for name, value in metrics.items()
        if name == key or (key.endswith("/") and name.startswith(key))
    ]


def pace_rows(pace: dict[str, float]) -> list[tuple[str, str]]:
    """(label, value) of timing figures, in the order of `_PACE`."""
    rows = []
    for what, label in (("step", "step time"), ("wait", "input wait")):
        times = [pace[key] for q in (50, 90, 99) if (key := f"{what}_p{q}_s") in pace]
        if times:
            times = " / ".join(f"{seconds:.3g}" for seconds in times)
            rows.append((f"{label}, s: p50 / p90 / p99", times))
    for key, (label, unit, form) in _PACE.items():
        if key in pace:
            rows.append((label, format(pace[key] / unit, form)))
    return rows
