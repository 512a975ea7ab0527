"""Training as several processes on 127.0.0.1 with gloo, started as users start it."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.config.defaults import run_config
from inf_jax.core.trees import path_name
from inf_jax.data.records import PairExample, pairs
from inf_jax.data.tokenise import read_examples
from inf_jax.evaluation.scores import METRICS
from inf_jax.models import hf
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.training.setup import make_training
from tests.inf_jax.data.small_split import make_dataset
from tests.inf_jax.processes import finish, start, write_config

SAMPLE = Path(__file__).parents[3] / "data_pipeline" / "samples" / "benchmark_medquad"
DEVICES = 4  # of a run, however many processes share them

# The command train, but process 1 finds a damaged record in its share of step 2.
DAMAGED = """
import jax
from inf_jax import train
from inf_jax.config.command_line import run
from inf_jax.distributed.entry_point import run_distributed
from inf_jax.data import loader
from inf_jax.core.errors import UserError
host_batch = loader.Loader.host_batch
def damaged(self, step):
    if step == 2 and jax.process_index() == 1:
        raise UserError("record 7 is damaged")
    return host_batch(self, step)
loader.Loader.host_batch = damaged
run(run_distributed(train.main), train.__doc__)
"""

# The command evaluate, but for eval.benchmark and for eval.split.
EVALUATE_BOTH = """
import os
from inf_jax import evaluate
from inf_jax.config.command_line import run
from inf_jax.distributed.coordination import is_primary
from inf_jax.distributed.entry_point import run_distributed
def both(config):
    evaluate.main(config)
    if is_primary():
        os.rename(f"{config.out_dir}/eval.json", f"{config.out_dir}/benchmark.json")
    config.eval.benchmark = ""
    evaluate.main(config)
run(run_distributed(both), evaluate.__doc__)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """What process 0 compiled once."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def config(tiny_config):
    """A run that compiles fast."""
    tiny_config.train.update({"steps": 9, "checkpoint_every": 3, "health": False})
    # Adam divides a gradient by its size: with 1e-8, the default, the rounding of one near 0, which
    # differs between meshes, becomes a part of a step (3e-6 in one weight of 4,096).
    tiny_config.optim.update({"lr": 1e-3, "schedule": "constant", "eps": 1e-4})
    tiny_config.loss.objective = "uni(P)"
    tiny_config.mesh.fsdp = 2
    return tiny_config


def teach(config, folder):
    """Makes it a run on pairs with hard negatives, which another model than its own scores."""
    teacher, data = folder / "teacher", folder / "data"
    shutil.copytree(config.model.name, teacher)
    rng, weights = np.random.default_rng(3), load_file(teacher / "model.safetensors")
    weights = {k: x + 0.1 * rng.standard_normal(x.shape, np.float32) for k, x in weights.items()}
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    shutil.copytree(config.data.dir, data, ignore=shutil.ignore_patterns("tokenised"))
    rows = list(read_examples(data / "inf_ir" / "inf_ir" / "1.0.0", "train"))
    texts = [row.document_positive for row in rows]
    examples = [
        PairExample(
            row.id, tuple(p._replace(negatives=(texts[n - 2], texts[n - 7])) for p in pairs(row))
        )
        for n, row in enumerate(rows)
    ]
    make_dataset(data / "inf_ir" / "taught" / "1.0.0", {"train": [examples]})
    config.data.update({"dir": str(data), "source": "taught"})
    config.eval.source = "inf_ir"
    config.loss.update({"objective": "uni(P) + 2*distil(P)", "negatives": 2})
    config.loss.teacher = str(teacher)


def launch(file, *overrides, devices=DEVICES, **options):
    """All processes of a run, or those in `only`; their outputs and exit codes."""
    return finish(start(file, *overrides, devices=devices, **options))


def test_one_two_and_four_processes_are_one_run(config, tmp_path, compiled):
    """Four with two devices each, two with two, one with four; and two that one goes on from.

    They score a directory in BEIR's layout while they train, the last one the eval split. A frozen
    teacher is in the step.
    """
    teach(config, tmp_path)
    config.train.eval_every = 3
    config.eval.update({"benchmark": str(SAMPLE), "max_passages": 64})
    names = {"ndcg@10", "recall@1", "mrr@10", "p_mrr", "robustness@10"}
    file = write_config(config, tmp_path / "c.py")
    training = make_training(run_config(config))
    scores = {}

    def train(name, count, steps, *more, starts=1, devices=DEVICES):
        out_dir = tmp_path / name
        overrides = f"--config.out_dir={out_dir}", f"--config.train.steps={steps}", *more
        outs, codes = launch(file, *overrides, count=count, devices=devices, cache=compiled)
        assert codes == [0] * count, "\n".join(outs)
        assert re.search(rf"hosts +. +{count} ", outs[0])
        assert not any(re.search(r"tokens a step|\d/\d|trained", out) for out in outs[1:])
        assert sorted(path.name for path in out_dir.iterdir()) == [
            "checkpoints",
            "command.txt",
            "config.json",
            "metrics.jsonl",
            "tensorboard",
            "timing.jsonl",
        ]
        assert len(list((out_dir / "tensorboard").iterdir())) == starts
        lines = read_metrics(out_dir / "metrics.jsonl")
        assert [line["step"] for line in lines] == list(range(steps))
        scores[name] = {
            x["step"]: {m[4:]: value for m, value in x.items() if m[:4] == "dev/"} for x in lines
        }
        scores[name] = {step: found for step, found in scores[name].items() if found}
        assert list(scores[name]) == list(range(2, steps, 3))
        for step, found in scores[name].items():
            if not more or step < 6:
                assert found.keys() == names
                assert found == pytest.approx(scores["one"][step], abs=1e-5)
        return [line["loss"] for line in lines]

    def state(name, step):
        with checkpoint.make_manager(tmp_path / name / "checkpoints", keep=9) as manager:
            found, position = checkpoint.restore(manager, training.program.shapes.saved, step)
        weights = tmp_path / "exported" / name
        weights.mkdir(parents=True, exist_ok=True)
        hf.save_weights(found["params"]["shared"], weights, training.model.encoder.config)
        exported = load_file(weights / "model.safetensors")
        leaves = jax.tree_util.tree_leaves_with_path(found)
        return [(path_name(path), np.asarray(x)) for path, x in leaves], exported, position

    def assert_same(name, step):
        found, exported, at = state(name, step)
        expected, exported_1, at_1 = state("one", step)
        assert at == at_1 and at.step == step
        assert exported.keys() == exported_1.keys()
        both = [(*a, b) for a, (_, b) in zip(found, expected, strict=True)]
        for key, a, b in [*both, *((key, a, exported_1[key]) for key, a in exported.items())]:
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6, err_msg=key)

    straight = train("one", 1, 9)
    assert straight[-1] < straight[0]
    lines = read_metrics(tmp_path / "one" / "metrics.jsonl")
    assert min(line["loss"] - line["loss/P"] for line in lines) > 0.01  # by the teacher
    for name, count, devices in (("four", 4, 8), ("two", 2, DEVICES)):
        losses = train(name, count, 6, devices=devices)
        np.testing.assert_allclose(losses, straight[:6], rtol=1e-5)
        assert_same(name, 6)
    assert len({found["ndcg@10"] for found in scores["one"].values()}) > 1
    losses = train("two", 1, 9, "--config.eval.benchmark=", starts=2)
    np.testing.assert_allclose(losses, straight, rtol=1e-5)
    assert_same("two", 9)
    # of a checkpoint that one process wrote
    overrides = f"--config.out_dir={tmp_path / 'two'}", "--config.eval.checkpoint=9"
    program = ("-c", EVALUATE_BOTH)
    outs, codes = launch(file, *overrides, count=2, program=program, cache=compiled)
    assert codes == [0, 0], "\n".join(outs)
    assert "within-focus" in outs[0] and "within-focus" not in outs[1]
    for kind, expected in {"benchmark": scores["one"][8], "eval": scores["two"][8]}.items():
        found = json.loads((tmp_path / "two" / f"{kind}.json").read_text())
        assert found["dataset"]["source"] == (SAMPLE.name if kind == "benchmark" else "inf_ir")
        assert found["trained"] == pytest.approx(expected, abs=1e-5)
    assert scores["two"][8].keys() == METRICS.keys()


def test_the_primary_process_tokenises_and_an_error_of_one_process_ends_all(
    config, tmp_path, compiled
):
    data = tmp_path / "data"
    shutil.copytree(config.data.dir, data, ignore=shutil.ignore_patterns("tokenised"))
    config.data.dir = str(data)
    file = write_config(config, tmp_path / "c.py")
    outs, codes = launch(file, count=2, program=("-c", DAMAGED), cache=compiled)
    assert "tokenised already" not in outs[0] and "60/60" in outs[0]
    assert "60 examples are tokenised already" in outs[1] and "60/60" not in outs[1]
    assert "error: record 7 is damaged" in outs[1]
    assert codes[1] == 1 and codes[0] != 0


def test_a_process_that_does_not_start_is_listed(tiny_config, tmp_path):
    file = write_config(tiny_config, tmp_path / "c.py")
    (out,), codes = launch(file, count=2, only=[0], timeout_s=2)
    assert codes == [1]
    assert re.fullmatch(
        r"error: 1 of 2 processes did not reach 127\.0\.0\.1:\d+ within 2 s: "
        r"process 1 missing; .*\n",
        out,
    )
    assert not Path(tiny_config.out_dir).exists()
