"""The datasets of the paper's pack, and the lines that download their files."""

import hashlib
import json
from pathlib import Path

from data_pipeline.sources import inf_ir
from data_pipeline.sources.files import read_rows
from inf_jax.core.errors import UserError
from inf_jax.data.records import pairs
from inf_jax.io.atomic import atomic_file

DOWNLOAD = {
    "inf_ir": "hf download InF-IR/InF-IR --repo-type dataset --local-dir downloads/inf_ir",
    "unfiltered": "hf download aarontrinh02/ms_marco_synthetic_data_unfiltered --repo-type dataset "
    "--local-dir downloads/unfiltered",
    "promptriever": "hf download samaya-ai/msmarco-w-instructions --repo-type dataset "
    "--local-dir downloads/promptriever",
}


def check(name: str, path: str) -> None:
    """UserError with the line that downloads a dataset if its file is not there."""
    if not path or not Path(path).exists():
        given = f"--{name.replace('_', '-')}={path}: no such file" if path else f"{name} is needed"
        raise UserError(f"{given}; download it: {DOWNLOAD[name]}")


def instructed_rows(source: str, target: Path, count: int) -> int:
    """Writes `count` of Promptriever's rows with instructions, chosen by a hash of their ids.

    Two passes over the source; memory is that of `count` hashes.

    Returns:
      How many were written, fewer if there are fewer.

    Raises:
      UserError: no row has an instruction, or a file cannot be read.
    """

    def rank(values: dict) -> str:
        return hashlib.blake2b(str(values.get("query_id")).encode(), digest_size=8).hexdigest()

    def instructed(values: dict) -> bool:
        return bool(values.get("has_instruction", True) and values.get("only_instruction"))

    ranks = sorted(rank(row.values) for row in read_rows(source) if instructed(row.values))
    if not ranks:
        raise UserError(f"{source}: no row has an instruction (only_instruction); name other files")
    limit, written = ranks[min(count, len(ranks)) - 1], 0
    with atomic_file(target) as file:
        for row in read_rows(source):
            if instructed(row.values) and rank(row.values) <= limit and written < count:
                file.write(json.dumps(row.values).encode() + b"\n")
                written += 1
    return written


def pairs_without_instructions(source: str, target: Path) -> int:
    """Writes the query and passage of each pair of InF-IR's examples; returns how many.

    Raises:
      UserError: a file cannot be read.
    """
    written = 0
    with atomic_file(target) as file:
        for example in inf_ir.read(source):
            for pair in filter(None, pairs(example)):
                row = {"query": pair.query, "passage": pair.passage}
                file.write(json.dumps(row).encode() + b"\n")
                written += 1
    return written
