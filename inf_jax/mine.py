"""Mines hard negatives for (query, passage) pairs by the rules of sentence-transformers.

    inf-jax mine --model=DIR --pairs=pairs.jsonl --relative-margin=0.05 --out=mined.jsonl
    inf-jax mine --candidates=bm25 --pairs=pairs.jsonl --corpus=corpus.jsonl --out=mined.jsonl

Candidates of a query are the best passages of the pairs and of --corpus, by the model, by BM25 or
by both. Scores, which the margins compare, are the --teacher's, else the model's, else BM25's.
Dropped are, in this order: known positives of the same query and instruction; texts that equal one
of them, or the query, but for case; what a margin or a limit excludes; the best --range-min of what
is left. The output has a row for each pair, in their order: id, query, instruction, passage,
negatives and (--scores) scores, of the passage and of each negative; `inf-jax-data build
--source=fields` reads it. A model's scores are cosines: to train on them (distil, margin) set
loss.teacher_scale, as large as loss.scale. Pairs are a .jsonl, .tsv or .parquet file, or a built
dataset (--split). --work-dir keeps texts and vectors: after whatever end the same command goes on
there, and other margins need no encoding.
"""

import argparse
import sys
from pathlib import Path

from inf_jax.core.cli_flags import FlagParser, at_least, names_among, number
from inf_jax.core.console import table
from inf_jax.core.errors import UsageError, main_guard
from inf_jax.distributed import coordination
from inf_jax.distributed.entry_point import run_distributed
from inf_jax.evaluation.bm25 import check_installed
from inf_jax.io import storage
from inf_jax.io.paths import is_url
from inf_jax.training.run_model import open_model
from inf_jax.vectors import mining
from inf_jax.vectors.command import (
    MODEL_FLAGS,
    add_model_flags,
    check_place,
    encode_for_mining,
    load_model_of,
    pair_fields,
    refuse_cross_encoder,
    refuse_idle,
    refuse_idle_of_model,
    text_source,
)
from inf_jax.vectors.encoding import SHARD_SIZE
from inf_jax.vectors.pairs import MiningTexts, read_pair_rows

_KINDS = ("dense", "bm25")


def main(args: argparse.Namespace) -> None:
    """Mines what the command line names.

    Raises:
      UserError: pairs, corpus, a model or the rules cannot be used.
    """
    out = storage.as_path(check_place("--out", args.out))
    work = args.work_dir = args.work_dir or f"{args.out}.work"
    if is_url(work):
        raise UsageError(f"--work-dir={work}: must be on a disk that all hosts share")
    work = Path(work)
    if not args.candidates or ("dense" in args.candidates and not args.model):
        raise UsageError(
            "command line: --model missing, e.g. --model=out/run/export; without one, give "
            "--candidates=bm25"
        )
    rules = mining.MiningRules(**{name: getattr(args, name) for name in mining.RULE_NAMES})
    for flag, model in (("--model", args.model), ("--teacher", args.teacher)):
        if model:
            refuse_cross_encoder(flag, model)
    _refuse_idle_flags(args)
    if "bm25" in args.candidates:
        check_installed()
    primary = coordination.is_primary()
    if primary:
        storage.check_access(out.parent)
    coordination.check_shared(work, storage.check_access)
    rows = read_pair_rows(Path(args.pairs), args.fields, args.split)
    rows = [r._replace(instruction=r.instruction or args.instruction) for r in rows]
    corpus = text_source(args.corpus, args, "passage").texts() if args.corpus else ()
    with coordination.on_primary(storage.locked(work)):
        texts = MiningTexts(rows, (text.text for text in corpus), work, write=primary)
        coordination.barrier("texts", timeout_s=3600.0)
        positives = mining.Positives(texts)
        k = min(rules.depth(positives.most) + positives.most, len(texts.same))
        found, scores = [], None
        if args.model:
            queries, store = encode_for_mining(
                load_model_of(args), args.model, texts, work / "model", args.shard_size
            )
            scores = mining.pair_scores(queries, store, positives.query, positives.passage)
            if "dense" in args.candidates:
                found.append(mining.dense_candidates(queries, store, k, progress=primary))
        if args.teacher:
            teacher = open_model(args.teacher, dtype=args.compute_dtype, fsdp=args.fsdp)
            queries, store = encode_for_mining(
                teacher, args.teacher, texts, work / "teacher", args.shard_size
            )
            scores = mining.pair_scores(queries, store, positives.query, positives.passage)
        if not primary:
            return
        if "bm25" in args.candidates:
            candidates, own = mining.bm25_candidates(texts, positives, k)
            found.append(candidates)
            scores = own if scores is None else scores
        candidates = mining.united(found)
        if args.teacher or (args.model and "bm25" in args.candidates):
            candidates = mining.rescored(candidates, queries, store)
        lowest = positives.lowest(scores)
        chosen, dropped = mining.choose_negatives(rules, candidates, positives, lowest, texts)
        mined = mining.mined_rows(
            rows, texts, chosen, positives.of_rows(scores) if args.scores else None
        )
        with storage.new_file(out) as file:
            counts = mining.write_rows(file, mined)
    _report(args, texts, rules, counts, dropped)


def _refuse_idle_flags(args: argparse.Namespace) -> None:
    """UsageError for flags of a model, a corpus, a dataset or a draw where there is none."""
    parser = _flags()
    if args.sampling != "random":
        parser.refuse_idle(args, ["seed"], f"--sampling={args.sampling} draws nothing")
    if args.teacher and "dense" not in args.candidates:
        why = "candidates are BM25's, and their scores the --teacher's"
        parser.refuse_idle(args, ["model"], why)
    if args.model:
        refuse_idle_of_model(args)
    else:
        alone = MODEL_FLAGS if not args.teacher else MODEL_FLAGS[:-2]  # the teacher has those two
        refuse_idle(args, alone, "there is no --model")
    source = text_source(args.corpus, args, "passage") if args.corpus else None
    if source is None or not source.has_fields:
        why = f"{args.corpus} has no named fields" if args.corpus else "there is no --corpus"
        refuse_idle(args, ("id_field", "text_field"), f"{why}; --fields is of the pairs")
    if Path(args.pairs).is_dir():
        if args.fields:
            raise UsageError(
                f"command line: --fields would have no effect: {args.pairs} is a built dataset, "
                "whose fields have their names; leave it out"
            )
    elif source is None or not source.is_dataset:
        refuse_idle(args, ["split"], "there is no built dataset")


def _report(args, texts, rules, counts, dropped) -> None:
    short = sum(rows for n, rows in counts.items() if n < rules.negatives)
    table(
        "mined",
        [
            ("pairs", f"{counts.total():,}"),
            ("different queries", f"{len(texts.queries):,}"),
            ("different passages", f"{len(texts.same):,}"),
            *((f"dropped: {rule}", f"{count:,}") for rule, count in dropped.items()),
            ("negatives", f"{sum(n * rows for n, rows in counts.items()):,}"),
            (f"pairs with fewer than {rules.negatives}", f"{short:,}"),
            ("pairs with none", f"{counts[0]:,}"),
        ],
    )
    print(f"wrote {args.out}; texts and vectors are in {args.work_dir}")


def _flags() -> FlagParser:
    parser = FlagParser(__doc__, "inf-jax mine")
    add = parser.add
    add("--pairs", "file, or built dataset", metavar="FILE", example="pairs.jsonl")
    add("--out", "the rows, jsonl", metavar="FILE", example="mined.jsonl")
    add("--corpus", "more passages, as --texts of encode; none: those of the pairs", metavar="FILE")
    add("--fields", "of the pairs, e.g. query=question,passage=answer", default={}, of=pair_fields)
    add("--candidates", "dense, bm25 or both", default=["dense"], of=names_among(_KINDS))
    add("--teacher", "another model, which gives the scores", metavar="DIR")
    add("--negatives", "of a pair, at most", default=3, of=at_least(1))
    add("--range-min", "best candidates that are skipped", default=0, of=at_least(0))
    add("--range-max", "candidates that count; 0: some more than needed", default=0, of=at_least(0))
    add("--absolute-margin", "a negative scores so much below the positive", of=number)
    add("--relative-margin", "likewise, as a share of its score: 0.05", of=number)
    add("--max-score", "of a negative", of=number)
    add("--min-score", "of a negative", of=number)
    add("--sampling", "among what is left", default="top", choices=mining.SAMPLING)
    add("--seed", "of random, with the query", default=0, of=at_least(0))
    parser.add_boolean("--scores", "write the scores of passage and negatives")
    add("--work-dir", "texts and vectors; default: OUT.work", metavar="DIR")
    add("--shard-size", "vectors of a shard", default=SHARD_SIZE, of=at_least(1), metavar="N")
    add_model_flags(parser)
    return parser


if __name__ == "__main__":
    with main_guard():
        run_distributed(main)(_flags().parse(sys.argv[1:]))
