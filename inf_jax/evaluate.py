"""Scores a run before and after training: the backbone's own weights, and the newest checkpoint.

    python -m inf_jax.evaluate --config=configs/medquad_minilm.py [--config.eval.top_k=100 ...]

Takes the config and flags of `inf_jax.train`. Searches the eval split (`evaluation.scores` says
what is measured), prints base, trained and gain side by side, and writes `<out_dir>/eval.json` and
`<out_dir>/eval.png`. All figures are times 100.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np
from ml_collections import ConfigDict

from inf_jax.config.command_line import run
from inf_jax.config.defaults import run_config
from inf_jax.core.console import table
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import dataset_dir, text_config
from inf_jax.data.records import Example, encode_example
from inf_jax.data.tokenise import read_examples
from inf_jax.distributed.entry_point import single_process_only
from inf_jax.distributed.mesh import local_mesh
from inf_jax.evaluation import figure
from inf_jax.evaluation.scores import METRICS, evaluate
from inf_jax.evaluation.task import task_from_examples
from inf_jax.io import storage
from inf_jax.models.encoder import plain_encoder, tower
from inf_jax.models.hf.backbone import load_model
from inf_jax.monitoring import metrics_log as report
from inf_jax.retriever.encode import encode_texts, shortened
from inf_jax.training.initial_params import start_params, trained_params
from inf_jax.training.parameters import make_split


def main(resolved: ConfigDict) -> None:
    """Evaluates one run, from its config."""
    config = run_config(resolved)
    out_dir, section = storage.as_path(config.out_dir), config.eval
    storage.check(out_dir)
    model = load_model(config)
    split, rows, top_k = section.split, section.batch_rows, section.top_k
    base_from, dims, which = section.base_from, tuple(section.dims), section.checkpoint
    text = dataclasses.replace(text_config(config), max_passage_tokens=section.max_passage_tokens)
    apart = config.model.query_encoder == "attention"
    split_over = config.mesh.fsdp * config.mesh.tensor
    positions = model.encoder.config.max_positions
    if text.max_passage_tokens > positions:
        raise UserError(
            f"eval.max_passage_tokens={text.max_passage_tokens}, but {model.directory} has "
            f"{positions} positions; lower it"
        )
    if max(dims, default=0) > model.encoder.width:
        raise UserError(f"eval.dims={dims}: the vectors have {model.encoder.width} entries")
    examples = list(read_examples(dataset_dir(config), split))
    task = task_from_examples(examples)
    dataset = {
        "source": resolved.data.source,
        "version": resolved.data.version,
        "split": split,
        "fingerprint": _fingerprint(examples),
    }
    before = _base_of(storage.as_path(base_from), dataset, resolved) if base_from else None
    mesh = local_mesh(split_over)
    found = trained_params(out_dir / "checkpoints", config, model, mesh, which=which)
    if found is None:
        raise UserError(
            f"{out_dir}/checkpoints: no checkpoint to evaluate; train first: "
            "`python -m inf_jax.train --config=...` with the same config and flags"
        )
    trained, step = found.params, found.step
    encoder = plain_encoder(model.encoder)
    normalise = encoder.options.normalise

    def scores(name: str, params: dict) -> dict[int | None, dict[str, float]]:
        """By how many of the first entries; None is all."""

        def embed(role: str, texts: list[np.ndarray], instructions=None) -> np.ndarray:
            longest = max(text.max_query_tokens, text.max_passage_tokens)
            return encode_texts(
                encoder.encode if instructions is None else encoder.encode_queries,
                tower(params, role),
                texts,
                instructions,
                row_tokens=longest if instructions is None else 2 * text.max_query_tokens,
                rows=rows,
                mesh=mesh,
                progress=f"{name}: {role}",
            )

        def embed_queries(queries: Sequence[tuple[str, str]]) -> np.ndarray:
            if not apart:
                return embed("query", model.tokenizer.queries(queries, text))
            instructions, alone = model.tokenizer.apart(queries, text)
            return embed("query", alone, instructions)

        def embed_passages(passages: Sequence[str]) -> np.ndarray:
            return embed("passage", model.tokenizer.passages(passages, text))

        once = [functools.cache(how) for how in (embed_queries, embed_passages)]

        def cut(how, texts: Sequence, dim: int | None) -> np.ndarray:
            return shortened(how(tuple(texts)), dim, normalise=normalise)

        return {
            dim: evaluate(
                *(functools.partial(cut, how, dim=dim) for how in once),
                task,
                top_k=top_k,
                mesh=mesh,
            )
            for dim in (None, *dims)
        }

    def compared(after: dict[str, float], before: dict[str, float]) -> dict[str, dict]:
        gain = {key: after[key] - before[key] for key in after}
        return {"base": before, "trained": after, "gain": gain}

    after = scores("trained", trained)
    del trained, found
    if before is None:
        start, start_from = make_split(config, model.encoder), config.model.start_from
        before = scores("base", start_params(model, start, mesh, start_from=start_from))
    by_dim = {dim: compared(after[dim], before[dim]) for dim in after}

    title = f"{resolved.data.source} {split}, step {step:,}"
    counts = f"{len(task.queries):,} instructed queries, {len(task.corpus):,} passages"
    for dim, each in by_dim.items():
        table(
            title if dim is None else f"{title}, the first {dim} entries",
            [
                (
                    METRICS[key],
                    f"{each['base'][key]:.1f}",
                    f"{value:.1f}",
                    f"{each['gain'][key]:+.1f}",
                )
                for key, value in each["trained"].items()
            ],
            header=("times 100", "base", "trained", "gain"),
        )
    whole = by_dim.pop(None)
    written = {
        **whole,
        "dims": {str(dim): each for dim, each in by_dim.items()},
        "units": "times 100",
        "step": step,
        "dataset": dataset,
        "queries": len(task.alone),
        "instructed_queries": len(task.queries),
        "passages": len(task.corpus),
        "config": resolved.to_dict(),
    }
    with storage.new_file(out_dir / "eval.json") as file:
        file.write(json.dumps(written, indent=2).encode() + b"\n")
    lines = report.read_metrics(out_dir / "metrics.jsonl")
    figure.draw(
        out_dir / "eval.png",
        title=f"{title}: {counts}",
        losses=[(line["step"], line["loss"]) for line in lines],
        bars=[(METRICS[key], whole["base"][key], value) for key, value in whole["trained"].items()],
    )
    print(f"{counts}; wrote {out_dir}/eval.json and {out_dir}/eval.png")


def _base_of(
    path: storage.AnyPath, dataset: dict, config: ConfigDict
) -> dict[int | None, dict[str, float]]:
    """The base scores of another run's eval.json: same backbone, same texts, same task, same
    dims."""
    try:
        found = json.loads(path.read_text())
        sections = {name: found["config"][name] for name in ("model", "data", "eval")}
        was, base = {"dataset": found["dataset"], **sections}, {None: found["base"]}
        base |= {int(dim): each["base"] for dim, each in found.get("dims", {}).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'eval.base_from={path}: no eval.json of inf_jax.evaluate ({error!r}); give "" to '
            "measure the base here"
        ) from None
    now = {"dataset": dataset, **json.loads(json.dumps(config.to_dict()))}
    differ = [
        f"{section}.{key}"
        for section, values in was.items()
        for key in values | now[section]
        if key != "base_from" and values.get(key) != now[section].get(key)
    ]
    if differ:
        raise UserError(
            f"eval.base_from={path}: its base was measured on other terms ({', '.join(differ)} "
            'differ); give "" to measure the base here'
        )
    return base


def _fingerprint(examples: Iterable[Example]) -> str:
    """A hash of all texts of the split."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(encode_example(example))
    return digest.hexdigest()


if __name__ == "__main__":
    run(single_process_only(main), __doc__)
