"""Writes made-up tokenised records for `bench.py input`."""

import json
from pathlib import Path

import numpy as np

from inf_jax.data.records import pair_hashes
from inf_jax.data.tokenised.columns import write_columns
from inf_jax.data.tokenised.dataset import MANIFEST
from inf_jax.data.tokenised.records import (
    TOKENISED_SCHEMA,
    TokenisedRecord,
    encode_tokenised,
    part_lengths,
)
from inf_jax.data.tokenised.shuffle import spread_by_length
from inf_jax.data.tokenised.sidecars import Sidecar, load_sidecar, write_sidecar
from inf_jax.io.tfrecord import Writer

LONGEST = (32, 256)  # tokens of a query and of a passage
SHARD = 8192


def write_records(directory: Path, count: int) -> None:
    """Writes a tokenised split of `count` made-up pairs without instructions."""
    rng, shards = np.random.default_rng(0), []
    for first in range(0, count, SHARD):
        size = min(SHARD, count - first)
        path = directory / f"tokens-{first // SHARD:05d}.tfrecord"
        # of MS MARCO, with two ends and a prefix of two
        lengths = np.stack(
            [
                np.clip(rng.lognormal(np.log(median), spread, size) + 4, 6, longest)
                for median, spread, longest in zip((7, 70), (0.37, 0.4), LONGEST, strict=True)
            ],
            axis=1,
        ).astype(np.int32)
        lengths = lengths[spread_by_length(lengths.sum(1), number=first)]
        tokens = rng.integers(1, 30_000, lengths.sum(), np.int32)
        hashes = rng.integers(1, 2**63, (size, 1, 3)).astype(np.uint64)
        spans = np.zeros((size, 1, 5), np.int32)
        spans[:, 0, 0] = lengths[:, 0]
        texts = np.split(tokens, np.cumsum(lengths.sum(1))[:-1])
        nothing = np.empty(0, np.int32)
        with Writer(path) as writer:
            for number, fields in enumerate(zip(texts, lengths, hashes, spans, strict=True)):
                record = TokenisedRecord(f"{first + number}", *fields, nothing)
                writer.write(encode_tokenised(record))
        index = lengths, part_lengths(spans), hashes[:, :, 0], pair_hashes(hashes)
        write_sidecar(path, Sidecar(writer.index, *index))
        shards.append({"file": path.name, "examples": size})
    manifest = {
        "fingerprint": "made up",
        "recipe": {
            "schema": TOKENISED_SCHEMA,
            "text": {"max_query_tokens": LONGEST[0], "query_template": "{query}"},
        },
        "special_tokens": [[101], [102]],
        "composition": {"checked": 1, "crossed": 0, "alone": 0},
        "pairs_per_example": 1,
        "shards": shards,
    }
    (directory / MANIFEST).write_text(json.dumps(manifest))


def as_windows(directory: Path) -> None:
    """Has the records of `write_records`, which are in random order, read in windows."""
    manifest = json.loads((directory / MANIFEST).read_text())
    shards = [directory / shard["file"] for shard in manifest["shards"]]
    manifest["columns"] = write_columns(directory, map(load_sidecar, shards))
    (directory / MANIFEST).write_text(json.dumps(manifest))
