"""Tokenises the train split of a config; training does the same on first use.

    python -m inf_jax.tokenise --config=medquad_minilm

`inf_jax.data.tokenise` says what is written.
"""

import numpy as np
from ml_collections import ConfigDict

from inf_jax.config.command_line import run
from inf_jax.config.defaults import run_config
from inf_jax.core.console import table
from inf_jax.data.from_config import tokenised_split
from inf_jax.models.hf.backbone import load_model


def main(resolved: ConfigDict) -> None:
    """Tokenises the train split of a run, as training would."""
    config = run_config(resolved)
    split = config.data.train_split
    dataset = tokenised_split(config, load_model(config).tokenizer, split)
    queries, passages = (dataset.text_lengths[:, role::2] for role in (0, 1))
    table(
        f"{split}: {dataset.num_examples:,} examples",
        [
            (
                name,
                f"{np.count_nonzero(lengths):,}",
                f"{lengths.sum():,}",
                f"{lengths[lengths > 0].mean():.1f}",
                limit,
                f"{np.mean(lengths[lengths > 0] == limit):.1%}",
            )
            for name, lengths, limit in (
                ("instructed queries", queries, config.data.max_query_tokens),
                ("passages", passages, config.data.max_passage_tokens),
            )
        ],
        header=("", "texts", "tokens", "mean", "limit", "at the limit"),
    )
    print(f"tokenised records: {dataset.directory}")


if __name__ == "__main__":
    run(main, __doc__)
