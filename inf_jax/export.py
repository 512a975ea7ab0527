"""Exports a run's model as a verified Hugging Face and sentence-transformers directory.

    python -m inf_jax.export --config=configs/medquad_minilm.py

Takes the config and flags of `inf_jax.train`; what may differ from the training are the sections
`export`, `eval` and `mesh`, and what a resumed run may change (`config.resume`). Reads the newest
checkpoint of `out_dir` and writes
`export.dir` (default <out_dir>/export): weights, config, tokenizer, sentence-transformers files,
inf_jax.json, model card and parity.json. With the attention query encoder, which no standard module
of those libraries implements, it adds instructed_encoder.py for queries. LoRA adapters are merged
into the weights; export.adapter=True also writes them to adapter/, for PEFT. Every installed
library opens the directory again; if one gives another embedding, nothing is written.
"""

import dataclasses

from ml_collections import ConfigDict

from inf_jax.checkpoints.manager import Saved
from inf_jax.config.command_line import run
from inf_jax.config.defaults import run_config
from inf_jax.config.sections import RunConfig
from inf_jax.core.console import table
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import dataset_dir
from inf_jax.data.records import fingerprint_of
from inf_jax.data.tokenise import read_examples
from inf_jax.distributed.entry_point import single_process_only
from inf_jax.distributed.mesh import local_mesh
from inf_jax.hf_export.model_card import RunInfo, base_name, problem_of_scores
from inf_jax.hf_export.peft_adapter import Adapters
from inf_jax.hf_export.writer import ExportOptions, export_hf
from inf_jax.io import storage
from inf_jax.io.json_files import read_json
from inf_jax.models.hf.backbone import load_model
from inf_jax.monitoring.compilation import use_compilation_cache
from inf_jax.retriever.from_config import retriever_config
from inf_jax.training.initial_params import checkpoint_of_run, trained_params

COMMAND_FILE = "command.txt"  # written by inf_jax.train


def main(resolved: ConfigDict) -> None:
    """Exports one run.

    Raises:
      UserError: no checkpoint, settings that differ from those of the training, or an export that
        fails its verification.
    """
    config = run_config(resolved)
    use_compilation_cache(config.train.compilation_cache)
    out_dir = storage.as_path(config.out_dir)
    target = storage.as_path(config.export.dir or out_dir / "export")
    storage.check_access(target)
    checkpoints = out_dir / "checkpoints"
    saved = checkpoint_of_run(
        checkpoints, resolved, which=config.export.checkpoint, purpose="export"
    )
    info = _run_info(config, saved, out_dir)
    model = load_model(config)
    if config.export.adapter and config.model.start_from:
        raise UserError(
            f"export.adapter: the adapters are for the weights of {config.model.start_from}, which "
            "PEFT cannot open: export that run, train from the export (model.name), or leave the "
            "adapter out"
        )
    mesh = local_mesh(config.mesh.fsdp * config.mesh.tensor)
    trained = trained_params(checkpoints, saved, config, model, mesh)
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
        info=info,
        adapters=adapters,
    )
    table(
        f"exported step {saved.step} to {target}",
        report.rows(),
        header=("loader", "version", "texts", "min cosine"),
    )
    if problem := problem_of_scores(info, config.eval.max_passage_tokens):
        print(f"the model card has no scores: {problem}")
    if not report.verified:
        print(
            f"NOT verified with {' and '.join(report.not_verified)}: install PyTorch and these "
            "libraries (the extras [torch] and, for adapters, [peft]) and export again"
        )


def _run_info(config: RunConfig, saved: Saved, out_dir: storage.AnyPath) -> RunInfo:
    command = out_dir / COMMAND_FILE
    remedy = "evaluate again, or delete it"
    evaluation = read_json(out_dir / "eval.json", default=None, kind=dict, remedy=remedy)
    return RunInfo(
        config=saved.config,
        command=command.read_text(encoding="utf-8").strip() if command.exists() else "",
        evaluation=evaluation,
        step=saved.step,
        fingerprint=saved.fingerprint,
        split=_fingerprint_now(config, evaluation or {}),
    )


def _fingerprint_now(config: RunConfig, evaluation: dict) -> str:
    """The fingerprint that the evaluated split has now; "" where it is not on this machine."""
    was = evaluation.get("dataset")
    if not isinstance(was, dict) or not {"source", "version", "split"} <= was.keys():
        return ""
    place = {"source": was["source"], "version": was["version"]}
    try:
        directory = dataset_dir(
            dataclasses.replace(config, data=dataclasses.replace(config.data, **place))
        )
        return fingerprint_of(read_examples(directory, was["split"]))
    except UserError:
        return ""


if __name__ == "__main__":
    run(single_process_only(main), __doc__)
