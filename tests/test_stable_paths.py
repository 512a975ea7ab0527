"""Import paths and commands that users rely on do not move."""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = """inf_jax.load inf_jax.Retriever inf_jax.retriever.Retriever
    inf_jax.losses.contrastive_loss
    inf_jax.metrics.ndcg inf_jax.metrics.mrr inf_jax.metrics.recall
    inf_jax.metrics.average_precision inf_jax.metrics.p_mrr inf_jax.metrics.robustness
    inf_jax.metrics.sicr inf_jax.metrics.wise inf_jax.metrics.worst_of_groups
    inf_jax.config.defaults data_pipeline.config.defaults
    inf_jax.models.hf.load_weights inf_jax.models.hf.save_weights""".split()
COMMANDS = """inf_jax.train inf_jax.evaluate inf_jax.export inf_jax.tokenise inf_jax.plan
    inf_jax.average inf_jax.mine
    inf_jax.encode inf_jax.search inf_jax.models.hf.__main__ inf_jax.__main__ data_pipeline.__main__
    data_pipeline.run data_pipeline.build data_pipeline.beam_build
    data_pipeline.beam_tokenise""".split()
FILES = "data_pipeline/prompts data_pipeline/samples/pubmedqa tests/doubles/llm_server.py".split()


@pytest.mark.parametrize("name", NAMES)
def test_public_names(name):
    module, _, attribute = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name):
    source = Path(importlib.util.find_spec(name).origin).read_text()
    assert '__name__ == "__main__"' in source or name.endswith("hf.__main__")


def test_files():
    for name in FILES:
        assert (ROOT / name).exists(), name


def test_imports_that_stay_cheap():
    """`import inf_jax`, a config file and a factory's config need neither jax nor torch."""
    code = (
        "import sys, inf_jax, inf_jax.config, data_pipeline.config; inf_jax.config.defaults(); "
        "print([n for n in ('jax', 'jaxlib', 'flax', 'torch') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stdout + done.stderr
