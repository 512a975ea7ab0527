"""Which names of directories can hold checkpoints: what is written can be read again."""

import functools

import jax.numpy as jnp
import pytest

from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.resume import ResumeInfo
from inf_jax.config.checks import check_config
from inf_jax.core.errors import UserError

BROKEN = ["x[1]", "a]", "a\\b", "run*", "run?", "{a,b}", "a\nb", "a\tb", "a\0b", "a\udcffb"]
WHOLE = ["a b", "é", "日本", "a'b\"c", "#1", "100%", "$HOME", "~x", "a&b;c|d", "-x", "a,b=c", "(a)"]


@pytest.mark.parametrize("name", BROKEN)
def test_no_checkpoint_is_written_where_it_cannot_be_read(tiny_config, tmp_path, name):
    for key in ("out_dir", "model.start_from"):
        config = tiny_config.copy_and_resolve_references()
        config.update_from_flattened_dict({key: f"{tmp_path}/{name}/run"})
        with pytest.raises(UserError, match=rf"{key}=.*: holds .*(read again|no character)"):
            check_config(config)
    for call in (checkpoint.read_saved, functools.partial(checkpoint.make_manager, keep=1)):
        with pytest.raises(UserError, match=r"holds .*choose another name"):
            call(f"{tmp_path}/{name}/run")
    assert not list(tmp_path.iterdir())


def test_the_working_directory_counts(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "[a]").mkdir()
    monkeypatch.chdir(tmp_path / "[a]")
    tiny_config.out_dir = "run"
    with pytest.raises(UserError, match=r"='run': the working directory, .*, holds \["):
        check_config(tiny_config)


@pytest.mark.parametrize("name", WHOLE)
def test_other_names_hold_checkpoints(tiny_config, tmp_path, name):
    """Written, restored, and read without the other runs beside them."""
    tiny_config.out_dir = str(tmp_path / name)
    check_config(tiny_config)
    state = {"step": jnp.int32(1), "params": {"shared": {"w": jnp.arange(3.0)}}}
    with checkpoint.make_manager(tiny_config.out_dir, keep=1) as manager:
        checkpoint.save(manager, state, ResumeInfo(1, 0, 8, "dataset"), config={})
        manager.wait_until_finished()
        restored, _ = checkpoint.restore(manager, state)
    assert restored["params"]["shared"]["w"].tolist() == [0, 1, 2]
    params = checkpoint.restore_params(tiny_config.out_dir, state["params"], step=1)
    assert params["shared"]["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "place", ["gs://b1c/run?generation=1", "gs://b1c/run#2", "gs://b1c/[a]/run", "gs://b1c/a\\b"]
)
def test_no_pattern_query_or_fragment_in_a_bucket(tiny_config, place):
    for key in ("out_dir", "export.dir", "model.start_from"):
        config = tiny_config.copy_and_resolve_references()
        config.update_from_flattened_dict({key: place})
        with pytest.raises(UserError, match=rf"{key}=.*: holds "):
            check_config(config)


@pytest.mark.parametrize("place", ["gs://runs/../x", "gs://runs/.", "gs://runs//"])
def test_no_steps_up_in_a_bucket(tiny_config, place):
    tiny_config.out_dir = place
    with pytest.raises(UserError, match=r"out_dir=.*a local directory, or gs://BUCKET/"):
        check_config(tiny_config)
