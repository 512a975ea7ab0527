"""The paper's runs: one of the nine backbones of its code on InF-IR, any of its twelve losses.

Data:      python -m data_pipeline.build --source=inf_ir --path-train=FILE --data-dir=out/paper/data
Command:   python -m inf_jax.train --config=configs/paper/inf_embed.py:e5-base-v2
All runs:  python launch/reproduce.py --help
Hardware:  8 devices of 16 GiB: all fit v5e:2x4 by their plans (launch/benchmarks.md)
Time:      not run yet, nothing measured.
Expected:  the paper's abstract (arXiv 2505.21439) gives mean gains over the backbones on its
           instruction benchmarks: +9.0 p-MRR for encoders, +4.2 p-MRR for decoders.

From the code published with the paper (github.com/night-chen/InF_Embed): 4 examples of 3 pairs on
each of 8 devices, 2 epochs of about 38,400 examples, AdamW at 5e-5 that falls to 0 without warm-up,
without weight decay, clipped at norm 1; temperature 0.05 + 1e-4; queries of up to 256 tokens,
passages of 512; pooling by backbone; no prefixes, the instruction after the query; bfloat16.

Different here: block I draws its 5 instructions for a query from the whole step, not from the 12
queries of its device, and joins query and instruction by a space, not by a separator token;
`uni(P,IQ,QQ,PP)` leaves a query's similarity to itself out (Objectives in inf_jax/README.md).
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from inf_jax.config import defaults

EXAMPLES = 38_400  # of the released corpus, about
DEVICES, EXAMPLES_PER_DEVICE, EPOCHS = 8, 4, 2


class Backbone(NamedTuple):
    """Attributes: model (Hugging Face id), pooling, kind (encoder or decoder)."""

    model: str
    pooling: str
    kind: str = "decoder"


BACKBONES = {
    "e5-base-v2": Backbone("intfloat/e5-base-v2", "mean", "encoder"),
    "e5-large-v2": Backbone("intfloat/e5-large-v2", "mean", "encoder"),
    "modernbert-base": Backbone("answerdotai/ModernBERT-base", "cls", "encoder"),
    "llama-3.2-1b": Backbone("meta-llama/Llama-3.2-1B", "last"),
    "llama-3.2-1b-instruct": Backbone("meta-llama/Llama-3.2-1B-Instruct", "last"),
    "qwen2.5-1.5b": Backbone("Qwen/Qwen2.5-1.5B", "last"),
    "qwen2.5-1.5b-instruct": Backbone("Qwen/Qwen2.5-1.5B-Instruct", "last"),
    "qwen2.5-3b": Backbone("Qwen/Qwen2.5-3B", "last"),
    "qwen2.5-3b-instruct": Backbone("Qwen/Qwen2.5-3B-Instruct", "last"),
}
OBJECTIVES = (
    *("uni(P)", "uni(IQ)", "uni(I)", "uni(P,IQ)", "uni(P,I)", "uni(I,IQ)", "uni(P,I,IQ)"),
    *("uni(P,IQ,QQ,PP)", "multi(P,IQ)", "multi(P,I)", "multi(I,IQ)", "multi(P,I,IQ)"),
)
# Instructions drawn for a query by an objective with block I: half of a device's 12, less its own.
INSTRUCTION_NEGATIVES = 3 * EXAMPLES_PER_DEVICE // 2 - 1


def get_config(name: str = "e5-base-v2") -> ConfigDict:
    """The config of a backbone of BACKBONES with the objective uni(P)."""
    if name not in BACKBONES:
        raise ValueError(f"{name!r}: must be one of {', '.join(BACKBONES)}")
    backbone = BACKBONES[name]

    config = defaults()
    config.out_dir = f"out/paper/{name}"

    config.data.dir = "out/paper/data"
    config.data.source = "inf_ir"
    config.data.max_query_tokens = 256
    config.data.max_passage_tokens = 512
    config.data.row_tokens = 512

    config.model.name = backbone.model
    config.model.pooling = backbone.pooling
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.loss.objective = "uni(P)"
    config.loss.mask = "faithful"  # copies of a positive are negatives, as in the paper's code
    config.loss.scale = 1 / (0.05 + 1e-4)

    examples = DEVICES * EXAMPLES_PER_DEVICE
    config.optim.lr = 5e-5
    config.optim.schedule = "linear"
    config.optim.final_ratio = 0.0
    config.optim.warmup_steps = 0
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 1.0
    config.train.steps = EPOCHS * EXAMPLES // examples
    config.train.batch_size = 3 * examples  # pairs
    config.train.checkpoint_every = config.train.steps // 4
    config.mesh.fsdp = DEVICES if backbone.kind == "decoder" else 1
    config.eval.max_passage_tokens = 512
    return config
