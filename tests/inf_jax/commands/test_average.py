"""`inf_jax.average`: what is written is the average, and evaluate and train take it as it is."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from inf_jax import average, evaluate, train
from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.integrity import fingerprint
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UsageError, UserError
from inf_jax.distributed.mesh import local_mesh
from inf_jax.models.hf.backbone import load_model
from inf_jax.training.initial_params import trained_params
from inf_jax.training.parameters import make_partition
from tests.inf_jax.commands.saved_runs import backbone_of, changed, save


def params_in(config, out_dir):
    """The parameters that evaluate and export read from the newest checkpoint of an out_dir."""
    typed, directory = run_config(config), Path(out_dir, "checkpoints")
    saved, model = checkpoint.read_saved(directory), load_model(typed)
    return trained_params(directory, saved, typed, model, local_mesh()).params


def test_mean_and_slerp(tiny_config, tmp_path, capsys):
    base = backbone_of(tiny_config)
    first, second = changed(base, 0), changed(base, 1)
    save(tiny_config, {"shared": first}, 1)
    save(tiny_config, {"shared": second}, 3)
    average.main(tiny_config, of=["1:3,newest:1"])
    out = f"{tiny_config.out_dir}/average"
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, first, second)
    same = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # noqa: E731
    jax.tree.map(same, params_in(tiny_config, out)["shared"], expected)
    assert f"evaluate and export take --config.out_dir={out}\n" in capsys.readouterr().out
    assert checkpoint.read_saved(f"{out}/checkpoints").step == 3
    with pytest.raises(UserError, match=r"average: holds checkpoints already"):
        average.main(tiny_config, of=["base,newest"])

    out = str(tmp_path / "slerp")  # of the base and of another run, which is an average itself
    other = f"{tiny_config.out_dir}/average"
    average.main(tiny_config, of=[f"base,{other}"], method="slerp", out=out)
    a, b = base["word"], expected["word"]
    angle = np.arccos(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))
    assert angle > 0.1
    word = (a + b) * np.sin(angle / 2) / np.sin(angle)
    same(params_in(tiny_config, out)["shared"]["word"], word)

    tiny_config.out_dir = out
    with pytest.raises(UserError, match=r"holds an average.*model\.start_from="):
        train.main(tiny_config)


def test_scores_are_those_of_evaluate(tiny_config, tmp_path, capsys):
    """Of a run with a moving average of its parameters, which is what is scored."""
    base = backbone_of(tiny_config)
    save(tiny_config, {"shared": base}, 2, ema={"shared": changed(base, 0)})
    of = ["base", "base:1,2:3", "newest"]
    out = str(tmp_path / "best")
    average.main(tiny_config, of=of, score=True, best="mrr@10", out=out)
    assert "inf_ir dev, mean" in capsys.readouterr().out
    found = json.loads(Path(tiny_config.out_dir, "average.json").read_text())
    assert [each["of"] for each in found["mixtures"]] == of
    scores = [each["scores"] for each in found["mixtures"]]
    best = max(range(3), key=lambda n: scores[n]["mrr@10"])
    assert found["written"] == {"of": of[best], "to": out}
    tiny_config.out_dir = str(tmp_path / "mixed")
    mixed = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, base, changed(base, 0))
    save(tiny_config, {"shared": mixed}, 2)
    evaluate.main(tiny_config)
    told = json.loads(Path(tiny_config.out_dir, "eval.json").read_text())
    assert told["base"] == pytest.approx(scores[0])
    assert told["trained"] == pytest.approx(scores[1])


def test_frozen_parameters_and_adapters(tiny_config, tmp_path):
    """Frozen parameters are not written; adapters are merged before the average."""
    tiny_config.model.freeze = "word$"
    base = backbone_of(tiny_config)
    trained = {name: x for name, x in changed(base, 0).items() if name != "word"}
    typed = run_config(tiny_config)
    model = load_model(typed)
    partition = make_partition(typed, model.encoder)
    frozen = jax.jit(partition.fixed)({"shared": base})
    save(tiny_config, {"shared": trained}, 1, frozen=fingerprint(frozen))
    average.main(tiny_config, of=["base,newest"])
    found = params_in(tiny_config, f"{tiny_config.out_dir}/average")["shared"]
    np.testing.assert_array_equal(found["word"], base["word"])
    up = (base["blocks"]["up_kernel"] + trained["blocks"]["up_kernel"]) / 2
    np.testing.assert_allclose(found["blocks"]["up_kernel"], up, atol=1e-6)

    tiny_config.model.freeze, tiny_config.model.lora_rank = "", 2
    tiny_config.out_dir = str(tmp_path / "lora")
    typed = run_config(tiny_config)
    partition = make_partition(typed, load_model(typed).encoder)
    adapters = changed(jax.jit(partition.trained)({"shared": base}), 0)
    frozen = jax.jit(partition.fixed)({"shared": base})
    merged = jax.jit(partition.plain)(adapters, frozen)["shared"]
    save(tiny_config, adapters, 1, frozen=fingerprint(frozen))
    average.main(tiny_config, of=["base,newest"])
    tiny_config.model.lora_rank = 0
    found = params_in(tiny_config, f"{tiny_config.out_dir}/average")["shared"]
    half = jax.tree.map(lambda a, b: (a + b) / 2, base, merged)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, half)


@pytest.mark.parametrize(
    "mixture, method, message",
    [
        ("base:0,newest", "mean", "weight 0 is not above 0"),
        ("base:-1,newest", "mean", "weight -1 is not above 0"),
        ("base,,newest", "mean", "a part has no name"),
        ("base,base", "mean", "named twice"),
        ("base,1,2", "slerp", "of two parts"),
        ("newest", "slerp", "no mixture has two"),
    ],
)
def test_mixtures_that_are_none(tiny_config, mixture, method, message):
    with pytest.raises(UsageError, match=message):
        average.main(tiny_config, of=[mixture], method=method)


def test_parts_that_are_missing(tiny_config):
    with pytest.raises(UserError, match="no checkpoint to average"):
        average.main(tiny_config, of=["base,newest"])
    save(tiny_config, {"shared": backbone_of(tiny_config)}, 1)
    with pytest.raises(UserError, match=r"no checkpoint '7'; there are 1"):
        average.main(tiny_config, of=["base,7"])
    with pytest.raises(UserError, match=r"^--of=gs_none: no checkpoint there"):
        average.main(tiny_config, of=["gs_none,newest"])
    with pytest.raises(UsageError, match="--out: of several mixtures one is written with --score"):
        average.main(tiny_config, of=["base", "newest"], out="x")
    with pytest.raises(UsageError, match="--of: several mixtures are for --score"):
        average.main(tiny_config, of=["base", "newest"])
    with pytest.raises(UsageError, match="--best: needs --score"):
        average.main(tiny_config, of=["base", "newest"], best="p_mrr")
    with pytest.raises(UsageError, match="--best: there is one mixture, which is written"):
        average.main(tiny_config, of=["base,newest"], score=True, best="p_mrr")
    assert not Path(tiny_config.out_dir, "average").exists()
