"""Large batches: E5-large-v2, multi(P,IQ), 4 thousand to a million pairs a step on v5e or v5p.

Data:      more pairs than a step takes; `train` and `plan` refuse less. Up to 262,144 pairs a step
           MS MARCO's 532,761 judged pairs, with collection.tsv, queries.train.tsv and
           qrels.train.tsv of https://microsoft.github.io/msmarco/Datasets in msmarco/:
           python -m data_pipeline.build --source=msmarco --path-train=msmarco --data-dir=out/data
           above it pairs of your own (--source=fields --name=NAME, --config.data.source=NAME), or
           for a rehearsal synthetic ones, real sentences recombined, which teach nothing:
           python -m data_pipeline.build --source=synthetic --count=5000000 --data-dir=out/data
Command:   python -m inf_jax.train --config=configs/scaling/e5_large.py:v5e-65536
Plan:      python launch/scaling.py [v5e-65536 ...]   refuses what does not fit
Hardware:  v5e:16x16 (256 chips) or v5p:8x8x8 (512 chips), see launch/benchmarks.md for their plans
Time:      not run yet, nothing measured.

One function makes all of them; a name is a chip and a number of pairs. Each pair gives a row, and
every other pair is its negative. The rate is 1e-5 at 4,096 pairs and grows with the square root of
the batch. All runs see 67 million pairs, 126 epochs of MS MARCO: fewer steps may be enough. InF-IR,
whose examples of three pairs stay whole, needs a multiple of three:
--config.data.source=inf_ir --config.train.batch_size=65535.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from inf_jax.config import defaults

TOPOLOGIES = {"v5e": ("v5e:16x16", 256), "v5p": ("v5p:8x8x8", 512)}
PAIRS = tuple(4096 * 4**n for n in range(5))  # to 1,048,576
NAMES = tuple(f"{chip}-{pairs}" for chip in TOPOLOGIES for pairs in PAIRS)

RUN_PAIRS = 2**26  # of every run
MSMARCO_PAIRS = 532_761  # of qrels.train.tsv


class Form(NamedTuple):
    """How a step is computed: the fastest that was planned, or after it (launch/benchmarks.md).

    Attributes:
      chunks: of a device; above 1, GradCache encodes each chunk twice. A chunk of 33 pairs of MS
        MARCO's lengths fills 11.7 of 12 rows, one of 32 pairs 11.3.
      row_tokens: few pairs of MS MARCO's lengths leave less of rows of 368 empty: 8 are 722 tokens,
        two of these rows and not quite three of 256.
      remat, first, first_layers: `model.remat`, `remat_first` and `remat_first_layers`: together
        they keep what fits.
      engine: `loss.engine`; dense where a device has few scores: a ring's hops would cost more.
      fsdp: `mesh.fsdp`; 64 devices are a plane of v5p:8x8x8 and have twice a ring's links.
      gather: `mesh.gather`; "step" where few pairs a chip make gathers dear.
    """

    chunks: int
    remat: str
    first: str = "full"
    first_layers: int = 0
    row_tokens: int = 256
    engine: str = "auto"
    fsdp: int = 8
    gather: str = "auto"


FORMS = {
    "v5e-4096": Form(1, "none", row_tokens=368),
    "v5e-16384": Form(1, "dots"),
    "v5e-65536": Form(1, "ffn", "sums", 8),
    "v5e-262144": Form(31, "none"),
    "v5e-1048576": Form(124, "none"),
    "v5p-4096": Form(1, "none", row_tokens=368),
    "v5p-16384": Form(1, "none", row_tokens=368, fsdp=64, gather="step"),
    "v5p-65536": Form(1, "none", engine="dense"),
    "v5p-262144": Form(1, "dots"),
    "v5p-1048576": Form(1, "ffn", "sums", 16),
}


def get_config(name: str = "v5e-65536") -> ConfigDict:
    """The config of "CHIP-PAIRS", a name of NAMES."""
    if name not in NAMES:
        raise ValueError(f"{name!r}: must be one of {', '.join(NAMES)}")
    pairs, form = int(name.partition("-")[2]), FORMS[name]

    config = defaults()
    config.out_dir = f"out/scaling/e5_large-{name}"

    config.data.source = "msmarco" if pairs < MSMARCO_PAIRS else "synthetic"
    config.data.query_template = "query: {query} {instruction}"  # E5's prefixes
    config.data.passage_template = "passage: {passage}"
    config.data.max_query_tokens = 128
    config.data.max_passage_tokens = 256

    config.model.name = "intfloat/e5-large-v2"
    config.model.dtype = "bfloat16"

    config.loss.objective = "multi(P,IQ)"
    config.loss.scale = 1 / (0.05 + 1e-4)
    config.loss.engine = form.engine
    config.loss.tile_dtype = "bfloat16"  # float32 products take six passes of the matrix unit

    config.optim.lr = 1e-5 * (pairs / 4096) ** 0.5
    config.train.steps = RUN_PAIRS // pairs
    config.optim.warmup_steps = config.train.steps // 16
    config.train.batch_size = pairs
    config.data.row_tokens = form.row_tokens
    config.train.chunks_per_device = form.chunks
    config.model.remat = form.remat
    config.model.remat_first, config.model.remat_first_layers = form.first, form.first_layers
    config.model.scan_layers = False  # nothing is copied into stacks; compiling takes longer
    config.train.checkpoint_every = max(1, config.train.steps // 16)
    config.mesh.fsdp, config.mesh.gather = form.fsdp, form.gather
    return config
