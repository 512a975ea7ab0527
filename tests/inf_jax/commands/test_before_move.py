"""A checkpoint, a dataset and an export written before modules moved into packages still work."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import inf_jax
from inf_jax import evaluate, train
from inf_jax.config import defaults

FIXTURE = Path(__file__).with_name("before_move")
EXPECTED = json.loads((FIXTURE / "expected.json").read_text())


@pytest.fixture
def old_run(tmp_path, monkeypatch):
    """The config of the old run, whose files are copied to the working directory."""
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    config = defaults()
    saved = json.loads(Path("run/config.json").read_text())
    config.update_from_flattened_dict(
        {
            f"{section}.{key}": tuple(value) if isinstance(value, list) else value
            for section, values in saved.items()
            if isinstance(values, dict)
            for key, value in values.items()
        }
    )
    config.out_dir, config.seed = saved["out_dir"], saved["seed"]
    return config


def test_a_checkpoint_resumes_and_a_dataset_is_reused(old_run):
    tokenised = sorted(Path("data/tokenised").rglob("*"))
    before = [path.stat().st_mtime_ns for path in tokenised]
    old_run.train.steps, examples = 4, old_run.train.batch_size
    train.main(old_run, resume=True)
    written = json.loads(Path("run/config.json").read_text())
    assert written["train"]["batch_size"] == 3 * examples  # pairs
    kept = json.loads(Path("run/checkpoints/4/config/metadata").read_text())
    assert kept["train"]["batch_size"] == examples  # so that the same command goes on from there
    lines = map(json.loads, Path("run/metrics.jsonl").read_text().splitlines())
    losses = {str(line["step"]): line["loss"] for line in lines}
    assert losses == pytest.approx(EXPECTED["losses"], rel=1e-6)
    assert sorted(Path("data/tokenised").rglob("*")) == tokenised, "tokenised again"
    assert [path.stat().st_mtime_ns for path in tokenised] == before

    evaluate.main(old_run)
    scores = json.loads(Path("run/eval.json").read_text())
    for name in ("base", "trained"):
        assert scores[name] == pytest.approx(EXPECTED[name], abs=1e-3), name


def test_an_export_opens():
    model = inf_jax.load(FIXTURE / "export")
    queries = model.encode(["amber", "birch"], instruction="Tell what harms it.")
    passages = model.encode(["an old monk wrote of amber and gave the plant its name"])
    np.testing.assert_allclose(queries, EXPECTED["queries"], atol=1e-6)
    np.testing.assert_allclose(passages, EXPECTED["passages"], atol=1e-6)
