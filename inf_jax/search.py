"""Finds the passages nearest to each query among the vectors of `inf-jax encode`, exactly.

    inf-jax search --vectors=DIR --queries=queries.jsonl --model=DIR --run=run.trec
    inf-jax search --vectors=DIR --queries=DIR --run=run.trec    (encoded with --role=query)

Every passage is compared: shards are read and checked one after another and searched on all
devices, so that neither device nor host memory limits their number. The run has TREC's format.
Queries of another model, number of entries or passage template are refused. Several processes,
started as for training (`inf_jax.distributed.cluster`), search a share of the shards each.
"""

import argparse
import dataclasses
import sys

import numpy as np

from inf_jax.core.cli_flags import FlagParser, at_least
from inf_jax.core.errors import UsageError, main_guard
from inf_jax.distributed import coordination
from inf_jax.distributed.entry_point import run_distributed
from inf_jax.distributed.mesh import local_mesh
from inf_jax.io import storage
from inf_jax.vectors.command import (
    MODEL_FLAGS,
    TEXT_FLAGS,
    add_model_flags,
    check_place,
    load_model_of,
    refuse_idle,
    refuse_idle_of_model,
    refuse_idle_of_texts,
    text_source,
)
from inf_jax.vectors.encoding import comparable, make_manifest
from inf_jax.vectors.searching import local_share, read_queries, search_store, write_run
from inf_jax.vectors.store import STORE_MANIFEST, VectorStore


def main(args: argparse.Namespace) -> None:
    """Searches what the command line names.

    Raises:
      UserError: vectors or queries cannot be used, or do not suit each other.
    """
    store = VectorStore(storage.as_path(check_place("--vectors", args.vectors)))
    store.check_role("passage")
    store.check_complete()
    folder, _, _ = args.run.rpartition("/")
    check_place("--run", folder)
    run, primary = storage.as_path(args.run), coordination.is_primary()
    if primary:
        storage.check_access(run.parent)
    names, queries = _queries(args, store)
    k = min(args.k, store.manifest.count)
    found = search_store(
        queries,
        store,
        k,
        mesh=local_mesh(),
        share=local_share(),
        progress=primary,
    )
    if not primary:
        for _ in found:
            pass
        return
    with storage.new_file(run) as file:
        write_run(file, names, found, store, tag=args.tag)
    counts = f"{len(names):,} queries, {store.manifest.count:,} passages, the {k} best of each"
    print(f"{counts}; wrote {args.run}")


def _queries(args: argparse.Namespace, store: VectorStore) -> tuple[list[str], np.ndarray]:
    """(ids, float32[q, e]), checked against the passages."""
    path = storage.as_path(check_place("--queries", args.queries))
    if (path / STORE_MANIFEST).exists():
        why = f"the queries in {args.queries} are vectors already"
        refuse_idle(args, ("model", *MODEL_FLAGS, *TEXT_FLAGS), why)
        queries = VectorStore(path)
        queries.check_role("query")
        queries.check_complete()
        store.manifest.check_suits(queries.manifest, args.vectors)
        return read_queries(queries)
    if not args.model:
        raise UsageError(
            "command line: --model missing: it encodes the queries, unless --queries is a "
            "directory of vectors"
        )
    source = text_source(args.queries, args, "query")
    refuse_idle_of_texts(args, source)
    refuse_idle_of_model(args)
    checked = source.check()
    retriever = load_model_of(args)
    width = store.manifest.width
    manifest = make_manifest(retriever, source, checked, model=args.model)
    store.manifest.check_suits(dataclasses.replace(manifest, width=width), args.vectors)
    names, texts, instructions = zip(*source.texts(), strict=True)
    blocks = retriever.encode_blocks(texts, instruction=instructions, dim=width)
    return list(names), np.concatenate(list(comparable(blocks, retriever.config)))


def _one_word(text: str) -> str:
    """A field of a run, for `FlagParser.add`."""
    if len(text.split()) != 1 or text.strip() != text:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be one word: white space separates the fields of a run"
        )
    return text


def _flags() -> FlagParser:
    parser = FlagParser(__doc__, "inf-jax search")
    add = parser.add
    add(
        "--vectors", "directory or gs:// path of the passages", metavar="DIR", example="out/vectors"
    )
    add("--queries", "texts, or their vectors", metavar="FILE", example="queries.jsonl")
    add("--run", "the run to write", metavar="FILE", example="run.trec")
    add("--k", "passages for each query", default=1000, of=at_least(1))
    add("--tag", "last field of the run, one word", default="inf_jax", of=_one_word)
    add_model_flags(parser)
    return parser


if __name__ == "__main__":
    with main_guard():
        run_distributed(main)(_flags().parse(sys.argv[1:]))
