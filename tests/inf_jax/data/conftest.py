"""Fixtures: a small text dataset, its tokenizer, and a function that tokenises it."""

from pathlib import Path

import pytest

from inf_jax.config.defaults import defaults, run_config
from inf_jax.data.from_config import tokenised_split
from inf_jax.data.tokenise import read_examples, tokenise
from inf_jax.models.hf.backbone import load_model
from inf_jax.text.tokenizer import load_tokenizer
from tests.inf_jax.data.small_split import EXAMPLES, MINILM, TEXT, make_dataset


@pytest.fixture(scope="module")
def tokenizer():
    """That of MiniLM."""
    return load_tokenizer(MINILM)


@pytest.fixture
def source(tmp_path) -> Path:
    """EXAMPLES as the split "train" of two shards, and a split "dev"."""
    splits = {"train": [EXAMPLES[:20], EXAMPLES[20:]], "dev": [EXAMPLES[:3]]}
    return make_dataset(tmp_path / "inf_ir" / "medquad" / "1.0.0", splits)


@pytest.fixture
def run(source, tmp_path, tokenizer):
    """run(**changes) -> directory: tokenises the train split in shards of 8."""

    def call(**changes) -> Path:
        arguments = {
            "split": "train",
            "tokenizer": tokenizer,
            "text": TEXT,
            "out_dir": tmp_path / "tokens",
            "progress": False,
            "examples_per_shard": 8,
        }
        return tokenise(source, **(arguments | changes))

    return call


@pytest.fixture(scope="session")
def dataset(tiny_model_dir, tiny_dataset_dir):
    """The tiny dataset, tokenised."""
    config = defaults()
    config.data.dir = str(tiny_dataset_dir.parents[2])
    config.data.source = "inf_ir"
    config.data.max_query_tokens = 16
    config.data.max_passage_tokens = 32
    config.model.name = str(tiny_model_dir)
    sections = run_config(config)
    return tokenised_split(sections, load_model(sections).tokenizer, "train")


@pytest.fixture(scope="session")
def examples(tiny_dataset_dir):
    """The text examples by id."""
    return {e.id: e for e in read_examples(tiny_dataset_dir, "train")}
