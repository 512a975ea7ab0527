"""Builds texts, dataset directory and tokenised splits from the `data` section of a config."""

from pathlib import Path

from inf_jax.config.sections import RunConfig
from inf_jax.core.errors import UserError
from inf_jax.data.tokenise import tokenise
from inf_jax.data.tokenised import TokenisedDataset
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer


def text_config(config: RunConfig) -> TextConfig:
    """Templates and limits of the `data` section."""
    return TextConfig(
        query_template=config.data.query_template,
        passage_template=config.data.passage_template,
        max_query_tokens=config.data.max_query_tokens,
        max_passage_tokens=config.data.max_passage_tokens,
    )


def dataset_dir(config: RunConfig) -> Path:
    """`<data.dir>/inf_ir/<source>/<version>`; raises UserError where nothing was built."""
    directory = Path(config.data.dir) / "inf_ir" / config.data.source / config.data.version
    if not (directory / "dataset_info.json").exists():
        raise UserError(
            f"{directory}: no dataset here; build it with "
            f"`python -m data_pipeline.build --source={config.data.source} "
            f"--data-dir={config.data.dir}`"
        )
    return directory


def tokenised_split(
    config: RunConfig, tokenizer: TextTokenizer, split: str, *, expected: str | None = None
) -> TokenisedDataset:
    """The split's tokenised records, made now if the cache has none for these texts and tokenizer;
    `expected` as for `tokenise`."""
    directory = tokenise(
        dataset_dir(config),
        split,
        tokenizer=tokenizer,
        text=text_config(config),
        out_dir=Path(config.data.dir) / "tokenised" / config.data.source,
        expected=expected,
    )
    return TokenisedDataset(directory)
