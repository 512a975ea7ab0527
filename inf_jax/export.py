"""Exports a trained model as a Hugging Face directory, verified or not at all.

    python -m inf_jax.export --config=configs/medquad_minilm.py

Takes the newest checkpoint of `config.out_dir` and writes `config.export.dir` (default
<out_dir>/export): weights, config, tokenizer, sentence-transformers files, inf_jax.json, model card
and parity.json. With the attention query encoder, whose queries no standard module of those
libraries embeds, it adds instructed_encoder.py for them; passages are as ever. A run's adapters are
merged into the weights; export.adapter=True adds them as adapter/, for PEFT. The directory is
opened again with every library that is installed; if one of them gives another embedding, nothing
is written.
"""

from ml_collections import ConfigDict

from inf_jax.config.command_line import run
from inf_jax.config.defaults import defaults, run_config
from inf_jax.core.errors import UserError
from inf_jax.distributed.entry_point import single_process_only
from inf_jax.distributed.mesh import local_mesh
from inf_jax.hf_export.model_card import RunInfo, base_name
from inf_jax.hf_export.peft_adapter import Adapters
from inf_jax.hf_export.writer import export_hf
from inf_jax.io import storage
from inf_jax.io.json_files import read_json
from inf_jax.models.hf.backbone import load_model
from inf_jax.retriever.from_config import retriever_config
from inf_jax.training.initial_params import trained_params

COMMAND_FILE = "command.txt"  # written by inf_jax.train

# What the export says of the model: it must be what the run was trained with.
_SAME = """model.name model.towers model.query_encoder model.pooling model.normalise model.mask
    model.append_eos model.projection model.projection_bias data.source data.query_template
    data.passage_template""".split()


def main(resolved: ConfigDict) -> None:
    """One export, from the run's config."""
    from inf_jax.core.console import table

    config = run_config(resolved)
    out_dir = storage.as_path(config.out_dir)
    target = storage.as_path(config.export.dir or out_dir / "export")
    min_cosine, which = config.export.min_cosine, config.export.checkpoint
    dtype = config.export.dtype
    wanted, start_from = config.export.adapter, config.model.start_from
    storage.check(target)
    model, settings = load_model(config), retriever_config(config)
    if wanted and start_from:
        raise UserError(
            f"export.adapter: the adapters are for the weights of {start_from}, which PEFT cannot "
            "open: export that run, train from the export (model.name), or leave the adapter out"
        )
    _check_same_run(resolved, out_dir / "config.json")
    mesh = local_mesh(config.mesh.fsdp * config.mesh.tensor)
    trained = trained_params(out_dir / "checkpoints", config, model, mesh, which=which)
    if trained is None:
        raise UserError(
            f"{out_dir}/checkpoints: no checkpoint to export; train first: "
            "`python -m inf_jax.train --config=...` with the same config and flags"
        )
    found = export_hf(
        trained.params,
        settings,
        model.tokenizer,
        target,
        backbone=model.directory,
        mesh=mesh,
        mask=config.model.mask,
        dtype=dtype,
        min_cosine=min_cosine,
        info=_run_info(resolved, out_dir, trained.step),
        adapters=Adapters(
            model.encoder.options.lora, trained.adapters, base_name(config.model.name)
        )
        if wanted
        else None,
    )
    table(
        f"exported step {trained.step} to {target}",
        found.rows(),
        header=("loader", "version", "texts", "least cosine"),
    )
    if not found.verified:
        print(
            f"NOT verified with {' and '.join(found.not_verified)}: install PyTorch and its "
            "libraries (the extras [torch] and, for adapters, [peft]) and export again"
        )


def _check_same_run(resolved: ConfigDict, path: storage.AnyPath) -> None:
    """Raises UserError where the run in out_dir was trained as another kind of model."""
    saved = read_json(path, default=None)
    if saved is None:
        return
    differ = []
    for key in _SAME:
        section, name = key.split(".")
        # a run from before there was this key was trained as its default says
        default = defaults()[section][name]
        was, now = saved.get(section, {}).get(name, default), resolved[section][name]
        if was != now:
            differ.append(f"{key} was {was!r} in training and is {now!r} now")
    if differ:
        raise UserError(f"{path}: {'; '.join(differ)}: export with the flags of the training")


def _run_info(resolved: ConfigDict, out_dir: storage.AnyPath, step: int) -> RunInfo:
    command = out_dir / COMMAND_FILE
    return RunInfo(
        config=read_json(out_dir / "config.json", default=None) or resolved.to_dict(),
        command=command.read_text(encoding="utf-8").strip() if command.exists() else "",
        evaluation=read_json(out_dir / "eval.json", default=None),
        step=step,
    )


if __name__ == "__main__":
    run(single_process_only(main), __doc__)
