"""The check that spliced texts are those of the tokenizer."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from inf_jax.core.errors import UserError
from inf_jax.data.tokenised.dataset import TokenisedDataset
from inf_jax.text.splice_check import CHECKED_EXAMPLES, sampled
from inf_jax.text.tokenizer import TextTokenizer
from tests.inf_jax.data.small_split import EXAMPLES, TEXT, make_dataset


def byte_level() -> TextTokenizer:
    """One token a byte, white space included: a word in a text begins with that of its space."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: n for n, letter in enumerate(alphabet)}, [])
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_splicing_is_checked(run, source):
    directory = run()
    manifest = json.loads((directory / "manifest.json").read_text())
    pairs = np.count_nonzero(TokenisedDataset(directory).text_lengths[:, ::2])
    assert manifest["composition"] == {"checked": pairs, "crossed": 0, "alone": 0}
    for kind in ("crossed", "alone"):
        TokenisedDataset(directory).check_composition(kind)

    wide = dataclasses.replace(TEXT, max_query_tokens=90)
    spaced = TokenisedDataset(run(tokenizer=byte_level(), text=wide))
    spaced.check_composition("crossed")
    with pytest.raises(UserError, match=r'text of its own .*query_encoder="joint"'):
        spaced.check_composition("alone")

    shutil.rmtree(source)
    worded = [
        dataclasses.replace(e, query_positive="disease " + "abcde"[n % 5])
        for n, e in enumerate(EXAMPLES)
    ]
    make_dataset(source, {"train": [worded]})
    merged = TokenisedDataset(
        run(text=dataclasses.replace(TEXT, query_template="{query}{instruction}"))
    )
    with pytest.raises(
        UserError, match=r"query_template='\{query\}\{instruction\}' this model.*white"
    ):
        merged.check_composition("crossed")


def test_the_sample_is_spread_over_the_split():
    for count in (1, 255, 256, 257, 5000):
        kept = []
        assert list(sampled(iter(range(count)), count=count, into=kept)) == list(range(count))
        assert CHECKED_EXAMPLES // 2 < len(kept) <= CHECKED_EXAMPLES or kept == list(range(count))
        assert kept[-1] >= count - count / len(kept)
