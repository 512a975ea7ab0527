"""Compares our token states of a local model with those of transformers (PyTorch)."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from inf_jax.core.console import table
from inf_jax.core.errors import UserError
from inf_jax.core.packing import pack_chunk, rows_needed
from inf_jax.core.trees import flatten
from inf_jax.io.json_files import read_json
from inf_jax.models.config import EncoderConfig
from inf_jax.models.encoder import make_encoder
from inf_jax.models.hf.config import config_from_hf, read_config
from inf_jax.models.hf.weight_tables import rules_of, table_of
from inf_jax.models.hf.weights import load_weights

TOLERANCE = 1e-4  # of the largest state: above the float32 rounding of deep models
MIN_COSINE = 0.9999
_TEXTS = 6
_TEXTS_PER_ROW = 8
_WINDOW = 64  # tokens; it replaces larger sliding windows in both libraries


class Check(NamedTuple):
    """The result for one model."""

    name: str
    family: str  # model_type
    tensors: int  # number of them
    parameters: int
    difference: float  # largest absolute one between two entries of token states
    largest: float  # absolute entry
    cosine: float  # smallest one of two token states
    tokens: int  # of the longest text
    windows: str  # the largest sliding window, and the config's own if that is larger

    @property
    def ok(self) -> bool:
        """Whether the states agree; False for a NaN."""
        return self.difference <= TOLERANCE * self.largest and self.cosine >= MIN_COSINE


def check_all(directory: Path, name: str) -> list[Check]:
    """`check_model` of a model, or of both towers of an export with separate towers."""
    towers = [tower for tower in ("query", "passage") if (directory / tower).is_dir()]
    if towers and not (directory / "config.json").exists():
        return [check_model(directory / tower)._replace(name=f"{name}/{tower}") for tower in towers]
    return [check_model(directory)._replace(name=name)]


def check_model(directory: Path, *, seed: int = 0) -> Check:
    """Compares random texts of several lengths, packed here and padded right in transformers.

    Texts are twice as long as the window, so that it matters. A window whose scores would fill the
    memory is made small in both libraries through the config's field.

    Raises:
      UserError: PyTorch or transformers is not installed, a file is missing, or transformers
        rejects the model.
    """
    shape, path = read_config(directory), directory / "config.json"
    fields = read_json(path, kind=dict)
    window = max(filter(None, shape.windows), default=0)
    windows = str(window or "none")
    if window > _WINDOW:
        both_sides = {"local_attention": 2 * _WINDOW}  # ModernBERT's field counts both sides
        fields |= both_sides if shape.family == "modernbert" else {"sliding_window": _WINDOW}
        shape = config_from_hf(fields, str(path))
        windows = f"{max(filter(None, shape.windows))}, on both sides in place of {window}"
    shape = dataclasses.replace(shape, dropout=0.0, attention_dropout=0.0)
    params = load_weights(directory, shape).params
    texts = _random_texts(shape, seed)
    theirs = np.concatenate(torch_states(directory, shape, texts, fields=fields))
    ours = np.concatenate(packed_states(params, shape, texts))
    norms = np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1)
    flat = flatten(params)
    return Check(
        name=directory.name,
        family=shape.family,
        tensors=sum(len(rule.names(shape.layers)) for rule in rules_of(shape, list(flat))),
        parameters=sum(x.size for x in flat.values()),
        difference=float(np.abs(ours - theirs).max()),
        largest=float(np.abs(theirs).max()),
        cosine=float(((ours * theirs).sum(-1) / norms).min()),
        tokens=max(map(len, texts)),
        windows=windows,
    )


def packed_states(params: dict, shape: EncoderConfig, texts: list[np.ndarray]) -> list[np.ndarray]:
    """Our token states of each text, float32[tokens, d], from packed rows."""
    lengths = np.array([len(text) for text in texts])
    tokens = int(lengths.max())
    chunk = pack_chunk(
        texts,
        np.arange(len(texts), dtype=np.uint32),
        rows=rows_needed(lengths, tokens, _TEXTS_PER_ROW),
        row_tokens=tokens,
        texts_per_row=_TEXTS_PER_ROW,
    )
    hidden = jax.jit(make_encoder(shape).hidden)
    rows = np.asarray(hidden(params, chunk.tokens, chunk.segments, chunk.positions))
    states = []
    for slot in chunk.slots:
        row, place = divmod(int(slot), _TEXTS_PER_ROW)
        states.append(rows[row][chunk.segments[row] == place + 1])
    return states


def torch_states(
    directory: Path, shape: EncoderConfig, texts: list[np.ndarray], *, fields: dict | None = None
) -> list[np.ndarray]:
    """The token states of transformers' model without a head, float32[tokens, d] each; `fields` are
    used instead of the directory's config.json."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(f"{error}: --check needs the extra [torch]") from None
    model_class = getattr(transformers, table_of(shape).architecture)
    try:
        config = model_class.config_class.from_dict(fields) if fields else None
        options = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
        model = model_class.from_pretrained(directory, config=config, **options).eval()
    except Exception as error:  # its validation raises many kinds of errors
        message = " ".join(str(error).split())
        raise UserError(f"{directory}: transformers cannot load it: {message}") from None
    mask = np.arange(max(map(len, texts))) < np.array([[len(text)] for text in texts])
    ids = np.full(mask.shape, model.config.pad_token_id or 0, np.int64)
    ids[mask] = np.concatenate(texts)
    batch = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask, dtype=torch.long)}
    with torch.no_grad():
        states = model(**batch).last_hidden_state.numpy()
    return [state[real] for state, real in zip(states, mask, strict=True)]


def print_results(results: list[Check]) -> None:
    """Prints the results as a table, and what was compared."""
    rows = []
    for r in results:
        numbers = r.tensors, f"{r.parameters:,}", f"{r.difference:.1e}", f"{r.cosine:.7f}"
        rows.append((r.name, r.family, *numbers, "yes" if r.ok else "NO"))
    header = "model family tensors parameters difference cosine agrees".split()
    table("token states against transformers", rows, header=tuple(header))
    for r in results:
        print(f"{r.name}: texts of 1 to {r.tokens} tokens, sliding windows: {r.windows}")


def _random_texts(shape: EncoderConfig, seed: int) -> list[np.ndarray]:
    """Texts of 1 to 64 tokens, or to twice the smallest window if there is one."""
    windows = [w for w in shape.windows if w]
    longest = min(2 * min(windows) if windows else 64, shape.max_positions)
    rng = np.random.default_rng(seed)
    lengths = [1, longest, *rng.integers(1, longest + 1, _TEXTS - 2)]
    return [rng.integers(shape.vocab_size, size=n).astype(np.int32) for n in lengths]
