"""The golden models: tiny weights of each family and transformers' token states of four texts
(tests/golden/README.md says which versions made them)."""

import dataclasses
from functools import cache
from pathlib import Path

import numpy as np

from inf_jax.core import packing
from inf_jax.models import hf
from inf_jax.models.config import EncoderConfig
from inf_jax.models.hf.config import read_config

GOLDEN = Path(__file__).parents[2] / "golden" / "models"
NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/model.safetensors"))


def shape_of(name: str) -> EncoderConfig:
    """The model's config, dropout off."""
    return dataclasses.replace(read_config(GOLDEN / name), dropout=0.0, attention_dropout=0.0)


@cache
def params_of(name: str) -> dict:
    return hf.load_weights(GOLDEN / name, shape_of(name)).params


def padded_rows(name: str, side: str) -> tuple[np.ndarray, ...]:
    """(ids, mask, positions); positions count along the padded row, for RoBERTa along the text."""
    golden = np.load(GOLDEN / name / "golden.npz")
    ids, mask = golden[f"{side}_input_ids"], golden[f"{side}_attention_mask"]
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    if shape_of(name).position_offset:
        positions = np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32)
    return ids, mask, positions


def packed_rows(name: str) -> tuple[tuple[np.ndarray, ...], list[tuple[int, np.ndarray]]]:
    """The same texts packed into rows as wide as the padded ones; the row and columns of each."""
    golden = np.load(GOLDEN / name / "golden.npz")
    mask = golden["right_attention_mask"].astype(bool)
    texts = [
        ids[m].astype(np.int32) for ids, m in zip(golden["right_input_ids"], mask, strict=True)
    ]
    width, places = mask.shape[1], len(texts)
    chunk = packing.pack_chunk(
        texts,
        np.arange(places, dtype=np.uint32),
        rows=packing.rows_needed(np.array([len(t) for t in texts]), width, places),
        row_tokens=width,
        texts_per_row=places,
    )
    assert chunk.tokens.shape[0] < places  # some row holds several texts
    where = []
    for slot in chunk.slots:
        row, place = divmod(int(slot), places)
        where.append((row, np.flatnonzero(chunk.segments[row] == place + 1)))
    return (chunk.tokens, chunk.segments, chunk.positions), where


def all_rows(name: str) -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]:
    """(rows, mask of real tokens, expected states) of right padded, left padded and packed rows in
    one batch, so that one program runs them all."""
    golden = np.load(GOLDEN / name / "golden.npz")
    right, left = padded_rows(name, "right"), padded_rows(name, "left")
    packed, where = packed_rows(name)
    parts = zip(right, left, packed, strict=True)
    rows = tuple(np.concatenate(each).astype(np.int32) for each in parts)
    states = [golden[f"{side}_last_hidden_state"] for side in ("right", "left")]
    states.append(np.zeros((*packed[0].shape, states[0].shape[-1]), np.float32))
    expected = np.concatenate(states)
    start = len(right[0]) + len(left[0])
    for i, (row, columns) in enumerate(where):
        expected[start + row, columns] = states[0][i, : len(columns)]
    return rows, rows[1] > 0, expected


def pack(texts, *, row_tokens, texts_per_row):
    lengths = np.array([len(t) for t in texts])
    chunk = packing.pack_chunk(
        texts,
        np.arange(len(texts), dtype=np.uint32),
        rows=packing.rows_needed(lengths, row_tokens, texts_per_row),
        row_tokens=row_tokens,
        texts_per_row=texts_per_row,
    )
    return packing.stack_chunks([chunk])


def random_texts(vocab, count=24, longest=40):
    rng = np.random.default_rng(3)
    return [
        rng.integers(1, vocab, rng.integers(1, longest + 1)).astype(np.int32) for _ in range(count)
    ]
