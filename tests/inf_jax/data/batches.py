"""Loaders on the tiny dataset, and the texts that a batch holds."""

import numpy as np

from inf_jax.data.layout import BatchLayout
from inf_jax.data.loader import Loader
from inf_jax.data.sampler import ORDER


def make(dataset, *, seed=1, steps=40, mine=None, order=ORDER, **changes):
    shapes = {"batch_size": 6, "chunks": 2, "row_tokens": 64, "texts_per_row": 8}
    run = {"seed": seed, "steps": steps, "mine": mine, "order": order}
    return Loader(dataset, BatchLayout(**shapes | changes), **run)


def texts_of(batch, n):
    """The (query, passage) token tuples of a shared-tower batch's valid pairs, in order."""
    packed, pairs = batch.texts, []
    s = packed.text_ids.shape[-1]
    for c in range(packed.tokens.shape[0]):
        texts = []
        for slot in packed.slots[c]:
            row, place = divmod(int(slot), s)
            mine = packed.segments[c, row] == place + 1
            texts.append(tuple(packed.tokens[c, row][mine].tolist()))
        for j in range(n):
            if batch.valid[c * n + j]:
                pairs.append((texts[j], texts[n + j]))
    return pairs


def grid_texts(packed):
    """The texts of a grid as {dropout id: tokens}, and each chunk's slots as dropout ids."""
    s = packed.text_ids.shape[-1]
    texts, ids = {}, np.full(packed.slots.shape, -1)
    for c, slots in enumerate(packed.slots):
        for k, slot in enumerate(slots.tolist()):
            row, place = divmod(slot, s)
            ids[c, k] = packed.text_ids[c, row, place]
            mine = packed.segments[c, row] == place + 1
            texts[int(ids[c, k])] = tuple(packed.tokens[c, row][mine].tolist())
    return texts, ids


def hash_of(ids):
    return ids[..., 0].astype(np.uint64) | ids[..., 1].astype(np.uint64) << np.uint64(32)
