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
from inf_jax.hf_export.peft_adapter import FOLDER as ADAPTER_FOLDER
from inf_jax.hf_export.peft_adapter import Adapters, write_adapter
from inf_jax.io import storage
from inf_jax.io.json_files import read_json, write_json
from inf_jax.models.config import EncoderConfig
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.config import mask_fields, read_config
from inf_jax.models.hf.sentence_transformers import prompt_of
from inf_jax.models.hf.weight_tables import table_of
from inf_jax.models.hf.weights import load_carried, save_weights
from inf_jax.models.pooling import PROJECTION
from inf_jax.retriever.retriever import Retriever
from inf_jax.retriever.settings import FORMAT, SETTINGS_FILE, RetrieverConfig
from inf_jax.text.eos import with_eos
from inf_jax.text.tokenizer import TextTokenizer

# What a tokenizer file brings along of how somebody once used it.
_TOKENIZER_HABITS = """max_length stride truncation_strategy pad_to_multiple_of is_local
    local_files_only auto_map""".split()


def export_hf(
    params: dict,
    model_config: RetrieverConfig,
    tokenizer: TextTokenizer,
    out_dir: str | Path,
    *,
    backbone: str | Path,
    mesh: Mesh | None = None,
    mask: str = "model",
    dtype: str = "float32",
    min_cosine: float = 0.9999,
    info: RunInfo = RunInfo(),
    adapters: Adapters | None = None,
) -> parity.Parity:
    """Writes `out_dir`, whole and verified or not at all; an older export there is replaced.

    Shared towers give one model directory; separate ones give `query/` and `passage/`, a complete
    model each.

    Args:
      params: {tower: tree} of float32 arrays.
      model_config: towers, pooling, projection, templates and limits.
      tokenizer: that of the backbone; an EOS that it appends is appended by the export's files.
      backbone: the HF directory that the training started from; its config.json, tokenizer and
        unused tensors (a pooler) are carried over.
      mesh: over which the model is split while it is verified; None is a copy for each device of
        this process.
      mask: attention as the backbone's config says ("model"), or what the training had in its
        place; the export's config.json says so.
      dtype: of the encoder's weights in the files, float32 or bfloat16; every loader computes in
        float32 when it is compared, so that the cosines tell of the rounding.
      min_cosine: the least cosine that a loader's embedding may have with ours.
      info: what the model card tells of the run.
      adapters: to be written as well; `params` have them merged.

    Returns:
      The parity report, as in parity.json.

    Raises:
      UserError: a loader gives another embedding, or `out_dir` cannot be written or is something
        else than an export.
    """
    if not 0 < min_cosine <= 1:
        raise UserError(f"export.min_cosine={min_cosine!r}: must be in (0, 1]")
    backbone, shape = Path(backbone), read_config(backbone).with_mask(mask)
    how = {"shape": shape, "tokenizer": tokenizer, "attention": "xla", "mesh": mesh}
    reference = Retriever(params, model_config, **how)
    carried = load_carried(backbone, shape)
    apart = model_config.query_encoder == "attention"
    with storage.new_directory(storage.as_path(out_dir), marker=SETTINGS_FILE) as partial:
        for name, folder in model_config.folders(partial).items():
            folder.mkdir(exist_ok=True)
            tree = dict(params[name])
            projection = tree.pop(PROJECTION, None)
            save_weights(tree, folder, shape, carried, dtype=dtype)
            if adapters:
                write_adapter(
                    folder / ADAPTER_FOLDER,
                    adapters.trees[name],
                    lora=adapters.lora,
                    shape=shape,
                    blocks=tree["blocks"],
                    base=adapters.base,
                )
            write_config(backbone, folder, shape, dtype=dtype)
            length = parity.max_length(model_config, name)
            write_tokenizer(backbone, folder, max_length=length, eos=tokenizer.appended_eos)
            if name != "query" or not apart:  # else its pooling would look like a query's vector
                write_sentence_transformers(
                    folder,
                    model_config,
                    width=shape.width,
                    max_length=length,
                    projection=projection,
                )
        if apart:
            source = Path(parity.__file__).with_name(parity.INSTRUCTED_FILE)
            shutil.copyfile(source, partial / parity.INSTRUCTED_FILE)
        settings = dataclasses.asdict(model_config)
        settings |= {"format": FORMAT, "inf_jax": importlib.metadata.version("inf_jax")}
        settings["run"] = {"config": info.config, "command": info.command, "step": info.step}
        write_json(partial / SETTINGS_FILE, settings)
        found = parity.check(
            partial, reference, min_cosine=min_cosine, adapted=backbone if adapters else None
        )
        write_json(partial / "parity.json", dataclasses.asdict(found))
        (partial / "README.md").write_text(
            model_card(
                model_config,
                info,
                found,
                adapter_base=adapters.base if adapters else "",
                both_ways=shape.decoder and not shape.causal,
            ),
            encoding="utf-8",
        )
    return found


def write_config(
    backbone: Path, folder: Path, shape: EncoderConfig, *, dtype: str = "float32"
) -> None:
    """The backbone's config.json, for what is saved here: its dtype, no head, the shape's mask."""
    fields = mask_fields(read_json(backbone / "config.json"), shape)
    # the code that auto_map names is not here, and is not needed
    for name in ("_name_or_path", "auto_map", "dtype", "transformers_version"):
        fields.pop(name, None)
    architecture = table_of(shape).architecture
    write_json(
        folder / "config.json",
        fields | {"architectures": [architecture], "torch_dtype": dtype},
    )


def write_tokenizer(backbone: Path, folder: Path, *, max_length: int, eos: str = "") -> None:
    """The backbone's tokenizer files, which cut at `max_length` tokens when asked to truncate.

    Args:
      eos: a token that they put behind every text; "" is none.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(backbone, local_files_only=True)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    for habit in _TOKENIZER_HABITS:
        tokenizer.init_kwargs.pop(habit, None)
    tokenizer.model_max_length = max_length
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token  # as decoders have it: masked, so any will do
    if eos:
        backend = tokenizer.backend_tokenizer
        backend.post_processor = with_eos(backend, eos, tokenizer.convert_tokens_to_ids(eos))
    tokenizer.save_pretrained(folder)
    if eos:  # transformers before 5 makes some tokenizers' post-processors anew, and goes by this
        path = folder / "tokenizer_config.json"
        write_json(path, read_json(path) | {"add_eos_token": True})


def write_sentence_transformers(
    folder: Path,
    config: RetrieverConfig,
    *,
    width: int,
    max_length: int,
    projection: Mapping | None = None,
) -> None:
    """What sentence-transformers needs to embed as we do."""
    model = st_files.StModel(
        pooling=config.pooling,
        normalise=config.normalise,
        max_length=max_length,
        query_prompt=prompt_of(config.text.query_template)
        if config.query_encoder == "joint"
        else "",
        passage_prompt=prompt_of(config.text.passage_template),
    )
    st_files.write(folder, model, width=width, projection=projection)
