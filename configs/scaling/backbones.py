"""One step's batch for backbones of several families: multi(P,IQ), 16,384 pairs a step on v5e.

Data:      MS MARCO's 532,761 judged pairs; `train` and `plan` refuse less than a step of 16,384.
           collection.tsv, queries.train.tsv and qrels.train.tsv in msmarco/
           (https://microsoft.github.io/msmarco/Datasets), then
           python -m data_pipeline.build --source=msmarco --path-train=msmarco --data-dir=out/data
           or for a rehearsal, with --config.data.source=synthetic,
           python -m data_pipeline.build --source=synthetic --count=100000 --data-dir=out/data
Command:   python -m inf_jax.train --config=configs/scaling/backbones.py:modernbert-large
Plan:      python launch/bench.py plan --backbones   with and without splash attention
Hardware:  v5e:16x16 (256 chips), see launch/benchmarks.md for their plans
Time:      not run yet, nothing measured.

One function makes all of them; a name is a model. Rows hold 256 tokens, a multiple of the 128 that
the splash kernels need (the plans have rows of 512, which 64 pairs fill less). `mesh.fsdp` is as
large as the state asks for: 12 bytes a parameter, with LoRA 2.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from inf_jax.config import defaults

TOPOLOGY = "v5e:16x16"
PAIRS = 16384
RUN_PAIRS = 2**24  # of every run


class Backbone(NamedTuple):
    """Attributes: model, pooling, prefixes (of query and passage), lr, fsdp, lora_rank (0 trains
    all parameters), remat and the number of first layers with remat full (unless full, layers
    are unrolled)."""

    model: str
    pooling: str
    prefixes: tuple[str, str]
    lr: float
    fsdp: int
    lora_rank: int = 0
    remat: str = "full"
    first_layers: int = 0


BACKBONES = {
    "e5-large": Backbone("intfloat/e5-large-v2", "mean", ("query: ", "passage: "), 2e-5, 8),
    "modernbert-large": Backbone("answerdotai/ModernBERT-large", "mean", ("", ""), 8e-5, 8),
    "qwen2.5-1.5b": Backbone(
        "Qwen/Qwen2.5-1.5B", "last", ("", ""), 2e-5, 32, remat="dots", first_layers=3
    ),
    "llama-3.1-8b": Backbone("meta-llama/Llama-3.1-8B", "last", ("", ""), 1e-4, 64, lora_rank=16),
}
NAMES = tuple(BACKBONES)


def get_config(name: str = "modernbert-large") -> ConfigDict:
    """The config of a name of NAMES."""
    if name not in NAMES:
        raise ValueError(f"{name!r}: must be one of {', '.join(NAMES)}")
    backbone = BACKBONES[name]

    config = defaults()
    config.out_dir = f"out/scaling/{name}"

    config.data.source = "msmarco"
    config.data.query_template = backbone.prefixes[0] + "{query} {instruction}"
    config.data.passage_template = backbone.prefixes[1] + "{passage}"
    config.data.max_query_tokens = 128
    config.data.max_passage_tokens = 256
    config.data.row_tokens = 256

    config.model.name = backbone.model
    config.model.pooling = backbone.pooling
    config.model.dtype = "bfloat16"
    config.model.remat = backbone.remat
    config.model.remat_first_layers = backbone.first_layers
    config.model.scan_layers = backbone.remat == "full"
    if backbone.lora_rank:
        config.model.lora_rank = backbone.lora_rank
        config.model.lora_alpha = 2.0 * backbone.lora_rank
        config.model.frozen_dtype = "bfloat16"

    config.loss.objective = "multi(P,IQ)"
    config.loss.scale = 1 / (0.05 + 1e-4)
    config.loss.tile_dtype = "bfloat16"  # float32 products take six passes of the matrix unit

    config.optim.lr = backbone.lr
    config.train.steps = RUN_PAIRS // PAIRS
    config.optim.warmup_steps = config.train.steps // 16
    config.train.batch_size = PAIRS
    config.train.checkpoint_every = config.train.steps // 16
    config.mesh.fsdp = backbone.fsdp
    return config
