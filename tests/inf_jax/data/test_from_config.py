"""Settings from a run's config, and the advice where the dataset is missing."""

import dataclasses
import functools
import re

import pytest

from inf_jax import train
from inf_jax.config.checks import check_config
from inf_jax.config.defaults import defaults, run_config
from inf_jax.config.sections import DataConfig, RunConfig, TrainConfig
from inf_jax.core.errors import UserError
from inf_jax.data import step_shapes
from inf_jax.data.from_config import _as_ordered, batch_layout, dataset_dir
from inf_jax.data.tokenised.plans import TokenisingPlan
from inf_jax.io.storage import as_path
from inf_jax.models.hf.backbone import run_tokenizer


@pytest.mark.parametrize(
    ("directory", "flag"),
    [
        ("out/data", "--data-dir=out/data`"),
        ("my data", "'--data-dir=my data'`"),
        ("", "--data-dir=.`"),
        ("$HOME/d", "'--data-dir=$HOME/d'`"),
    ],
)
def test_the_advice_to_build_can_be_pasted(directory, flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(RunConfig(), data=DataConfig(dir=directory))
    with pytest.raises(UserError) as error:
        dataset_dir(config)
    command = "`python -m data_pipeline.build --source=medquad "
    assert str(error.value).endswith(command + flag)
    config = dataclasses.replace(config, data=DataConfig(dir="d", source="synthetic"))
    with pytest.raises(UserError, match=r"--source=synthetic --data-dir=d --count=768`"):
        dataset_dir(config)


def test_the_datasets_that_there_are(tmp_path):
    for name in ("nq/1.0.0", "own/2.0.0"):
        info = tmp_path / "inf_ir" / name / "dataset_info.json"
        info.parent.mkdir(parents=True)
        info.touch()
    config = dataclasses.replace(RunConfig(), data=DataConfig(dir=str(tmp_path), source="ng"))
    with pytest.raises(
        UserError, match=r"no dataset here; data.dir has nq@1.0.0, own@2.0.0; build"
    ):
        dataset_dir(config)
    config = dataclasses.replace(config, data=DataConfig(dir=str(tmp_path), source="own"))
    with pytest.raises(UserError, match=r"no dataset here; .*; set data\.version .* to 2\.0\.0$"):
        dataset_dir(config)


def test_a_batch_counts_pairs_and_holds_whole_examples():
    def layout(size, k):
        config = dataclasses.replace(RunConfig(), train=TrainConfig(batch_size=size))
        return batch_layout(config, devices=2, pairs_per_example=k)

    for size, k, examples in ((48, 3, 16), (48, 1, 48), (16, 4, 4)):
        found = layout(size, k)
        assert (found.batch_size, found.pairs) == (examples, size)
    remedy = r"batch_size=16 counts pairs, .*medquad has 3: give 15 or 18 \(or 48, if examples"
    with pytest.raises(UserError, match=remedy):
        layout(16, 3)
    with pytest.raises(UserError, match="has 5: give 5"):
        layout(2, 5)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            {"objective": "uni(P) + distil(P)"},
            r"distil\(P\): a teacher's scores.*set loss\.neg",
        ),
        ({"objective": "margin(P)"}, r"margin\(P\): a teacher's scores are"),
        ({"objective": "uni(IQ)", "negatives": 2}, r"loss\.negatives=2: .* has no block P"),
        ({"negatives": -1}, r"loss\.negatives=-1: must not be negative"),
    ],
)
def test_objectives_and_the_negatives_that_they_need(loss, message):
    config = defaults()
    config.loss.update(loss)
    with pytest.raises(UserError, match=message):
        check_config(config)
    config.loss.update({"objective": "multi(P,IQ) + 0.5*margin(P)", "negatives": 2})
    check_config(config)


def test_large_data_are_read_in_windows_unless_the_run_began_otherwise(tmp_path):
    def shuffled(directory, count, batch=192, expected=None):
        recipe = {"split": "train", "examples_per_shard": 1 << 30}
        plan = TokenisingPlan(
            [(as_path(directory) / "f", count)], as_path(directory), [], recipe, ""
        )
        config = dataclasses.replace(RunConfig(), train=TrainConfig(batch_size=batch))
        return _as_ordered(config, plan, expected and expected(plan))

    disk, bucket = str(tmp_path / "d"), "gs://bucket/d"
    for directory, least in ((disk, 1 << 23), (bucket, 1 << 17)):
        assert shuffled(directory, least).shuffled
        assert not shuffled(directory, least - 1).shuffled
        assert not shuffled(directory, least, batch=least // 4 + 1).shuffled
    assert not shuffled(
        disk, 1 << 23, expected=lambda plan: plan.as_shuffled(False).fingerprint
    ).shuffled
    assert shuffled(disk, 9, expected=lambda plan: plan.as_shuffled(True).fingerprint).shuffled


@pytest.mark.parametrize("shuffle", ["auto", "windows"])
def test_a_run_goes_on_with_an_older_shuffle(shuffle, tmp_path):
    """A complete split; one that is not would be written in another order."""
    config = dataclasses.replace(RunConfig(), data=DataConfig(shuffle=shuffle))
    recipe = {"split": "train", "examples_per_shard": 4}
    plan = TokenisingPlan([(tmp_path / "f", 9)], tmp_path / "tokens" / "train-1", [], recipe, "")
    old = plan.as_shuffled(True, version=1)
    kept = _as_ordered(config, plan, old.fingerprint)
    assert kept.directory == old.directory != _as_ordered(config, plan, None).directory
    with pytest.raises(UserError, match=r"not complete.* restore it, or give a new out_dir"):
        kept.todo()
    old.directory.mkdir(parents=True)
    old.manifest.write_text("{}")
    with pytest.raises(UserError, match=r"not complete.* restore it, or give a new out_dir"):
        kept.todo()
    for path, _ in old.shards:
        path.touch()
    assert kept.todo() is None


MANY = 100_000_000


@pytest.mark.parametrize(
    ("data", "records", "remedy"),
    [
        ({}, 0, ""),  # windows
        ({"shuffle": "windows"}, 0, ""),
        ({"shuffle": "global"}, MANY, r"windows leaves it on the disk$"),
        ({"mixture": "a,b"}, 2 * MANY, "without mixtures and with one wording"),
        ({"paraphrases": 1, "drop_instructions": 0.1}, 3 * MANY, "without mixtures and with one"),
        ({"mixture": "a,b", "more_templates": ("{query}",)}, 4 * MANY, "without mixtures"),
    ],
)
def test_an_index_that_takes_much_memory_is_said(monkeypatch, data, records, remedy):
    monkeypatch.setattr(step_shapes, "dataset_dir", lambda config: as_path(config.data.source))
    monkeypatch.setattr(step_shapes, "source_files", lambda *_: [("f", MANY - 1), ("g", 1)])
    config = dataclasses.replace(RunConfig(), data=DataConfig(**data))
    said = step_shapes.index_warning(config)
    assert bool(said) == bool(records)
    if records:
        assert f"about {records * 250 / 2**30:.0f} GiB in each host's memory" in said
        assert f"250 bytes for each of {records:,} examples" in said
        assert re.search(remedy, said)
    monkeypatch.setattr(step_shapes, "source_files", lambda *_: [("f", 2_000_000)])
    assert step_shapes.index_warning(config) == ""


def test_plan_and_train_say_it_before_anything_is_read(tiny_config, monkeypatch, capsys):
    monkeypatch.setattr(step_shapes, "INDEX_LIMIT", 60 * 250 - 1)
    config = run_config(tiny_config)
    lengths = {"query_tokens": 9, "passage_tokens": 9}
    tokenizer = functools.partial(run_tokenizer, config)
    inputs = step_shapes.plan_inputs(config, tokenizer, devices=1, **lengths)
    assert inputs.measured and "250 bytes for each of 60 examples" in inputs.warning

    def stop(*_, **__):
        raise UserError("reads")

    monkeypatch.setattr(train, "settle_keys", stop)
    with pytest.raises(UserError, match="reads"):
        train.main(tiny_config)
    assert "WARNING: the global order keeps an index of" in capsys.readouterr().out
