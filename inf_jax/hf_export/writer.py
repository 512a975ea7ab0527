"""Writes a trained model as a Hugging Face and sentence-transformers directory."""

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Mapping
from pathlib import Path

from jax.sharding import Mesh

from inf_jax.core.errors import UserError
from inf_jax.hf_export import parity
from inf_jax.hf_export.model_card import RunInfo, model_card
from inf_jax.hf_export.parity_loaders import INSTRUCTED_FILE
from inf_jax.hf_export.peft_adapter import FOLDER as ADAPTER_FOLDER
from inf_jax.hf_export.peft_adapter import Adapters, write_adapter
from inf_jax.hf_export.tokenizer_writer import write_tokenizer
from inf_jax.io import storage
from inf_jax.io.json_files import read_json, write_json
from inf_jax.models.config import EncoderConfig
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.config import mask_fields, read_config
from inf_jax.models.hf.module_settings import TransformerSettings
from inf_jax.models.hf.sentence_transformers import prompt_of
from inf_jax.models.hf.weight_tables import table_of
from inf_jax.models.hf.weights import load_carried, save_weights
from inf_jax.models.pooling import PROJECTION
from inf_jax.retriever.retriever import Retriever
from inf_jax.retriever.settings import SETTINGS_FILE, SETTINGS_FORMAT, RetrieverConfig
from inf_jax.text.tokenizer import TextTokenizer


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """How the model is written and verified.

    Attributes:
      dtype: dtype of the encoder's weights in the files, float32 or bfloat16. Loaders are compared
        in float32, so the cosines show the rounding.
      min_cosine: least allowed cosine between a loader's embedding and ours, in (0, 1].
      mask: attention mask of the training, written to config.json; "model": as there already.
      mesh: devices over which the model is split for the verification; None: one copy on each
        device of this process.
    """

    dtype: str = "float32"
    min_cosine: float = 0.9999
    mask: str = "model"
    mesh: Mesh | None = None


def export_hf(
    params: dict,
    config: RetrieverConfig,
    tokenizer: TextTokenizer,
    out_dir: str | Path,
    *,
    backbone: str | Path,
    options: ExportOptions = ExportOptions(),
    info: RunInfo = RunInfo(),
    adapters: Adapters | None = None,
) -> parity.Parity:
    """Writes `out_dir` atomically after verifying it; replaces an older export.

    Shared towers give one model directory; separate ones give `query/` and `passage/`, a complete
    model each.

    Args:
      params: {tower: tree} of float32 arrays.
      config: towers, pooling, projection, templates and limits.
      tokenizer: the run's tokenizer; if it appends an EOS, so do the exported files.
      backbone: Hugging Face directory that the training started from; its config.json, tokenizer
        and unused tensors (a pooler) are carried over.
      options: see ExportOptions.
      info: what the model card says about the run.
      adapters: adapters to write as well; in `params` they are merged.

    Returns:
      The parity report, as in parity.json.

    Raises:
      UserError: a loader gives another embedding, or `out_dir` cannot be written or is not an
        export.
    """
    if not 0 < options.min_cosine <= 1:
        raise UserError(f"export.min_cosine={options.min_cosine!r}: must be in (0, 1]")
    backbone, shape = Path(backbone), read_config(backbone).with_mask(options.mask)
    reference = Retriever(
        params, config, shape=shape, tokenizer=tokenizer, attention="xla", mesh=options.mesh
    )
    carried = load_carried(backbone, shape)
    before = st_files.transformer_of_run(backbone)
    lengths = bool(before.query_length or before.document_length)
    with storage.new_directory(storage.as_path(out_dir), marker=SETTINGS_FILE) as partial:
        for name, folder in config.folders(partial).items():
            folder.mkdir(exist_ok=True)
            tree = dict(params[name])
            projection = tree.pop(PROJECTION, None)
            save_weights(tree, folder, shape, carried, dtype=options.dtype)
            if adapters:
                write_adapter(
                    folder / ADAPTER_FOLDER,
                    adapters.trees[name],
                    lora=adapters.lora,
                    shape=shape,
                    blocks=tree["blocks"],
                    base=adapters.base,
                )
            write_config(backbone, folder, shape, dtype=options.dtype)
            length = parity.max_length(config, name)
            write_tokenizer(
                backbone,
                folder,
                max_length=length,
                eos=tokenizer.appended_eos,
                rows=shape.vocab_size,
                lower_case=tokenizer.lower_case,
            )
            # Without them sentence-transformers cannot pool a query that must not be pooled.
            if name != "query" or config.queries.pooled:
                write_sentence_transformers(
                    folder,
                    config,
                    width=shape.width,
                    max_length=length,
                    lengths=lengths,
                    projection=projection,
                )
        if not config.queries.pooled:
            source = Path(__file__).with_name("instructed_encoder.py")
            shutil.copyfile(source, partial / INSTRUCTED_FILE)
        write_json(partial / SETTINGS_FILE, _settings(config, info))
        report = parity.check_export(
            partial,
            reference,
            min_cosine=options.min_cosine,
            adapter_base=backbone if adapters else None,
        )
        write_json(partial / "parity.json", dataclasses.asdict(report))
        card = model_card(
            config,
            info,
            report,
            adapter_base=adapters.base if adapters else "",
            bidirectional_decoder=shape.decoder and not shape.causal,
        )
        (partial / "README.md").write_text(card, encoding="utf-8")
    return report


def _settings(config: RetrieverConfig, info: RunInfo) -> dict:
    """The contents of `inf_jax.json`: the retriever's settings, and the run for the record."""
    version = importlib.metadata.version("inf_jax")
    run = {"config": info.config, "command": info.command, "step": info.step}
    return dataclasses.asdict(config) | {"format": SETTINGS_FORMAT, "inf_jax": version, "run": run}


def write_config(
    backbone: Path, folder: Path, shape: EncoderConfig, *, dtype: str = "float32"
) -> None:
    """Writes the backbone's config.json with this dtype and mask, and an architecture without head.

    Args:
      backbone: directory to read from.
      folder: directory to write to.
    """
    fields = mask_fields(read_json(backbone / "config.json"), shape)
    # auto_map names code that is not exported and not needed.
    for name in ("_name_or_path", "auto_map", "dtype", "transformers_version"):
        fields.pop(name, None)
    architecture = table_of(shape).architecture
    write_json(
        folder / "config.json", fields | {"architectures": [architecture], "torch_dtype": dtype}
    )


def write_sentence_transformers(
    folder: Path,
    config: RetrieverConfig,
    *,
    width: int,
    max_length: int,
    lengths: bool = False,
    projection: Mapping | None = None,
) -> None:
    """Writes the files with which sentence-transformers gives the same embeddings.

    Args:
      width: the encoder's width, d.
      max_length: tokens to which a text is cut.
      lengths: also write the limits of queries and passages, which version 6 knows.
      projection: {"kernel": float32[d, e], "bias": float32[e] or absent}; None: no such layer.
    """
    text, query_length, document_length = config.text, None, None
    if lengths:
        query_length, document_length = text.max_query_tokens, text.max_passage_tokens
    model = st_files.StModel(
        pooling=config.pooling,
        normalise=config.normalise,
        query_prompt=prompt_of(text.query_template) if config.queries.pooled else "",
        passage_prompt=prompt_of(text.passage_template),
        truncate_dim=config.truncate_dim,
        similarity=config.similarity,
        transformer=TransformerSettings(max_length, query_length, document_length),
    )
    st_files.write(folder, model, width=width, projection=projection)
