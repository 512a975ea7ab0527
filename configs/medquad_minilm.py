"""The demo: all-MiniLM-L6-v2 on MedQuAD.

Command:  python -m inf_jax.train --config=configs/medquad_minilm.py
"""

from ml_collections import ConfigDict

from inf_jax.config import defaults


def get_config() -> ConfigDict:
    """MedQuAD, MiniLM, a CPU with 2 cores."""
    config = defaults()
    config.out_dir = "out/medquad_minilm"
    config.data.source = "medquad"
    config.model.scan_layers = False  # layers unrolled are faster on a CPU
    return config
