"""How full the rows of the shipped demo are, on its own data: one chunk of 48 pairs of MedQuAD."""

import pytest

from data_pipeline.build import main as build
from inf_jax.config.command_line import parse
from inf_jax.config.defaults import run_config
from inf_jax.data.from_config import make_loader
from inf_jax.text.tokenizer import load_tokenizer
from tests.inf_jax.data.small_split import MINILM


@pytest.mark.parametrize("changes", [[], ["--config.train.batch_size=96"]])
def test_rows_of_the_demo_are_filled(medquad, changes):
    flags = [f"--config.data.dir={medquad}", *changes]
    config = run_config(parse(["train", "--config=configs/medquad_minilm.py", *flags]))
    assert make_loader(config, load_tokenizer(MINILM), devices=1).plan.fill > 0.97


@pytest.fixture(scope="module")
def medquad(tmp_path_factory):
    """The demo's dataset, built as by its command."""
    directory = tmp_path_factory.mktemp("data")
    build(["--source=medquad", "--keyword-instructions", f"--data-dir={directory}"])
    return directory
