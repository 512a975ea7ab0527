"""`inf_jax.export`: the newest checkpoint, its card, and flags that do not fit the run."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import inf_jax
from inf_jax import export
from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.resume import ResumeInfo
from inf_jax.core.errors import UserError
from inf_jax.models import hf
from inf_jax.models.hf.config import read_config
from inf_jax.training.step import TrainState
from tests.inf_jax.hf_export.tiny_exports import (
    params_of,
)


@pytest.fixture
def trained(tiny_config, tiny_model_dir):
    """tiny_config, with a checkpoint of step 7 and the other files of a run."""
    out_dir = Path(tiny_config.out_dir)
    params = params_of(tiny_model_dir, "shared")
    params = jax.tree.map(lambda x: jax.numpy.asarray(1.1 * x), params)
    manager = checkpoint.make_manager(out_dir / "checkpoints", keep=1)
    state = TrainState(jax.numpy.int32(7), params, {"count": jax.numpy.int32(7)})
    checkpoint.save(manager, state.saved, ResumeInfo(7, 0, 8, "dataset"), config={})
    manager.close()
    (out_dir / "config.json").write_text(json.dumps(tiny_config.to_dict()))
    (out_dir / "command.txt").write_text("python -m inf_jax.train --config=x.py\n")
    figures = {"base": {"ndcg@10": 61.25, "p_mrr": 3.0}, "trained": {"ndcg@10": 97.0}, "step": 7}
    figures |= {"dataset": {"source": "inf_ir", "split": "dev"}, "passages": 1234}
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


def test_scores_of_another_step_are_not_shown(trained, no_torch):
    config, _ = trained
    (Path(config.out_dir) / "eval.json").write_text('{"base": {"ndcg@10": 61.25}, "step": 6}')
    export.main(config)
    card = (Path(config.out_dir) / "export" / "README.md").read_text()
    assert "Not evaluated at this step, only at step 6" in card and "61.2" not in card


def test_main_refuses_flags_of_another_model(trained, no_torch):
    config, _ = trained
    config.model.pooling = "cls"
    with pytest.raises(UserError, match=r"model\.pooling was 'mean' in training and is 'cls' now"):
        export.main(config)


def test_main_exports_the_query_encoder_of_the_run(trained, no_torch):
    config, _ = trained
    config.model.query_encoder = "attention"
    with pytest.raises(
        UserError, match=r"query_encoder was 'joint' in training and is 'attention'"
    ):
        export.main(config)
    # a run that is older than the key has joint queries
    saved = config.to_dict()
    del saved["model"]["query_encoder"]
    Path(config.out_dir, "config.json").write_text(json.dumps(saved))
    with pytest.raises(
        UserError, match=r"query_encoder was 'joint' in training and is 'attention'"
    ):
        export.main(config)
    Path(config.out_dir, "config.json").write_text(json.dumps(config.to_dict()))
    export.main(config)
    found = inf_jax.load(Path(config.out_dir) / "export")
    assert found.config.query_encoder == "attention"


def test_main_without_checkpoint_names_the_training_command(tiny_config):
    with pytest.raises(UserError, match=r"no checkpoint to export.*python -m inf_jax\.train"):
        export.main(tiny_config)
    assert not Path(tiny_config.out_dir).exists()
