"""launch/bench.py quality on the tiny model: the same rows, schedule and scores."""

import argparse
import json
from pathlib import Path

import pytest

from inf_jax.config.defaults import run_config
from inf_jax.evaluation.scores import METRICS, score_task
from inf_jax.training.retrieval import retrieval_task
from launch.bench import quality, train
from tests.inf_jax.processes import write_config


def test_sentence_transformers_trains_on_the_rows_and_is_scored_as_we_are(tiny_config, tmp_path):
    pytest.importorskip("sentence_transformers")
    tiny_config.train.steps = 2
    tiny_config.train.health = False
    tiny_config.loss.mask = "faithful"  # sentence-transformers has no identity masks
    tiny_config.optim.lr = 1e-6
    tiny_config.optim.warmup_steps = 1
    path = write_config(tiny_config, tmp_path / "config.py")
    args = argparse.Namespace(config=str(path), rows=str(tmp_path / "rows"), threads=2)
    facts = quality.WORKERS["rows"](args, [])(0)
    rows = json.loads(Path(args.rows).read_text())
    assert len(rows["batches"]) == 2 == facts["steps"]
    theirs = quality.WORKERS["st_no_dropout"](args, [])(0)["trained"]
    assert theirs.keys() == {*METRICS, "seconds"}

    model, step = train.sentence_transformers_trainer(rows, threads=2, dropout=False)
    assert step(rows["batches"][0], 0.0)[0] > 0  # the warm-up begins with rate 0
    step(rows["batches"][1], 1e-6)
    task = retrieval_task(run_config(tiny_config))
    vectors = []
    for texts, limit in ((map(" ".join, task.searches.values()), 16), (task.corpus.values(), 32)):
        model.eval().max_seq_length = limit
        vectors.append(model.encode([t.strip() for t in texts], normalize_embeddings=True))
    wanted = score_task(task, *vectors, top_k=1000)
    assert {name: theirs[name] for name in METRICS} == pytest.approx(wanted)
    ours = {name: value + 1 for name, value in theirs.items()}
    results = {"ours": [ours, ours], "st": [theirs, theirs], "st_no_dropout": [theirs, theirs]}
    base = {name: theirs[name] - 2 for name in METRICS}
    text = quality.summary(results, facts | {"base": base})
    assert "sentence-transformers, dropout 0" in text and "2 steps of 8 examples" in text
    assert f"| {ours['p_mrr']:.1f} ± 0.0" in text and f" {base['p_mrr']:.1f} |" in text
    less = next(line for line in text.splitlines() if line.startswith("| inf_jax less"))
    assert less.count("+1.0 ± 0.0") == len(METRICS) + 1
