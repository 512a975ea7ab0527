"""Flags and output that `data_pipeline.build` and `data_pipeline.beam_build` share."""

import argparse

import tensorflow_datasets as tfds
from rich.console import Console

from data_pipeline.dataset.build import build
from data_pipeline.dataset.builder import REPORT_FILE, InfIr
from data_pipeline.dataset.inputs import DEV_FRACTION, MAX_NEGATIVES
from data_pipeline.quality.rules import Report, report_table
from inf_jax.core.cli_flags import FlagParser, at_least, number, whole_number
from inf_jax.core.errors import UserError
from inf_jax.io.json_files import read_json
from inf_jax.io.paths import is_url

# Options of the readers of single sources.
_OPTIONS = (
    *("fields", "split", "dev_split", "min_score", "negatives", "count", "seed"),
    *("hold_out_types", "keyword_instructions"),
)


def build_parser(program: str, doc: str) -> FlagParser:
    """The parser with the flags of a build."""
    parser = FlagParser(doc, program)
    add = parser.add
    sources = list(InfIr.builder_configs)
    add("--source", "where the examples come from", choices=sources, example="medquad")
    text = "root directory; the dataset is DIR/inf_ir/NAME/VERSION"
    add("--data-dir", text, metavar="DIR", example="out/data")
    add("--name", "name of the dataset; default is the source", default="", metavar="NAME")
    text = (
        "jsonl, jsonl.gz or parquet file, or a directory of them; medquad: default is the shipped "
        "sample; inf_ir, factory: with InF-IR's field names (instruction_positive, ...) and an "
        "optional id; fields: also JSON; beir, msmarco: the directory; pubmedqa: ori_pqal.json or "
        "the Hub's parquet; nevir: jsonl or parquet"
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
    text = (
        "fields: the names of the rows' fields, as PART=NAME,...; parts: query, passage, id, "
        "title, instruction, negatives, labels (0 or 1), scores (of the passage and each "
        "negative), passage_scores, negative_scores, margins; NAME: a field, a.b in an object or "
        "in each of a list, a_* for a_1, a_2, ..., or several with | between, of which the first "
        "there is counts; default: rows of Tevatron, DPR, FlagEmbedding, sentence-transformers "
        "and query/passage are known"
    )
    add("--fields", text, of=_field_map, metavar="MAP")
    add("--split", "beir, msmarco: whose judgements are trained on (default: train)")
    add("--dev-split", "beir, msmarco: whose judgements are the dev split")
    text = "beir, msmarco: lowest score of a relevant passage (default: 1)"
    add("--min-score", text, of=whole_number, metavar="N")
    text = (
        "beir, msmarco: a file of negatives by id: a table of query, relevant and other passage "
        "(qidpidtriples) and perhaps the margin, a run of MS MARCO or TREC, or rows of "
        "query_id, positive_id, negative_id and score (a margin) or of qid, pos, neg"
    )
    add("--negatives", text, metavar="FILE")
    text = "pairs: the most negatives that a pair keeps, the first ones; 0 for all"
    add("--max-negatives", text, of=at_least(0), default=MAX_NEGATIVES, metavar="N")
    text = (
        "pairs: files of benchmarks whose queries and passages are dropped: a directory in BEIR's "
        "layout, jsonl, parquet or JSON, or a TFDS directory of inf_ir"
    )
    add("--evaluation", text, many=True, default=(), metavar="FILE")
    add("--count", "synthetic: number of pairs", of=whole_number, metavar="N")
    add("--seed", "synthetic: of the pairs (default: 0)", of=whole_number, metavar="N")
    text = (
        "medquad: question types (qtype) that dev alone has, and no others: its instructions are "
        'unseen in training; e.g. treatment "exams and tests"'
    )
    add("--hold-out-types", text, many=True, metavar="TYPE")
    text = "medquad: also train on half of its passages under instructions naming words of them"
    parser.add_boolean("--keyword-instructions", text, default=None)
    return parser


def _field_map(text: str) -> dict[str, list[str]]:
    fields = {}
    for each in text.split(","):
        part, equals, names = each.partition("=")
        if not (equals and part.strip() and names.strip()):
            raise argparse.ArgumentTypeError(f"{each!r} is not PART=NAME")
        if part.strip() in fields:
            raise argparse.ArgumentTypeError(
                f"names {part.strip()} twice; of several fields, {part.strip()}=A|B takes the first"
            )
        fields[part.strip()] = [name.strip() for name in names.split("|")]
    return fields


def run_build(args: argparse.Namespace, beam: tfds.download.DownloadConfig | None = None) -> None:
    """Builds the dataset and prints its report; raises UserError as `build`."""
    options = dict(vars(args))
    if is_url(str(options["data_dir"])):
        raise UserError(f"--data-dir={options['data_dir']}: is a URL; give a local directory")
    options.pop("runner", None)
    given = {name: options.pop(name) for name in _OPTIONS}
    options["options"] = {name: value for name, value in given.items() if value is not None}
    if options["source"] == "fields":
        options["options"].setdefault("fields", None)
    options["evaluation"] = tuple(options["evaluation"])
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
