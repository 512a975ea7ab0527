"""Checkpoints: which are kept, and that damaged or foreign ones are refused."""

import json
import math
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.integrity import checksums
from inf_jax.checkpoints.resume import ResumeInfo
from inf_jax.core.errors import UserError


def small_state(step):
    return {"step": jnp.int32(step), "params": {"shared": {"w": jnp.arange(3.0) + step}}}


def save(manager, step, **options):
    info = ResumeInfo(step, 0, 8, "dataset")
    checkpoint.save(manager, small_state(step), info, config={"seed": 0}, **options)
    manager.wait_until_finished()


def steps_in(directory):
    return sorted(int(path.name) for path in Path(directory).iterdir())


def test_the_newest_and_the_best_are_kept(tmp_path):
    scores = {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.2, 5: 0.8, 6: 0.7}
    for step, score in scores.items():  # as one run that is started six times
        with checkpoint.make_manager(tmp_path, keep=1, keep_best=2) as manager:
            save(manager, step, metrics={"loss": score})
    assert steps_in(tmp_path) == [2, 4, 6]
    with checkpoint.make_manager(tmp_path, keep=1) as manager:
        assert manager.latest_step() == 6
        saved = checkpoint.read_saved(tmp_path, "2")
        assert saved.step == saved.info.step == 2 and saved.config == {"seed": 0}
        save(manager, 7)
    assert steps_in(tmp_path) == [7]


def test_non_finite_scores_rank_last(tmp_path):
    for keep_best, scores, kept in (
        (1, (0.3, math.nan, 0.5, 0.6), [1, 4]),
        (2, (0.5, math.nan, 0.3, 0.6), [1, 3, 4]),
        (1, (math.nan, math.inf, 0.5), [3]),
    ):
        folder = tmp_path / str(scores)
        with checkpoint.make_manager(folder, keep=1, keep_best=keep_best) as manager:
            for step, score in enumerate(scores, 1):
                save(manager, step, metrics={"loss": score})
        assert steps_in(folder) == kept


def test_changed_bytes_are_detected(tmp_path):
    params = {"shared": {"w": jnp.arange(1e5), "v": jnp.ones(9)}}
    big = {"step": jnp.int32(3), "params": params}
    with checkpoint.make_manager(tmp_path, keep=1) as manager:
        checkpoint.save(manager, big, ResumeInfo(3, 0, 8, "dataset"), config={})
        manager.wait_until_finished()
        restored, _ = checkpoint.restore(manager, big)
        assert checksums(restored) == checksums(big)
        file = max((tmp_path / "3" / "state").rglob("*"), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2 + 8] ^= 255
        file.write_bytes(content)
        message = r"3 cannot be restored: (params/shared/w is not what was saved|.*[Dd]ecod|.*zstd)"
        with pytest.raises(UserError, match=message):
            checkpoint.restore(manager, big)
    with pytest.raises(UserError, match=message):
        checkpoint.restore_params(tmp_path, params, step=3)


def test_which_checkpoint(tmp_path):
    train = {"train": {"best_metric": "dev/loss", "best_mode": "max"}}
    with checkpoint.make_manager(tmp_path, keep=4, keep_best=1) as manager:
        for step, value in ((1, 0.5), (2, 0.7), (3, 0.6)):
            info = ResumeInfo(step, 0, 8, "dataset")
            metrics = {"dev/loss": value}
            checkpoint.save(manager, small_state(step), info, config=train, metrics=metrics)
    shapes = {"shared": {"w": jnp.zeros(3)}}

    def step(which):
        step = checkpoint.read_saved(tmp_path, which).step
        assert checkpoint.restore_params(tmp_path, shapes, step=step)["shared"]["w"][0] == step
        return step

    assert [step(which) for which in ("newest", "best", "1")] == [3, 2, 1]
    with pytest.raises(UserError, match="no checkpoint '9'; there are 1, 2, 3, newest and"):
        step("9")
    with checkpoint.make_manager(tmp_path / "plain", keep=1) as manager:
        save(manager, 5)
    with pytest.raises(UserError, match=r"plain: the run kept no best checkpoint; .*keep_best"):
        checkpoint.read_saved(tmp_path / "plain", "best")


def test_half_written_checkpoints_are_never_picked_up(tmp_path):
    with checkpoint.make_manager(tmp_path, keep=3) as manager:
        save(manager, 4)
    whole = tmp_path / "4"
    for name in ("8.orbax-checkpoint-tmp", "9.orbax-checkpoint-tmp-17"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "position").write_text("{")
    assert checkpoint.read_saved(tmp_path).step == 4
    with checkpoint.make_manager(tmp_path, keep=3) as manager:
        assert manager.latest_step() == 4
        save(manager, 10)
        assert steps_in(tmp_path) == [4, 10]
        state, _ = checkpoint.restore(manager, small_state(0), 4)
        assert state["params"]["shared"]["w"].tolist() == [4, 5, 6]
        next((whole / "state").rglob("manifest.ocdbt")).write_bytes(b"")
        with pytest.raises(UserError, match=rf"{whole} cannot be restored: .*delete that"):
            checkpoint.restore(manager, small_state(0), 4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics/metrics", "{"),
        ("_CHECKPOINT_METADATA", "[]"),
        ("_CHECKPOINT_METADATA", "[" * 100_000),
        ("state/_METADATA", "[]"),
        ("state/array_metadatas/process_0", "[]"),
        ("state/array_metadatas/process_0", "[" * 100_000),
    ],
)
def test_orbaxs_own_files_of_another_type(tmp_path, name, content, capfd):
    state, info = small_state(1), ResumeInfo(1, 0, 8, "d")
    with checkpoint.make_manager(tmp_path, keep=1, keep_best=1) as manager:
        checkpoint.save(manager, state, info, config={}, metrics={"loss": 1.0})
    (tmp_path / "1" / name).write_text(content)
    with (
        pytest.raises(UserError, match=r"cannot be (read|restored)"),
        checkpoint.make_manager(tmp_path, keep=1, keep_best=1) as manager,
    ):
        checkpoint.restore(manager, state)
    assert "Traceback" not in capfd.readouterr().err


def test_a_checkpoint_of_another_tree_is_refused(tmp_path):
    with checkpoint.make_manager(tmp_path, keep=3) as manager:
        save(manager, 1)
        other = {"step": jnp.int32(0), "params": {"shared": {"v": jnp.zeros(3)}}}
        other["opt_state"] = {"mu": jnp.zeros(2)}
        with pytest.raises(UserError) as caught:
            checkpoint.restore(manager, other)
    for part in ("opt_state/mu absent, expected (2,)", "params/shared/v absent, expected (3,)"):
        assert part in str(caught.value)
    assert "params/shared/w (3,), expected none" in str(caught.value)


POSITION = {"step": 1, "seed": 0, "batch_size": 8, "dataset": "dataset"}


@pytest.fixture(scope="module")
def one_checkpoint(tmp_path_factory):
    """A checkpoint of step 1 with metrics; tests change files of a copy."""
    directory = tmp_path_factory.mktemp("one")
    config = {"train": {"best_metric": "loss", "best_mode": "min"}}
    with checkpoint.make_manager(directory, keep=1, keep_best=1) as manager:
        info = ResumeInfo(1, 0, 8, "dataset")
        checkpoint.save(manager, small_state(1), info, config=config, metrics={"loss": 0.5})
    return directory


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((name, "[" * 100_000) for name in ("position/metadata", "config/metadata")),
        *((name, '{"a": %s}' % ("9" * 5000)) for name in ("position/metadata", "config/metadata")),
        *((name, "[1]") for name in ("position/metadata", "config/metadata", "checksums/metadata")),
        ("checksums/metadata", "7"),
        ("position/metadata", {"step": "1"}),
        ("position/metadata", {"seed": None}),
        ("position/metadata", {"dataset": 3}),
        ("position/metadata", {"step": 2}),
        ("position/metadata", {"unknown": 2}),
    ],
)
def test_json_of_another_type(one_checkpoint, tmp_path, name, content):
    copy = tmp_path / "copy"
    shutil.copytree(one_checkpoint, copy)
    content = json.dumps(POSITION | content) if isinstance(content, dict) else content
    (copy / "1" / name).write_text(content)
    with pytest.raises(UserError, match=r"copy/1 cannot be restored: .*delete that"):
        checkpoint.read_saved(copy)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics/metrics", "[1]"),
        ("metrics/metrics", '{"loss": "low"}'),
        ("metrics/metrics", "[" * 100_000),
        ("config/metadata", '{"train": 3}'),
        ("config/metadata", "{}"),
    ],
)
def test_best_by_damaged_files(one_checkpoint, tmp_path, name, content):
    copy = tmp_path / "copy"
    shutil.copytree(one_checkpoint, copy)
    (copy / "1" / name).write_text(content)
    with pytest.raises(UserError, match=r"copy/1 cannot be restored: "):
        checkpoint.read_saved(copy, "best")
