"""Evaluating and exporting a finished run: its own settings, its own start, its own scores."""

import json
import shutil
from pathlib import Path

import pytest

from inf_jax import evaluate, export, train
from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.integrity import fingerprint
from inf_jax.core.errors import UserError
from inf_jax.models import hf
from inf_jax.models.hf.config import read_config
from tests.inf_jax.commands.saved_runs import backbone_of, changed, save

NOT_THE_RUNS = {
    "model.pooling": "cls",
    "model.normalise": False,
    "model.towers": "separate",
    "model.query_encoder": "attention",
    "model.append_eos": "always",
    "model.projection": 8,
    "model.mask": "causal",
    "model.dtype": "bfloat16",
    "model.lora_rank": 2,
    "model.name": "another",
    "model.start_from": "another",
    "data.query_template": "{instruction} {query}",
    "data.passage_template": "passage: {passage}",
    "data.max_query_tokens": 8,
    "data.max_passage_tokens": 8,
    "data.train_split": "dev",
    "loss.dims": (8, 16),
    "loss.objective": "uni(P)",
    "optim.lr": 1.0,
    "train.batch_size": 12,
    "seed": 7,
}


def read(config, name):
    return json.loads(Path(config.out_dir, name).read_text())


@pytest.mark.parametrize("main", [evaluate.main, export.main], ids=["evaluate", "export"])
def test_flags_that_are_not_the_runs_are_refused_by_name(tiny_config, main):
    save(tiny_config, {"shared": backbone_of(tiny_config)}, 1)
    before = sorted(Path(tiny_config.out_dir).iterdir())
    for key, value in NOT_THE_RUNS.items():
        other = tiny_config.copy_and_resolve_references()
        other.update_from_flattened_dict({key: value})
        with pytest.raises(UserError, match=rf"checkpoints/1: .*{key} was .*, is now "):
            main(other)
    tiny_config.data.source = "medquad"
    with pytest.raises(UserError, match=r"data\.source was|no dataset here"):
        main(tiny_config)
    assert sorted(Path(tiny_config.out_dir).iterdir()) == before


def test_what_does_not_change_the_model_may_differ(tiny_config, tmp_path):
    save(tiny_config, {"shared": changed(backbone_of(tiny_config), 0)}, 1)
    evaluate.main(tiny_config)
    first = read(tiny_config, "eval.json")
    moved = shutil.copytree(Path(tiny_config.data.dir) / "inf_ir", tmp_path / "data/inf_ir")
    tiny_config.data.dir, tiny_config.data.prefetch = str(moved.parent), 1
    shutil.copytree(tiny_config.out_dir, tmp_path / "elsewhere")
    tiny_config.out_dir = str(tmp_path / "elsewhere")
    tiny_config.mesh.fsdp, tiny_config.eval.batch_rows, tiny_config.train.steps = 2, 3, 99
    tiny_config.model.scan_layers = False
    evaluate.main(tiny_config)
    again = read(tiny_config, "eval.json")
    for key in ("base", "trained"):
        assert again[key] == pytest.approx(first[key], abs=1e-3)
    assert again["fingerprint"] == first["fingerprint"]


def test_a_run_keeps_the_start_that_it_began_with(tiny_config, tmp_path):
    """The run that it started from goes on; then that checkpoint is another one, then gone."""
    source = tiny_config.copy_and_resolve_references()
    source.out_dir = str(tmp_path / "source")
    weights, folder = backbone_of(tiny_config), Path(source.out_dir, "checkpoints")
    save(source, {"shared": changed(weights, 0)}, 3)

    tiny_config.model.start_from, tiny_config.model.lora_rank = source.out_dir, 2
    tiny_config.train.health, tiny_config.train.steps = False, 2
    train.main(tiny_config)
    evaluate.main(tiny_config)
    first = read(tiny_config, "eval.json")
    record = checkpoint.read_saved(Path(tiny_config.out_dir, "checkpoints")).info
    assert record.start_step == 3
    assert record.start == first["start"] == checkpoint.read_saved(folder).fingerprint

    save(source, {"shared": changed(weights, 1)}, 5)
    evaluate.main(tiny_config)
    assert read(tiny_config, "eval.json") == first
    tiny_config.train.steps = 4  # its frozen parameters are still those of step 3
    train.main(tiny_config, resume=True)
    assert checkpoint.read_saved(Path(tiny_config.out_dir, "checkpoints")).info[-2:] == record[-2:]

    tiny_config.train.steps = 6
    shutil.rmtree(folder / "3")
    for main in (train.main, evaluate.main, export.main):
        with pytest.raises(UserError, match=r"start_from=.* began with checkpoint 3 .* is gone"):
            main(tiny_config)
    shutil.rmtree(folder)
    save(source, {"shared": changed(weights, 1)}, 3)  # other weights
    for main in (train.main, evaluate.main, export.main):
        with pytest.raises(UserError, match=r"start_from=.*source, checkpoint 3: .* no longer"):
            main(tiny_config)


def test_without_its_start_a_run_is_scored_against_saved_scores(tiny_config, tmp_path):
    weights = backbone_of(tiny_config)
    save(tiny_config, {"shared": weights}, 1)
    evaluate.main(tiny_config)
    found = read(tiny_config, "eval.json")
    found["config"]["model"]["start_from"] = tiny_config.model.start_from = str(tmp_path / "gone")
    found["start"], path = "a" * 16, tmp_path / "scores.json"
    save(tiny_config, {"shared": changed(weights, 0)}, 2, start=found["start"], start_step=3)
    with pytest.raises(UserError, match=r"began with checkpoint 3 .* eval\.base_from"):
        evaluate.main(tiny_config)
    tiny_config.eval.base_from = str(path)
    path.write_text(json.dumps(found))
    evaluate.main(tiny_config)
    assert read(tiny_config, "eval.json")["base"] == found["base"]
    for change, said in (
        ({"start": "b" * 16}, r"\(the weights that the run began with differ\)"),
        ({"base": 3}, r"not a readable eval\.json"),
        ({"base": {"ndcg@10": 1.0}}, r"not a readable eval\.json"),
        ({"base": found["base"] | {"ndcg@10": None}}, r"not a readable eval\.json"),
        ({"config": {"model": 1, "data": [], "eval": {}}}, r"not a readable eval\.json"),
    ):
        path.write_text(json.dumps(found | change))
        with pytest.raises(UserError, match=rf"eval\.base_from=.*scores\.json: .*{said}"):
            evaluate.main(tiny_config)


def test_runs_without_the_record_go_on_with_a_note(tiny_config, tmp_path, capsys):
    source = tiny_config.copy_and_resolve_references()
    source.out_dir = str(tmp_path / "source")
    weights = backbone_of(tiny_config)
    save(source, {"shared": changed(weights, 0)}, 3)
    tiny_config.model.start_from = source.out_dir
    save(tiny_config, {"shared": changed(weights, 1)}, 1)
    evaluate.main(tiny_config)
    assert "note: model.start_from=" in (out := capsys.readouterr().out)
    assert "did not record which checkpoint it began with; taking that of step 3" in out


def test_a_backbone_that_was_replaced_is_no_base(tiny_config, tiny_model_dir, tmp_path):
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    tiny_config.model.name = str(model)
    weights = backbone_of(tiny_config)
    save(tiny_config, {"shared": changed(weights, 0)}, 2, start=fingerprint(weights))
    evaluate.main(tiny_config)
    hf.save_weights(changed(weights, 1), model, read_config(model))
    with pytest.raises(UserError, match=r"model\.name=.*no longer those that the run began with"):
        evaluate.main(tiny_config)


@pytest.fixture
def evaluated(tiny_config):
    """A run with the scores of its checkpoint of step 7."""
    tiny_config.loss.dims = (32, 8)
    save(tiny_config, {"shared": changed(backbone_of(tiny_config), 0)}, 7)
    evaluate.main(tiny_config)
    return tiny_config


def card_of(config):
    export.main(config)
    return Path(config.out_dir, "export", "README.md").read_text()


def test_the_card_has_the_scores_of_its_own_checkpoint_alone(evaluated, no_torch, capsys):
    card, shown = card_of(evaluated), f"{read(evaluated, 'eval.json')['trained']['ndcg@10']:.1f}"
    assert f" {shown} |" in card and "The dev split of inf_ir" in card
    assert "Training cut queries after 16 tokens and passages after 32." in card

    evaluated.eval.max_passage_tokens = 48  # of the export alone
    card = card_of(evaluated)
    assert "eval.json is of passages of up to 32 tokens, the export's limit is 48" in card
    assert f" {shown} |" not in card and "passages after 32" in card
    evaluated.eval.max_passage_tokens = 32

    # another run in the same directory, to the same step
    shutil.rmtree(Path(evaluated.out_dir, "checkpoints"))
    save(evaluated, {"shared": changed(backbone_of(evaluated), 1)}, 7)
    capsys.readouterr()
    card = card_of(evaluated)
    assert "eval.json is not of this checkpoint of step 7" in card and f" {shown} |" not in card
    assert "no scores: eval.json is not of this checkpoint" in capsys.readouterr().out


def test_the_card_has_no_scores_of_data_that_changed(evaluated, no_torch):
    path = Path(evaluated.out_dir, "eval.json")
    found = json.loads(path.read_text())
    for change, said in (
        ({"dataset": found["dataset"] | {"fingerprint": "0" * 64}}, "is of other data than"),
        ({"step": 6}, "eval.json is of step 6, not 7"),
        ({"fingerprint": None}, "not of this checkpoint of step 7, or of an older version"),
        ({"dataset": 3, "passages": "x", "base": [], "trained": {"ndcg@10": "x"}}, "inf_ir"),
    ):
        path.write_text(json.dumps(found | change))
        assert said in card_of(evaluated)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"eval\.json: .*; evaluate again, or delete it"):
        export.main(evaluated)


def test_the_card_is_of_the_checkpoint_and_not_of_later_files(evaluated, no_torch):
    Path(evaluated.out_dir, "config.json").write_text('{"loss": {"dims": [4]}, "seed": 9}')
    card = card_of(evaluated)
    assert "after their first 8, 32 entries" in card
    assert '"seed": 0' in card and '"seed": 9' not in card
    run = read(evaluated, "export/inf_jax.json")["run"]
    assert run["config"]["loss"]["dims"] == [32, 8]
    assert run["step"] == 7
