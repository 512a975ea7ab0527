"""How each library opens an exported directory and embeds texts, from its files alone.

Only this module, and the file for PyTorch users in some exports, import PyTorch.
"""

import runpy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from inf_jax.hf_export.peft_adapter import FOLDER
from inf_jax.models.hf import sentence_transformers as st_files
from inf_jax.models.hf.config import read_config
from inf_jax.models.hf.sentence_transformers import prompt_of
from inf_jax.models.hf.weight_tables import table_of
from inf_jax.retriever.settings import RetrieverConfig

INSTRUCTED_FILE = "instructed_encoder.py"  # in exports with the attention query encoder


class Probe(NamedTuple):
    """A text that loaders are compared on.

    Attributes:
      role: "query" or "passage".
      text: as rendered by the template.
      loaders: names of the other libraries' loaders that must embed it as we do.
      parts: (query, instruction), or (passage,).
    """

    role: str
    text: str
    loaders: tuple[str, ...]
    parts: tuple[str, ...]


def _by_role(
    directory: Path, config: RetrieverConfig, probes: list[Probe]
) -> list[tuple[str, Path, list[str]]]:
    """(role, directory of its tower, its texts), for roles with any texts."""
    folders = config.folders(directory)
    texts = {role: [p.text for p in probes if p.role == role] for role in ("query", "passage")}
    return [(role, folders.get(role, directory), some) for role, some in texts.items() if some]


def _model_class(folder: Path):
    """The class by its name: AutoModel would also load T5's decoder."""
    import transformers

    return getattr(transformers, table_of(read_config(folder)).architecture)


def _open(folder: Path):
    import torch

    return _model_class(folder).from_pretrained(folder, local_files_only=True, dtype=torch.float32)


def embed_adapted(
    directory: Path, config: RetrieverConfig, probes: list[Probe], *, base: Path
) -> np.ndarray:
    """float32[n, e] by PEFT: the base model with the export's config.json and adapter."""
    import peft
    import torch
    import transformers

    def adapted(folder: Path):
        fields = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        model = _model_class(folder).from_pretrained(
            base, config=fields, dtype=torch.float32, local_files_only=True
        )
        with warnings.catch_warnings():  # PEFT 0.21 uses a name that transformers 5 deprecates
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return peft.PeftModel.from_pretrained(model, folder / FOLDER)

    return _transformers(directory, config, probes, open_model=adapted)


def _transformers(
    directory: Path,
    config: RetrieverConfig,
    probes: list[Probe],
    open_model: Callable[[Path], Any] = _open,
) -> np.ndarray:
    """As the model card describes it: last hidden states, pooled here."""
    import torch
    import transformers

    vectors = []
    for _, folder, texts in _by_role(directory, config, probes):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = open_model(folder).eval()
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            states = model(**batch).last_hidden_state
        mask = batch["attention_mask"]
        place = mask.cumsum(1) * mask  # 1 to n along each text, whatever the padding side
        weights = {
            "mean": mask,
            "weighted_mean": place,
            "cls": place == 1,
            "last": (place == mask.sum(1, keepdim=True)) & (place > 0),
        }[config.pooling].float()
        pooled = (states * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)
        projection = st_files.projection_of(folder, width=pooled.shape[1])
        if projection is not None:
            pooled = pooled @ torch.from_numpy(projection["kernel"])
            pooled = pooled + torch.from_numpy(projection.get("bias", np.zeros(1, np.float32)))
        if config.normalise:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        if config.truncate_dim:
            pooled = pooled[:, : config.truncate_dim]
        if config.unit_after_cut:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        vectors.append(pooled.numpy())
    return np.concatenate(vectors)


def _sentence_transformers(
    directory: Path, config: RetrieverConfig, probes: list[Probe]
) -> np.ndarray:
    """By encode_query and encode_document: the texts are passed without their stored prompt."""
    from sentence_transformers import SentenceTransformer

    templates = {"query": config.text.query_template, "passage": config.text.passage_template}
    vectors = []
    for role, folder, texts in _by_role(directory, config, probes):
        model = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": "float32"}
        )
        prompt = prompt_of(templates[role])
        name = {"query": "query", "passage": "document"}[role]
        # A query without instruction may start differently: its template's white space is squeezed.
        prompted = [text for text in texts if text.startswith(prompt)]
        others = [text for text in texts if not text.startswith(prompt)]
        vector_of = {}
        for rendered, passed, options in (
            (others, others, {"prompt": ""}),
            (prompted, [text[len(prompt) :] for text in prompted], {"prompt_name": name}),
        ):
            if passed:
                # cut vectors are not scaled again without being told
                options["normalize_embeddings"] = config.unit_after_cut and config.truncate_dim > 0
                embedded = model.encode(passed, show_progress_bar=False, **options)
                vector_of |= dict(zip(rendered, embedded, strict=True))
        vectors += [vector_of[text] for text in texts]
    return np.stack(vectors)


def _instructed(directory: Path, config: RetrieverConfig, probes: list[Probe]) -> np.ndarray:
    """Queries by the file that the export contains for them."""
    encoder = runpy.run_path(str(directory / INSTRUCTED_FILE))["InstructedEncoder"](directory)
    return encoder.encode(*zip(*(probe.parts for probe in probes), strict=True))


LOADERS = {
    "transformers": _transformers,
    "sentence-transformers": _sentence_transformers,
    INSTRUCTED_FILE: _instructed,
}
