"""`inf_jax.export`: the newest checkpoint, its card, and flags that do not fit the run."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import inf_jax
from inf_jax import export
from inf_jax.checkpoints import manager as checkpoint
from inf_jax.core.errors import UserError
from inf_jax.models import hf
from inf_jax.models.hf.config import read_config
from tests.inf_jax.commands.saved_runs import save
from tests.inf_jax.hf_export.tiny_exports import (
    params_of,
)


@pytest.fixture
def trained(tiny_config, tiny_model_dir):
    """tiny_config, with a checkpoint of step 7 and the other files of a run."""
    out_dir = Path(tiny_config.out_dir)
    params = params_of(tiny_model_dir, "shared")
    params = jax.tree.map(lambda x: jax.numpy.asarray(1.1 * x), params)
    save(tiny_config, params, 7)
    (out_dir / "command.txt").write_text("python -m inf_jax.train --config=x.py\n")
    figures = {"base": {"ndcg@10": 61.25, "p_mrr": 3.0}, "trained": {"ndcg@10": 97.0}, "step": 7}
    figures |= {"dataset": {"source": "inf_ir", "split": "dev"}, "passages": 1234}
    figures["fingerprint"] = checkpoint.read_saved(out_dir / "checkpoints").fingerprint
    (out_dir / "eval.json").write_text(json.dumps(figures))
    return tiny_config, params


def test_main_exports_the_newest_checkpoint(trained, no_torch, capsys):
    config, params = trained
    export.main(config)
    directory = Path(config.out_dir) / "export"
    found = hf.load_weights(directory, read_config(directory)).params
    jax.tree.map(np.testing.assert_array_equal, found, params["shared"])
    out = capsys.readouterr().out
    assert "exported step 7" in out and "NOT verified with transformers" in out
    card = (directory / "README.md").read_text()
    for part in (
        "| nDCG@10 | 61.2 | 97.0 |",
        "| p-MRR | 3.0 |  |",
        "The dev split of inf_ir, 1,234 passages; times 100.",
        "```bash\npython -m inf_jax.train --config=x.py\n```",
        "7 steps.",
    ):
        assert part in card
    assert str(Path(config.model.name).parent) not in card.partition("## Training")[0]


def test_main_exports_the_query_encoder_of_the_run(trained, no_torch):
    config, params = trained
    config.model.query_encoder = "attention"
    with pytest.raises(UserError, match=r"query_encoder was 'joint', is now 'attention'"):
        export.main(config)
    shutil.rmtree(Path(config.out_dir, "checkpoints"))
    save(config, params, 7)
    export.main(config)
    found = inf_jax.load(Path(config.out_dir) / "export")
    assert found.config.query_encoder == "attention"


def test_a_run_that_is_older_than_a_key_had_its_default(trained, no_torch):
    config, params = trained
    values = config.to_dict()
    del values["model"]["query_encoder"]
    shutil.rmtree(Path(config.out_dir, "checkpoints"))
    save(SimpleNamespace(out_dir=config.out_dir, to_dict=lambda: values), params, 7)
    config.model.query_encoder = "attention"
    with pytest.raises(UserError, match=r"query_encoder was 'joint', is now 'attention'"):
        export.main(config)
    config.model.query_encoder = "joint"
    export.main(config)


def test_main_without_checkpoint_names_the_training_command(tiny_config):
    with pytest.raises(UserError, match=r"no checkpoint to export.*python -m inf_jax\.train"):
        export.main(tiny_config)
    assert not Path(tiny_config.out_dir).exists()
