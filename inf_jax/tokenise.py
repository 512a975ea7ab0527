"""Tokenises the train split of a config, or of each source of its mixture, as training would do.

    python -m inf_jax.tokenise --config=medquad_minilm

`inf_jax.data.tokenise` says what is written.
"""

import numpy as np
from ml_collections import ConfigDict

from inf_jax.config.command_line import run
from inf_jax.config.defaults import run_config
from inf_jax.config.sections import RunConfig
from inf_jax.core.console import table
from inf_jax.data.from_config import source_configs, tokenised_split, wordings_of
from inf_jax.data.tokenised.rewriting import Rewriting
from inf_jax.models.hf.backbone import load_model
from inf_jax.text.tokenizer import TextTokenizer

_AT_ONCE = 1 << 20  # examples


def main(resolved: ConfigDict) -> None:
    """Tokenises the train split of a run, as training would on first use."""
    config = run_config(resolved)
    tokenizer = load_model(config).tokenizer
    for wording, rewriting in wordings_of(config):
        for each in source_configs(wording):
            _tokenise(each, tokenizer, rewriting)


def _tokenise(config: RunConfig, tokenizer: TextTokenizer, rewriting: Rewriting) -> None:
    split = config.data.train_split
    dataset = tokenised_split(config, tokenizer, split, rewriting=rewriting)
    texts, tokens, cut = np.zeros((3, 2), np.int64)
    limits = config.data.max_query_tokens, config.data.max_passage_tokens
    for first in range(0, dataset.num_examples, _AT_ONCE):
        lengths = dataset.text_lengths[first : first + _AT_ONCE].reshape(-1, 2)
        texts += np.count_nonzero(lengths, axis=0)
        tokens += lengths.sum(0)
        cut += (lengths == limits).sum(0)
    table(
        f"{config.data.source} {split}: {dataset.num_examples:,} examples",
        [
            (
                name,
                f"{texts[role]:,}",
                f"{tokens[role]:,}",
                f"{tokens[role] / texts[role]:.1f}",
                limits[role],
                f"{cut[role] / texts[role]:.1%}",
            )
            for role, name in enumerate(("instructed queries", "passages"))
        ],
        header=("", "texts", "tokens", "mean", "limit", "at the limit"),
    )
    print(f"tokenised records: {dataset.directory}")


if __name__ == "__main__":
    run(main, __doc__)
