"""The model card of an export: its metadata, and its examples run."""

import re
import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard

from inf_jax.hf_export.model_card import RunInfo, model_card
from inf_jax.hf_export.parity import Parity
from inf_jax.retriever import RetrieverConfig
from tests.inf_jax.hf_export.tiny_exports import (
    ATTENTION,
    CONFIGS,
)


@pytest.mark.parametrize("name", [*CONFIGS, *ATTENTION])
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


def test_the_training_section_states_what_was_trained():
    config = {
        "model": {"lora_rank": 4, "lora_alpha": 8.0, "lora_targets": "up", "freeze_layers": 2},
        "out_dir": "out/a_run",
    }
    run = RunInfo(config=config, command="python -m inf_jax.train", step=7)
    parity = Parity({}, ("transformers",), 0.9999)
    card = model_card(RetrieverConfig(dims=(8, 4)), run, parity, adapter_base="org/model")
    assert "\n\n\n" not in card and not re.search(r"[ \t]$", card, re.MULTILINE)
    for part in (
        "# a_run\n",
        "Not evaluated before this export",
        "after their first 4, 8 entries",
        'AutoModel.from_pretrained("org/model", config=config)',
        "## Training\n\n7 steps.\n\nAdapters of rank 4 and alpha 8 ",
        "match `up`; everything else is as in the base model.\n\n",
        "\n\nNot trained: the first 2 layers.\n\n",
        "```bash\npython -m inf_jax.train\n```\n\n<details>",
        "**Not verified with all of them.**",
    ):
        assert part in card
