"""launch/bench.py train on the tiny model: the contenders do the same steps on the same rows."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from inf_jax.config.defaults import run_config
from inf_jax.training.setup import make_training
from launch.bench import train
from launch.bench.rows import rows_worker
from tests.inf_jax.processes import write_config

LAUNCH = Path(__file__).resolve().parents[2] / "launch"


@pytest.fixture
def config_file(tiny_config, tmp_path) -> Path:
    """The tiny run as a config file; 12 examples, so that the 8 chunks have empty slots."""
    tiny_config.train.batch_size = 36
    tiny_config.loss.mask = "faithful"  # sentence-transformers has no identity masks
    return write_config(tiny_config, tmp_path / "config.py")


def test_contenders_do_the_same_steps(config_file, tmp_path):
    pytest.importorskip("sentence_transformers")
    args = argparse.Namespace(config=str(config_file), rows=str(tmp_path / "rows"), threads=2)
    facts = rows_worker(args, [])(3)
    ours, theirs = (train.WORKERS[name](args, []) for name in ("ours", "st_no_dropout"))
    results = [{"ours": ours(s), "st_no_dropout": theirs(s)} for s in ((0, 1), (1, 3))]
    for turn in results:
        a, b = turn["ours"], turn["st_no_dropout"]
        assert (a["pairs"], a["tokens"]) == (b["pairs"], b["tokens"])
        assert 0 < a["tokens"] <= a["slots"] and 0 < b["tokens"] <= b["slots"]
        # multi is the sum of the two directions, theirs is the mean
        assert np.isclose(a["loss"] / 2, b["loss"], rtol=1e-4), (a, b)
    assert results[0]["ours"]["pairs"] == 36
    text = train.summary(
        [turn | {"st": turn["st_no_dropout"]} for turn in results], facts | {"steps": 1}
    )
    assert "sentence-transformers, dropout 0" in text and "faster by" in text


def test_rows_have_the_wording_of_each_step(tiny_config, tiny_model_dir, tmp_path):
    pytest.importorskip("sentence_transformers")
    data = tiny_config.data
    data.drop_instructions, data.more_templates = 0.5, ("{instruction} : {query}",)
    data.query_alone = True
    path = write_config(tiny_config, tmp_path / "config.py")
    rows_worker(argparse.Namespace(config=str(path), rows=str(tmp_path / "rows")), [])(2)
    loader = make_training(run_config(tiny_config)).loader
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    limits = data.max_query_tokens, data.max_passage_tokens
    for step, batch in enumerate(json.loads((tmp_path / "rows").read_text())["batches"]):
        lengths = loader.assignment(step).lengths
        found = [
            [
                min(len(tokenizer(text).input_ids), most)
                for text, most in zip(pair, limits, strict=True)
            ]
            for pair in batch
        ]
        assert found == lengths[lengths[:, 0] > 0][:, :2].tolist()
        assert len({" : " in query for query, _ in batch}) == 2


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("loss.negatives=1", "loss.negatives: the contenders train on the pairs of one source"),
        ("data.mixture=inf_ir:1,nevir:1", "data.mixture: the contenders train on the pairs"),
        ("optim.name=muon", "optim.name=muon .* the contenders train with adamw or lion at one"),
        ("optim.layer_decay=0.5", "layer_decay=0.5: the contenders train with adamw or lion"),
    ],
)
def test_what_only_we_train_with_is_refused(tiny_config, tmp_path, capsys, key, message):
    path = write_config(tiny_config, tmp_path / "config.py")
    args = argparse.Namespace(config=str(path), rows=str(tmp_path / "rows"))
    with pytest.raises(SystemExit):
        rows_worker(args, [f"--config.{key}"])(1)
    assert re.search(message, capsys.readouterr().err)


def test_command_reports_and_says_what_is_wrong(config_file):
    command = [sys.executable, LAUNCH / "bench.py", "train", f"--config={config_file}"]

    def run(*more: str) -> subprocess.CompletedProcess:
        return subprocess.run([*command, *more], capture_output=True, text=True, check=False)

    done = run("--rounds=1", "--steps=1", "--config.data.source=nowhere")
    assert done.returncode == 1
    assert "data_pipeline.build" in done.stderr
