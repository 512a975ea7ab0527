"""Encodes a corpus, or queries, into shards of vectors that `inf-jax search` reads.

    inf-jax encode --model=DIR --texts=corpus.jsonl --out=DIR
    inf-jax encode --model=DIR --texts=queries.jsonl --role=query --out=DIR

Texts are a .jsonl, .tsv or .parquet file (.gz as well), a directory in BEIR's layout, or a built
dataset (`--split`); `inf_jax.vectors.texts` names the fields. A first line of a .tsv file that
names its two columns, as id and text, is not a passage. Texts are read as a stream. Out is a local
directory or gs://BUCKET/DIRECTORY: per shard vectors (NumPy), ids (text) and checksums
(`inf_jax.vectors.store`). Started again after whatever end, the command reuses finished shards and
writes the same bytes as an uninterrupted one, on any number of devices of one kind. Several
processes, started as for training (`inf_jax.distributed.cluster`), encode a share each; the texts
must be on every host's disk.
"""

import argparse
import sys

from inf_jax.core.cli_flags import FlagParser, at_least
from inf_jax.core.console import table
from inf_jax.core.errors import main_guard
from inf_jax.distributed import coordination
from inf_jax.distributed.entry_point import run_distributed
from inf_jax.io import storage
from inf_jax.vectors.command import (
    add_model_flags,
    check_place,
    encode_into,
    load_model_of,
    refuse_idle,
    refuse_idle_of_model,
    refuse_idle_of_texts,
    text_source,
)
from inf_jax.vectors.encoding import SHARD_SIZE
from inf_jax.vectors.store import STORE_MANIFEST, STORED, VectorStore
from inf_jax.vectors.texts import ROLES


def main(args: argparse.Namespace) -> None:
    """Encodes what the command line names.

    Raises:
      UserError: the model, the texts or the directory cannot be used.
    """
    out = storage.as_path(check_place("--out", args.out))
    source = text_source(args.texts, args)
    refuse_idle_of_texts(args, source)
    refuse_idle_of_model(args)
    if args.role == "passage":
        of_queries = ("instruction", "query_template")
        refuse_idle(args, of_queries, "passages are encoded, without --role=query")
    checked = source.check()
    coordination.check_shared(out, storage.check_access)
    with coordination.on_primary(storage.locked(out)):
        store, written = encode_into(
            out,
            load_model_of(args),
            source,
            checked,
            model=args.model,
            dtype=args.dtype,
            dim=args.dim or None,
            shard_size=args.shard_size,
        )
        if coordination.is_primary():
            _report(store, written, args.out)


def _report(store: VectorStore, written: int, out: str) -> None:
    made = store.manifest
    rows = [
        ("vectors", f"{made.count:,} of {made.role} texts, {made.width} x {made.dtype}"),
        (
            "written now",
            f"{written:,} by this process; others wrote the rest, or it was there",
        ),
        ("shards", f"{made.shards:,}"),
        *((f"template, {role}", f"{text!r}") for role, (text, _) in made.templates.items()),
    ]
    table(f"encoded with {made.model}", rows)
    print(f"wrote {out}/{STORE_MANIFEST} and its shards")


def _flags() -> FlagParser:
    parser = FlagParser(__doc__, "inf-jax encode")
    add = parser.add
    add("--texts", "file or directory", metavar="FILE", example="corpus.jsonl")
    add("--out", "directory or gs:// path of the vectors", metavar="DIR", example="out/vectors")
    add("--role", "what the texts are", default=ROLES[0], choices=ROLES)
    add("--dtype", "of the stored vectors", default=STORED[0], choices=STORED)
    add("--dim", "first entries to keep (Matryoshka); 0: all", default=0, of=at_least(0))
    add("--shard-size", "vectors of a shard", default=SHARD_SIZE, of=at_least(1), metavar="N")
    add_model_flags(parser, example="out/run/export")
    return parser


if __name__ == "__main__":
    with main_guard():
        run_distributed(main)(_flags().parse(sys.argv[1:]))
