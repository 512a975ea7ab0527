"""Flags that `inf-jax encode` and `inf-jax search` share, and what they name."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from inf_jax.core.choices import ATTENTION_MASKS, DTYPES
from inf_jax.core.cli_flags import FlagParser, at_least, names_among
from inf_jax.core.errors import UsageError, UserError
from inf_jax.distributed import coordination
from inf_jax.io import storage
from inf_jax.io.json_files import read_json
from inf_jax.io.paths import url_problem
from inf_jax.models.hf.resolve import resolve_model
from inf_jax.retriever.retriever import Retriever
from inf_jax.training.run_model import has_checkpoints, is_run, open_model
from inf_jax.vectors.encoding import encode_source, make_manifest
from inf_jax.vectors.pairs import PAIR_FIELDS, MiningTexts
from inf_jax.vectors.searching import local_share, read_queries
from inf_jax.vectors.store import VectorStore, open_for_writing
from inf_jax.vectors.texts import Checked, TextSource

MODEL_FLAGS = ("checkpoint", "query_template", "passage_template", "mask", "compute_dtype", "fsdp")
TEXT_FLAGS = ("instruction", "split", "id_field", "text_field")
_WAIT_S = 24 * 3600.0  # for the shares of other processes; one that dies ends the wait at once


def add_model_flags(parser: FlagParser, *, example: str = "") -> None:
    """Flags of the model and of how texts are read; `example` where a model must be given."""
    add = parser.add
    text = "export, out_dir of a run, or any model's directory or hub id"
    add("--model", text, metavar="DIR", example=example)
    add(
        "--checkpoint", "of a run: newest, best (needs train.keep_best) or a step", default="newest"
    )
    add("--query-template", "in place of the model's own, e.g. 'query: {query} {instruction}'")
    add("--passage-template", "in place of the model's own, e.g. 'passage: {passage}'")
    add("--mask", "attention mask", default="model", choices=ATTENTION_MASKS)
    add("--compute-dtype", "of the model", default="float32", choices=DTYPES)
    add("--fsdp", "devices that share a copy of the model", default=1, of=at_least(1), metavar="N")
    add("--instruction", "of queries that have none of their own", default="")
    add("--split", "of a built dataset", default="")
    add("--id-field", "of the texts, if it has an unusual name", default="")
    add("--text-field", "likewise; titles are left out then", default="")


def refuse_idle(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """`FlagParser.refuse_idle` of flags of `add_model_flags`."""
    parser = FlagParser("")
    add_model_flags(parser)
    parser.refuse_idle(args, names, why)


def refuse_idle_of_model(args: argparse.Namespace) -> None:
    """UsageError for --checkpoint with a model that is no run's out_dir."""
    if not has_checkpoints(args.model):
        refuse_idle(args, ["checkpoint"], f"{args.model} is not the out_dir of a run")


def refuse_idle_of_texts(args: argparse.Namespace, source: TextSource) -> None:
    """UsageError for flags of other kinds of texts than these."""
    if not source.is_dataset:
        refuse_idle(args, ["split"], f"{source.path} is not a built dataset")
    if not source.has_fields:
        refuse_idle(args, ["id_field", "text_field"], f"{source.path} has no named fields")


def load_model_of(args: argparse.Namespace) -> Retriever:
    """The model that the flags name. Raises UserError."""
    return open_model(
        args.model,
        which=args.checkpoint,
        dtype=args.compute_dtype,
        fsdp=args.fsdp,
        mask=args.mask,
        query_template=args.query_template,
        passage_template=args.passage_template,
    )


def text_source(path: str, args: argparse.Namespace, role: str = "") -> TextSource:
    """The texts at a path, read as the flags say; `role` in place of --role."""
    return TextSource(
        Path(path),
        role or args.role,
        id_field=args.id_field,
        text_field=args.text_field,
        split=args.split,
        instruction=args.instruction,
    )


def check_place(flag: str, path: str) -> str:
    """The path of a flag; UsageError for a URL at which nothing can be written or read."""
    if problem := url_problem(path):
        raise UsageError(f"{flag}={path}: {problem}")
    return path


def encode_into(
    out: storage.AnyPath, retriever: Retriever, source: TextSource, checked: Checked, **options: Any
) -> tuple[VectorStore, int]:
    """Encodes a source into a directory, goes on with what is there, and waits for all processes.

    Args:
      options: of `make_manifest`.

    Returns:
      The complete store, and the number of vectors that this process wrote.

    Raises:
      UserError: as `make_manifest`, `open_for_writing` and `encode_source`.
    """
    manifest = make_manifest(retriever, source, checked, **options)
    coordination.check_same({name: str(x) for name, x in vars(manifest).items()})
    with coordination.primary_first("vectors"):
        store = open_for_writing(out, manifest)
    primary = coordination.is_primary()
    written = encode_source(
        retriever, source, checked, store, share=local_share(), progress=primary
    )
    coordination.barrier("encoded", timeout_s=_WAIT_S)
    if primary:
        store.check_complete()
    return store, written


def encode_for_mining(
    retriever: Retriever, model: str, texts: MiningTexts, directory: Path, shard_size: int
) -> tuple[np.ndarray, VectorStore]:
    """The vectors of a task of mining, made now or before: float32[q, e] and the passages' store.
    Raises UserError as `encode_into`."""
    options = {"model": model, "dtype": "float32", "shard_size": shard_size}
    queries, passages = (
        encode_into(directory / source.role, retriever, source, source.check(), **options)[0]
        for source in (texts.query_source, texts.passages)
    )
    return read_queries(queries)[1], passages


def pair_fields(text: str) -> dict[str, str]:
    """The field of each part that `part=name,part=name` names; for `FlagParser.add`."""
    fields = dict(part.partition("=")[::2] for part in text.split(",") if part)
    names_among(PAIR_FIELDS)(",".join(fields))
    if "" in fields.values():
        raise argparse.ArgumentTypeError(f"{text!r}: write PART=NAME, e.g. query=question")
    return fields


def refuse_cross_encoder(flag: str, model: str) -> None:
    """Raises UserError if a model scores pairs of texts and has no vectors."""
    if is_run(model):
        return
    directory = resolve_model(model)
    fields = read_json(directory / "config.json", default={}, kind=dict)
    classes = fields.get("architectures") or [""]
    if "ForSequenceClassification" in str(classes[0]) and not (directory / "modules.json").exists():
        raise UserError(
            f"{flag}={model}: is a cross-encoder ({classes[0]}), which has no vectors; name a "
            "model that encodes texts"
        )
