"""Flags that `inf-jax encode` and `inf-jax search` share, and what they name."""

import argparse
from pathlib import Path

from inf_jax.core.choices import ATTENTION_MASKS, DTYPES
from inf_jax.core.cli_flags import FlagParser, at_least
from inf_jax.core.errors import UsageError
from inf_jax.io.paths import url_problem
from inf_jax.retriever.retriever import Retriever
from inf_jax.training.run_model import open_model
from inf_jax.vectors.texts import TextSource


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
