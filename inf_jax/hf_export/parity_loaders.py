"""How each library opens an exported directory and embeds texts, from its files alone.

PyTorch is imported in here only (and in the file for PyTorch users that some exports hold), where
it is installed.
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
    """A text of one role, rendered, and the loaders beside our own that embed it as we do.

    A query that is too long loses the end of the query here and the end of the text elsewhere. A
    query whose instruction is encoded apart is embedded by the export's own file alone. `parts` are
    a query and its instruction, or a passage.
    """

    role: str
    text: str
    loaders: tuple[str, ...]
    parts: tuple[str, ...]


def _by_role(
    directory: Path, config: RetrieverConfig, probes: list[Probe]
) -> list[tuple[str, Path, list[str]]]:
    """(role, directory of its tower, its texts), of the roles that have some."""
    folders = config.folders(directory)
    texts = {role: [p.text for p in probes if p.role == role] for role in ("query", "passage")}
    return [(role, folders.get(role, directory), found) for role, found in texts.items() if found]


def _open(folder: Path):
    # AutoModel would take T5's decoder along
    import torch
    import transformers

    kind = getattr(transformers, table_of(read_config(folder)).architecture)
    return kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32)


def embed_adapted(
    directory: Path, config: RetrieverConfig, probes: list[Probe], *, base: Path
) -> np.ndarray:
    """By PEFT: the base, with the export's config.json, and the adapter."""
    import peft
    import torch
    import transformers

    def adapted(folder: Path):
        kind = getattr(transformers, table_of(read_config(folder)).architecture)
        fields = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        how = {"config": fields, "dtype": torch.float32, "local_files_only": True}
        model = kind.from_pretrained(base, **how)
        with warnings.catch_warnings():  # PEFT 0.21 asks transformers 5 by an older name
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            return peft.PeftModel.from_pretrained(model, folder / FOLDER)

    return _transformers(directory, config, probes, open_model=adapted)


def _transformers(
    directory: Path,
    config: RetrieverConfig,
    probes: list[Probe],
    open_model: Callable[[Path], Any] = _open,
) -> np.ndarray:
    """As the model card shows it: token states of the model without a head, pooled by hand."""
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
        place = mask.cumsum(1) * mask  # 1 to n along each text, on whichever side it is padded
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
        vectors.append(pooled.numpy())
    return np.concatenate(vectors)


def _sentence_transformers(
    directory: Path, config: RetrieverConfig, probes: list[Probe]
) -> np.ndarray:
    """By its own files alone: texts are given without the words that are its prompt."""
    from sentence_transformers import SentenceTransformer

    prompts = {
        "query": prompt_of(config.text.query_template),
        "passage": prompt_of(config.text.passage_template),
    }
    vectors = []
    for role, folder, texts in _by_role(directory, config, probes):
        how = {"device": "cpu", "local_files_only": True, "model_kwargs": {"dtype": "float32"}}
        model = SentenceTransformer(str(folder), **how)
        name = {"query": "query", "passage": "document"}[role]
        # A query without instruction may start otherwise, since its template is squeezed.
        whole = [text for text in texts if not text.startswith(prompts[role])]
        rest = [text[len(prompts[role]) :] for text in texts if text.startswith(prompts[role])]
        found = dict.fromkeys(texts)
        for given, part, how in (
            (whole, whole, {"prompt": ""}),
            (rest, [prompts[role] + text for text in rest], {"prompt_name": name}),
        ):
            if given:
                embedded = model.encode(given, show_progress_bar=False, **how)
                found |= dict(zip(part, embedded, strict=True))
        vectors += [found[text] for text in texts]
    return np.stack(vectors)


def _instructed(directory: Path, config: RetrieverConfig, probes: list[Probe]) -> np.ndarray:
    """Queries by the file that the export holds for it."""
    encoder = runpy.run_path(str(directory / INSTRUCTED_FILE))["InstructedEncoder"](directory)
    return encoder.encode(*zip(*(probe.parts for probe in probes), strict=True))


LOADERS = {
    "transformers": _transformers,
    "sentence-transformers": _sentence_transformers,
    INSTRUCTED_FILE: _instructed,
}
