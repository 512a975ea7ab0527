"""Large batches with a decoder: Qwen2.5-1.5B, multi(P,IQ), 16 thousand to a million pairs a step.

Data:      as for e5_large.py; `train` and `plan` refuse less than a step. Up to 262,144 pairs
           python -m data_pipeline.build --source=msmarco --path-train=msmarco --data-dir=out/data
           above it pairs of your own (--source=fields --name=NAME, --config.data.source=NAME), or
           for a rehearsal
           python -m data_pipeline.build --source=synthetic --count=5000000 --data-dir=out/data
Command:   python -m inf_jax.train --config=configs/scaling/qwen2_5.py:v5p-65536
Plan:      python launch/bench.py plan --only scaling/qwen2_5.py:v5p-65536
Hardware:  v5e:16x16 (256 chips) or v5p:8x8x8 (512 chips), see launch/benchmarks.md for their plans
Time:      not run yet, nothing measured.

A name is a chip and a number of pairs. The rate is 2e-5 at 16,384 pairs and grows with the square
root of the batch. All runs see 16.8 million pairs. backbones.py has the same model on v5e with
16,384 pairs.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from inf_jax.config import defaults

TOPOLOGIES = {"v5e": ("v5e:16x16", 256), "v5p": ("v5p:8x8x8", 512)}
RUN_PAIRS = 2**24  # of every run
MSMARCO_PAIRS = 532_761  # of qrels.train.tsv


class Form(NamedTuple):
    """How a step is computed: the fastest that was planned (launch/benchmarks.md).

    Attributes:
      chunks: of a device; above 1, GradCache encodes each chunk twice.
      remat, first_layers: `model.remat` and the number of first layers with remat full.
      scan_layers: a loop over layers copies what backward keeps, and compiles in minutes.
      engine: `loss.engine`; dense where a device has few scores: a ring's hops would cost more.
      row_tokens: see e5_large.py; 32 pairs fill 8 rows of 368 to 98.1 %, and 12 of 256 to 94.0 %.
      fsdp: `mesh.fsdp`; 64 devices are a plane of v5p:8x8x8 and have twice a ring's links.
      gather: `mesh.gather`; "weights" where several chunks' whole gradients fit but whole weights
        beside them would not, "layer" where neither does.
    """

    chunks: int
    remat: str
    first_layers: int = 0
    scan_layers: bool = True
    engine: str = "auto"
    row_tokens: int = 256
    fsdp: int = 32
    gather: str = "layer"


FORMS = {
    "v5e-16384": Form(1, "dots", 3, scan_layers=False),
    "v5e-65536": Form(1, "dots", 25),
    "v5e-262144": Form(32, "dots", scan_layers=False, gather="weights"),
    "v5e-1048576": Form(128, "dots", scan_layers=False, gather="weights"),
    "v5p-16384": Form(1, "none", scan_layers=False, row_tokens=368, fsdp=64, gather="step"),
    "v5p-65536": Form(1, "none", engine="dense", fsdp=16),
    "v5p-262144": Form(1, "dots", 20, fsdp=16),
    "v5p-1048576": Form(1, "dots", 26, fsdp=16),
}
NAMES = tuple(FORMS)


def get_config(name: str = "v5p-65536") -> ConfigDict:
    """The config of "CHIP-PAIRS", a name of NAMES."""
    if name not in NAMES:
        raise ValueError(f"{name!r}: must be one of {', '.join(NAMES)}")
    pairs, form = int(name.partition("-")[2]), FORMS[name]

    config = defaults()
    config.out_dir = f"out/scaling/qwen2_5-{name}"

    config.data.source = "msmarco" if pairs < MSMARCO_PAIRS else "synthetic"
    config.data.query_template = "{query} {instruction}"
    config.data.passage_template = "{passage}"
    config.data.max_query_tokens = 128
    config.data.max_passage_tokens = 256
    config.data.row_tokens = form.row_tokens

    config.model.name = "Qwen/Qwen2.5-1.5B"
    config.model.pooling = "last"
    config.model.dtype = "bfloat16"
    config.model.remat, config.model.remat_first_layers = form.remat, form.first_layers
    config.model.scan_layers = form.scan_layers

    config.loss.objective = "multi(P,IQ)"
    config.loss.scale = 1 / (0.05 + 1e-4)
    config.loss.engine = form.engine
    config.loss.tile_dtype = "bfloat16"  # float32 products take six passes of the matrix unit

    config.optim.lr = 2e-5 * (pairs / 16384) ** 0.5
    config.train.steps = RUN_PAIRS // pairs
    config.optim.warmup_steps = config.train.steps // 16
    config.train.batch_size = pairs
    config.train.chunks_per_device = form.chunks
    config.train.checkpoint_every = max(1, config.train.steps // 16)
    config.mesh.fsdp, config.mesh.gather = form.fsdp, form.gather
    return config
