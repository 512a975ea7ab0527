"""Texts of few words, and an encoder that adds up the words' vectors: losses by hand."""

from pathlib import Path

import jax.numpy as jnp
import tokenizers
from transformers import PreTrainedTokenizerFast

from inf_jax.data.records import PairExample
from inf_jax.data.tokenise import tokenise
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.text.templates import TextConfig
from inf_jax.text.tokenizer import TextTokenizer
from tests.inf_jax.data.small_split import make_dataset


def tokenizer(words: list[str]) -> TextTokenizer:
    """The id of a word is its place; no special tokens."""
    ids = {word: n for n, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=words[0]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def dataset(directory: Path, examples: list[PairExample], words: list[str]) -> TokenisedDataset:
    """The examples, tokenised."""
    make_dataset(directory / "text", {"train": [examples]})
    return TokenisedDataset(
        tokenise(
            directory / "text",
            "train",
            tokenizer=tokenizer(words),
            text=TextConfig(max_query_tokens=8, max_passage_tokens=8),
            out_dir=directory / "tokenised",
            progress=False,
        )
    )


def encode(params, packed, key=None, *, shards=None):
    """[c, k, e]: for each text the sum of its tokens' vectors, rows of params["word"]."""
    params = params if shards is None else shards.whole(params)
    places = 1 + jnp.arange(packed.text_ids.shape[-1])
    mine = packed.segments[..., None] == places[None, None, None]
    sums = jnp.einsum("crts,crte->crse", mine, params["word"][packed.tokens], precision="highest")
    sums = sums.reshape(len(sums), -1, sums.shape[-1])
    return jnp.take_along_axis(sums, packed.slots[:, :, None], axis=1)
