"""`inf_jax.tokenise` on Apache Beam: many workers write the same shards.

python -m data_pipeline.beam_tokenise --config=configs/medquad_minilm.py --runner=DirectRunner \\
    --direct_num_workers=0 --direct_running_mode=multi_processing

Flags that begin with --config are those of `inf_jax.train`, which then uses the tokenised train
split, in each of its wordings; --runner and all others are Beam's. After a kill, run it again: it
writes the missing shards. data.dir must be on a file system that every worker mounts under the same
path.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from data_pipeline.dataset import beam_runner
from data_pipeline.dataset.beam_token_steps import ShardJob
from inf_jax.config.command_line import EXAMPLE, parse
from inf_jax.config.defaults import run_config
from inf_jax.config.sections import RunConfig
from inf_jax.core.cli_flags import FlagParser
from inf_jax.core.errors import UserError, main_guard
from inf_jax.data.from_config import dataset_dir, rewriting_of, text_config, wordings_of
from inf_jax.data.records import most_pairs
from inf_jax.data.tokenised.plans import EXAMPLES_PER_SHARD, plan_shards
from inf_jax.data.tokenised.rewriting import Rewriting
from inf_jax.data.tokenised.shuffle import is_large
from inf_jax.io.storage import is_bucket
from inf_jax.models.hf.backbone import load_model
from inf_jax.text import eos


def tokenise_on_beam(
    config: RunConfig,
    beam_config: tfds.download.DownloadConfig,
    *,
    examples_per_shard: int = EXAMPLES_PER_SHARD,
    rewriting: Rewriting | None = None,
) -> Path:
    """Tokenises the train split of a training run, unless it is tokenised already.

    Args:
      rewriting: of a wording of the split, as of `wordings_of`; None: that of the first one.

    Returns the directory that `inf_jax.data.tokenise.tokenise` returns, with byte-identical files,
    and raises UserError as it does.
    """
    import apache_beam as beam

    if is_bucket(config.data.dir) or config.data.shuffle == "windows":
        raise UserError(
            f"data.dir={config.data.dir}, data.shuffle={config.data.shuffle}: workers write the "
            "global order to a file system that they share; for a bucket or windows, tokenise with "
            "`python -m inf_jax.tokenise`"
        )
    if config.data.mixture.strip():
        raise UserError(
            "beam-tokenise takes one source at a time: give --config.data.mixture= (empty) and "
            "--config.data.source=NAME for each of the mixture's"
        )
    model = config.model.name
    tokenizer, text = load_model(config).tokenizer, text_config(config)
    plan = plan_shards(
        dataset_dir(config),
        config.data.train_split,
        tokenizer=tokenizer,
        text=text,
        out_dir=Path(config.data.dir) / "tokenised" / config.data.source,
        examples_per_shard=examples_per_shard,
        rewriting=rewriting or rewriting_of(config),
    )
    batch, shuffle = config.train.batch_size, config.data.shuffle
    if shuffle == "auto" and is_large(plan.num_examples, plan.directory, batch=batch):
        raise UserError(
            f"data.shuffle=auto: training would read {plan.num_examples:,} examples in windows, "
            "which workers do not write; set data.shuffle=global here and in training, or tokenise "
            "with `python -m inf_jax.tokenise`"
        )
    todo = plan.todo()
    if todo is None:
        return plan.directory
    append_eos = eos.choice_for(config.model.append_eos, config.model.pooling)
    k = plan.rewriting.count(most_pairs(plan.sources))
    job = ShardJob(plan, text, model, append_eos, tokenizer.fingerprint, todo, k)
    starts = itertools.accumulate([count for _, count in plan.sources[:-1]], initial=0)
    files = list(zip(starts, plan.sources, strict=True))
    with (
        beam_runner.worker_errors(),
        beam.Pipeline(beam_config.beam_runner, options=beam_config.beam_options) as pipeline,
    ):
        _ = (
            pipeline
            | "Files" >> beam.Create(files, reshuffle=True)
            | "Pieces" >> beam.FlatMap(job.pieces)
            | "ByShard" >> beam.GroupByKey()
            | "Write" >> beam.FlatMapTuple(job.write)
            | "Samples" >> beam.combiners.ToList()
            | "Manifest" >> beam.Map(job.finish)
        )
    return plan.directory


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command; `argv` is without the program's name."""
    with main_guard():
        parser = FlagParser(__doc__, "python -m data_pipeline.beam_tokenise")
        about = "config of the training run, whose flags --config.KEY=VALUE are taken too"
        parser.add("--config", about, metavar="NAME", example=EXAMPLE)
        given = sys.argv[1:] if argv is None else argv
        args, rest = beam_runner.parse_arguments(parser, given, others="--config.")
        overrides = [flag for flag in rest if flag.startswith("--config.")]
        options = [flag for flag in rest if flag not in overrides]
        beam_runner.quiet()
        config = parse(["beam_tokenise", f"--config={args.config}", *overrides])
        beam = beam_runner.make_config(args.runner, options)
        for wording, rewriting in wordings_of(run_config(config)):
            directory = tokenise_on_beam(wording, beam, rewriting=rewriting)
            print(f"tokenised records: {directory}")


if __name__ == "__main__":
    main()
