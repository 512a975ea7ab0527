"""Exports a run's model as a verified Hugging Face and sentence-transformers directory.

    python -m inf_jax.export --config=configs/medquad_minilm.py

Takes the config and flags of `inf_jax.train`. Reads the newest checkpoint of `out_dir` and writes
`export.dir` (default <out_dir>/export): weights, config, tokenizer, sentence-transformers files,
inf_jax.json, model card and parity.json. With the attention query encoder, which no standard module
of those libraries implements, it adds instructed_encoder.py for queries. LoRA adapters are merged
into the weights; export.adapter=True also writes them to adapter/, for PEFT. Every installed
library opens the directory again; if one gives another embedding, nothing is written.
"""

from ml_collections import ConfigDict

from inf_jax.config.command_line import run
from inf_jax.config.defaults import defaults, run_config
from inf_jax.core.console import table
from inf_jax.core.errors import UserError
from inf_jax.distributed.entry_point import single_process_only
from inf_jax.distributed.mesh import local_mesh
from inf_jax.hf_export.model_card import RunInfo, base_name
from inf_jax.hf_export.peft_adapter import Adapters
from inf_jax.hf_export.writer import ExportOptions, export_hf
from inf_jax.io import storage
from inf_jax.io.json_files import read_json
from inf_jax.models.hf.backbone import load_model
from inf_jax.retriever.from_config import retriever_config
from inf_jax.training.initial_params import trained_params

COMMAND_FILE = "command.txt"  # written by inf_jax.train

# Keys that must be as in training: the export states them.
_KEYS_OF_THE_MODEL = """model.name model.towers model.query_encoder model.pooling model.normalise
    model.mask model.append_eos model.projection model.projection_bias data.source
    data.query_template data.passage_template""".split()


def main(resolved: ConfigDict) -> None:
    """Exports one run.

    Raises:
      UserError: no checkpoint, settings that differ from those of the training, or an export that
        fails its verification.
    """
    config = run_config(resolved)
    out_dir = storage.as_path(config.out_dir)
    target = storage.as_path(config.export.dir or out_dir / "export")
    storage.check_access(target)
    model = load_model(config)
    if config.export.adapter and config.model.start_from:
        raise UserError(
            f"export.adapter: the adapters are for the weights of {config.model.start_from}, which "
            "PEFT cannot open: export that run, train from the export (model.name), or leave the "
            "adapter out"
        )
    _check_same_model(resolved, out_dir / "config.json")
    mesh = local_mesh(config.mesh.fsdp * config.mesh.tensor)
    checkpoints = out_dir / "checkpoints"
    trained = trained_params(checkpoints, config, model, mesh, which=config.export.checkpoint)
    if trained is None:
        raise UserError(
            f"{checkpoints}: no checkpoint to export; train first: "
            "`python -m inf_jax.train --config=...` with the same config and flags"
        )
    adapters = None
    if config.export.adapter:
        lora, base = model.encoder.options.lora, base_name(config.model.name)
        adapters = Adapters(lora, trained.adapters, base)
    report = export_hf(
        trained.params,
        retriever_config(config),
        model.tokenizer,
        target,
        backbone=model.directory,
        options=ExportOptions(
            dtype=config.export.dtype,
            min_cosine=config.export.min_cosine,
            mask=config.model.mask,
            mesh=mesh,
        ),
        info=_run_info(resolved, out_dir, trained.step),
        adapters=adapters,
    )
    table(
        f"exported step {trained.step} to {target}",
        report.rows(),
        header=("loader", "version", "texts", "min cosine"),
    )
    if not report.verified:
        print(
            f"NOT verified with {' and '.join(report.not_verified)}: install PyTorch and these "
            "libraries (the extras [torch] and, for adapters, [peft]) and export again"
        )


def _check_same_model(resolved: ConfigDict, path: storage.AnyPath) -> None:
    """Raises UserError if the run in `out_dir` was trained as another kind of model."""
    saved = read_json(path, default=None)
    if saved is None:
        return
    differ = []
    for key in _KEYS_OF_THE_MODEL:
        section, name = key.split(".")
        # A key that is newer than the run had its default in the training.
        was = saved.get(section, {}).get(name, defaults()[section][name])
        now = resolved[section][name]
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
