"""The model card of an export: its metadata, and its examples run."""

import re
import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard

from tests.inf_jax.hf_export.tiny_exports import (
    APART,
    CONFIGS,
)


@pytest.mark.parametrize("name", [*CONFIGS, *APART])
def test_the_model_cards_examples_run(exports, name, capsys, monkeypatch):
    pytest.importorskip("sentence_transformers")
    directory, _ = exports(name)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "instructed_encoder", raising=False)
    card = ModelCard.load(directory / "README.md")
    assert card.data.library_name == (
        "sentence-transformers" if name in CONFIGS else "transformers"
    )
    blocks = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("path/to/this/directory", str(directory)), {})
    scores = [float(x) for x in re.findall(r"\[\[(.*?)\]\]", capsys.readouterr().out)]
    assert len(scores) == 2 and all(np.isfinite(scores))
