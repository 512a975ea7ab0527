"""Flags and output that `data_pipeline.build` and `data_pipeline.beam_build` share."""

import argparse

import tensorflow_datasets as tfds
from rich.console import Console

from data_pipeline.dataset.build import build
from data_pipeline.dataset.builder import REPORT_FILE, InfIr
from data_pipeline.dataset.inputs import DEV_FRACTION
from data_pipeline.quality.rules import Report, report_table
from inf_jax.core.cli_flags import FlagParser, number
from inf_jax.core.errors import UserError
from inf_jax.io.json_files import read_json
from inf_jax.io.paths import is_url


def build_parser(program: str, doc: str) -> FlagParser:
    """The parser with the flags of a build."""
    parser = FlagParser(doc, program)
    add = parser.add
    sources = list(InfIr.builder_configs)
    add("--source", "where the examples come from", choices=sources, example="medquad")
    text = "root directory; the dataset is DIR/inf_ir/SOURCE/VERSION"
    add("--data-dir", text, metavar="DIR", example="out/data")
    text = (
        "jsonl, jsonl.gz or parquet file, or a directory of them; medquad: default is the shipped "
        "sample; others: required, with InF-IR's field names (instruction_positive, ...) and an "
        "optional id"
    )
    add("--path-train", text, default="", metavar="FILE")
    add("--path-dev", "the same for the evaluation split", default="", metavar="FILE")
    text = (
        "without a dev file: the share of queries held out of the train file for evaluation, "
        "chosen by hash; 0 for no dev split"
    )
    add("--dev-fraction", text, of=number, default=DEV_FRACTION, metavar="F")
    text = (
        "drop an example if its instructed query and its passage are both at least this similar to "
        "those of an earlier one (Jaccard similarity of their shingles, by MinHash), e.g. 0.8; 0 "
        "keeps all"
    )
    add("--near-duplicates", text, of=number, default=0.0, metavar="S")
    parser.add_boolean("--overwrite", "replace an existing dataset")
    return parser


def run_build(args: argparse.Namespace, beam: tfds.download.DownloadConfig | None = None) -> None:
    """Builds the dataset and prints its report; raises UserError as `build`."""
    options = dict(vars(args))
    options.pop("runner", None)
    if is_url(str(options["data_dir"])):
        raise UserError(f"--data-dir={options['data_dir']}: is a URL; give a local directory")
    final, written = build(**options, beam=beam)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    reports = read_json(final / REPORT_FILE, kind=dict)
    console.print(report_table({split: Report.from_json(r) for split, r in reports.items()}))
    for split in tfds.builder_from_directory(final).info.splits.values():
        size = f"{split.num_bytes / 2**20:.1f} MiB"
        shards = f"{split.num_shards} shard{'s' if split.num_shards > 1 else ''}"
        console.print(f"{split.name}: {split.num_examples:,} examples, {size}, {shards}")
    if written:
        console.print(f"wrote {final} (report: {REPORT_FILE})")
    else:
        console.print(f"reused {final}: it exists already, built from the same source files")
