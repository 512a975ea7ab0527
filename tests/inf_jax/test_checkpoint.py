"""Checkpoints: which are kept, what is never taken for one, and what stops a run."""

import itertools
import json
import math
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from inf_jax import train
from inf_jax.checkpoints import manager as checkpoint
from inf_jax.checkpoints.integrity import checksums
from inf_jax.checkpoints.resume import ResumeInfo
from inf_jax.config.defaults import run_config
from inf_jax.core.errors import UserError
from inf_jax.distributed.preemption import STOPPED
from inf_jax.io import storage
from inf_jax.monitoring.metrics_log import read_metrics
from inf_jax.training.setup import make_training
from tests.inf_jax.processes import finish, start, write_config

# The main, but once the first checkpoint is whole no file may grow beyond 16 KiB. The log does
# not need more and a checkpoint does: for that the disk is full.
FULL = """
import resource
from inf_jax import train
from inf_jax.config.command_line import run
from inf_jax.checkpoints import manager as checkpoint
save = checkpoint.save
def save_on_a_full_disk(manager, *args, **options):
    if manager.latest_step() == 4:
        manager.wait_until_finished()
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, resource.RLIM_INFINITY))
    save(manager, *args, **options)
checkpoint.save = save_on_a_full_disk
run(train.main, train.__doc__)
"""

# The main, slow enough to be met in the middle.
SLOW = """
import time
from inf_jax import train
from inf_jax.config.command_line import run
from inf_jax.data import loader
host_batch = loader.Loader.host_batch
def slow(self, step):
    time.sleep(0.05)
    return host_batch(self, step)
loader.Loader.host_batch = slow
run(train.main, train.__doc__)
"""


def small_state(step):
    return {"step": jnp.int32(step), "params": {"shared": {"w": jnp.arange(3.0) + step}}}


def save(manager, step, **options):
    info = ResumeInfo(step, 0, 8, "dataset")
    checkpoint.save(manager, small_state(step), info, config={"seed": 0}, **options)
    checkpoint.wait(manager)


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
        info, config = checkpoint.read_run(manager, 2)
        assert info.step == 2 and config == {"seed": 0}
        save(manager, 7)
    assert steps_in(tmp_path) == [7]


def test_a_score_that_is_no_number_is_the_worst(tmp_path):
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


def test_changed_bytes_are_found(tmp_path):
    params = {"shared": {"w": jnp.arange(1e5), "v": jnp.ones(9)}}
    big = {"step": jnp.int32(3), "params": params}
    with checkpoint.make_manager(tmp_path, keep=1) as manager:
        checkpoint.save(manager, big, ResumeInfo(3, 0, 8, "dataset"), config={})
        checkpoint.wait(manager)
        found, _ = checkpoint.restore(manager, big)
        assert checksums(found) == checksums(big)
        file = max((tmp_path / "3" / "state").rglob("*"), key=lambda path: path.stat().st_size)
        content = bytearray(file.read_bytes())
        content[len(content) // 2 + 8] ^= 255
        file.write_bytes(content)
        message = r"3 cannot be restored: (params/shared/w is not what was saved|.*[Dd]ecod|.*zstd)"
        with pytest.raises(UserError, match=message):
            checkpoint.restore(manager, big)
    with pytest.raises(UserError, match=message):
        checkpoint.restore_params(tmp_path, params)


def test_checksums_know_places_and_bits():
    a = {"w": jnp.arange(24.0).reshape(2, 3, 4), "n": jnp.int32(3), "b": jnp.array([True, False])}
    a["h"] = jnp.arange(4, dtype=jnp.bfloat16)
    first = checksums(a)
    assert checksums(a | {"w": a["w"].at[1, 2, 3].set(-0.0)}).keys() == first.keys()
    for name, other in (
        ("w", a["w"][:, :, ::-1]),
        ("w", a["w"].at[0, 0, 0].set(-0.0)),
        ("n", jnp.int32(2)),
        ("b", jnp.array([False, True])),
        ("h", a["h"] + 1),
    ):
        changed = checksums(a | {name: other})
        assert [key for key in first if changed[key] != first[key]] == [name]
    sharded = jax.device_put(a["w"], jax.NamedSharding(jax.make_mesh((2,), "x"), P("x")))
    assert checksums({"w": sharded}) == {"w": first["w"]}


def test_which_checkpoint(tmp_path):
    train = {"train": {"best_metric": "dev/loss", "best_mode": "max"}}
    with checkpoint.make_manager(tmp_path, keep=4, keep_best=1) as manager:
        for step, value in ((1, 0.5), (2, 0.7), (3, 0.6)):
            info = ResumeInfo(step, 0, 8, "dataset")
            metrics = {"dev/loss": value}
            checkpoint.save(manager, small_state(step), info, config=train, metrics=metrics)
    shapes = {"shared": {"w": jnp.zeros(3)}}

    def step(which):
        params, step = checkpoint.restore_params(tmp_path, shapes, which=which)
        assert params["shared"]["w"][0] == step
        return step

    assert [step(which) for which in ("newest", "best", "1")] == [3, 2, 1]
    with pytest.raises(UserError, match="no checkpoint '9'; there are 1, 2, 3, newest and"):
        step("9")
    with checkpoint.make_manager(tmp_path / "plain", keep=1) as manager:
        save(manager, 5)
    with pytest.raises(UserError, match=r"plain: the run kept no best checkpoint; .*keep_best"):
        checkpoint.restore_params(tmp_path / "plain", shapes, which="best")


def test_half_written_checkpoints_are_never_picked_up(tmp_path):
    with checkpoint.make_manager(tmp_path, keep=3) as manager:
        save(manager, 4)
    whole = tmp_path / "4"
    for name in ("8.orbax-checkpoint-tmp", "9.orbax-checkpoint-tmp-17"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "position").write_text("{")
    assert checkpoint.restore_params(tmp_path, {"shared": {"w": jnp.zeros(3)}})[1] == 4
    with checkpoint.make_manager(tmp_path, keep=3) as manager:
        assert manager.latest_step() == 4
        save(manager, 10)
        assert steps_in(tmp_path) == [4, 10]
        state, _ = checkpoint.restore(manager, small_state(0), 4)
        assert state["params"]["shared"]["w"].tolist() == [4, 5, 6]
        next((whole / "state").rglob("manifest.ocdbt")).write_bytes(b"")
        with pytest.raises(UserError, match=rf"{whole} cannot be restored: .*delete that"):
            checkpoint.restore(manager, small_state(0), 4)


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


def test_restored_on_another_mesh(tiny_config):
    """From eight copies of the state to two of four shards each, and to one device's worth."""
    train.main(tiny_config)
    found = []
    for fsdp in (1, 4, 8):
        tiny_config.mesh.fsdp = fsdp
        shapes = make_training(run_config(tiny_config)).shapes.saved
        with checkpoint.make_manager(f"{tiny_config.out_dir}/checkpoints", keep=9) as manager:
            state, _ = checkpoint.restore(manager, shapes)
        for array, shape in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
            assert array.sharding == shape.sharding
        found.append(jax.tree.map(np.asarray, state))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


def test_best_metric(tiny_config):
    tiny_config.train.update({"keep_best": 1, "checkpoint_every": 1, "keep_checkpoints": 1})
    tiny_config.train.best_metric = "lr"  # falls
    tiny_config.train.best_mode = "max"
    train.main(tiny_config)
    assert steps_in(Path(tiny_config.out_dir, "checkpoints")) == [1, 4]
    tiny_config.out_dir += "2"
    tiny_config.train.best_metric = "ndcg"
    with pytest.raises(UserError, match=r"train\.best_metric='ndcg': no metric .* loss, "):
        train.main(tiny_config)


def test_the_best_on_dev_is_kept(tiny_config):
    """Its loss falls, is the same in a resumed run, and is measured without dropout."""
    tiny_config.train.update({"steps": 6, "checkpoint_every": 2, "keep_checkpoints": 1})
    tiny_config.train.update({"dev_every": 2, "dev_batches": 2, "keep_best": 1})
    tiny_config.train.best_metric = "dev/loss"
    tiny_config.optim.update({"lr": 1e-3, "schedule": "constant"})
    tiny_config.model.dropout = 0.1
    train.main(tiny_config)
    lines = read_metrics(Path(tiny_config.out_dir, "metrics.jsonl"))
    assert [line["step"] for line in lines if "dev/loss" in line] == [1, 3, 5]
    losses = [line["dev/loss"] for line in lines if "dev/loss" in line]
    assert losses == sorted(losses, reverse=True)
    assert steps_in(Path(tiny_config.out_dir, "checkpoints")) == [6]
    tiny_config.out_dir += "2"
    tiny_config.train.steps = 2
    train.main(tiny_config)
    tiny_config.train.steps = 6
    tiny_config.train.best_mode = "max"
    train.main(tiny_config)
    assert read_metrics(Path(tiny_config.out_dir, "metrics.jsonl")) == lines
    assert steps_in(Path(tiny_config.out_dir, "checkpoints")) == [2, 6]


def test_a_damaged_log_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for content in (b'{"step": 0}\nrubbish\n', b'{"step": 0}\n[1]\n', b'{"step": 0}\n\xff\0\n'):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: damaged .*delete that line"):
            read_metrics(path)
    path.write_bytes(b'{"step": 0}\n{"st')
    assert read_metrics(path) == [{"step": 0}]


def test_resume_wishes(tiny_config, capsys):
    with pytest.raises(UserError, match=r"run/checkpoints: no checkpoint to resume from"):
        train.main(tiny_config, resume=True)
    train.main(tiny_config, resume=False)
    with pytest.raises(UserError, match=r"run/checkpoints: has a checkpoint of step 4; give a new"):
        train.main(tiny_config, resume=False)
    tiny_config.train.steps = 6
    capsys.readouterr()
    train.main(tiny_config, resume=True)
    assert "going on; since then train.steps was 4, is now 6" in capsys.readouterr().out
    lines = read_metrics(Path(tiny_config.out_dir, "metrics.jsonl"))
    assert [line["step"] for line in lines] == list(range(6))


def test_what_is_wrong_is_said_before_any_long_work(tiny_config, tiny_model_dir, tmp_path):
    """Another tokenizer than the records', a batch and a mesh that are none: nothing is written."""
    train.main(tiny_config)
    data = Path(tiny_config.data.dir, "tokenised", "inf_ir")
    before, tiny_config.train.steps = set(data.iterdir()), 6
    shutil.copytree(tiny_model_dir, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    fields = json.loads(file.read_text())
    ids = fields["model"]["vocab"]
    ids["amber"], ids["birch"] = ids["birch"], ids["amber"]
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"in this out_dir was another one \(model\.name was"):
        other = tiny_config.copy_and_resolve_references()
        other.model.name = str(tmp_path / "other")
        train.main(other)
    original = tiny_model_dir / "tokenizer.json"
    kept = original.read_bytes()
    try:
        original.write_bytes(file.read_bytes())
        with pytest.raises(UserError, match=r"train: not what the run .* or the tokenizer have"):
            train.main(tiny_config)
    finally:
        original.write_bytes(kept)
    for key, value, message in (
        ("train.batch_size", 2, r"train\.batch_size=2 gives fewer pairs than there are chunks \(8"),
        ("mesh.fsdp", 3, r"mesh\.fsdp=3 does not divide the 8 devices"),
        ("mesh.tensor", 8, r"mesh\.tensor=8 must divide the heads"),
    ):
        config = tiny_config.copy_and_resolve_references()
        config.out_dir, config.data.max_query_tokens = str(tmp_path / "new"), 15
        config.update_from_flattened_dict({key: value})
        with pytest.raises(UserError, match=message):
            train.main(config)
    assert set(data.iterdir()) == before


def test_no_room_for_a_checkpoint(tiny_config, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(UserError, match=r"checkpoints: a checkpoint takes up to \d+ MiB, 0 MiB"):
        train.main(tiny_config)


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(tiny_config, tmp_path):
    tiny_config.train.update({"steps": 20, "checkpoint_every": 4})
    file = write_config(tiny_config, tmp_path / "c.py")
    (out,), codes = finish(start(file, program=("-c", FULL)))
    assert codes == [1]
    (said,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert re.match(
        r"error: .*run/checkpoints: a checkpoint cannot be written \(.+\); the last whole one is "
        r"of step 4\. Free some space",
        said,
    ), out
    assert "inf_jax/" not in out  # what TensorStore's own threads print may stand beside it
    (out,), codes = finish(start(file, "--resume"))
    assert codes == [0], out
    assert "steps 4 to 20" in out
    assert steps_in(Path(tiny_config.out_dir, "checkpoints")) == [16, 20]


def test_sigterm_saves_and_ends(tiny_config, tmp_path):
    tiny_config.train.update({"steps": 300, "checkpoint_every": 300})
    file, log = write_config(tiny_config, tmp_path / "c.py"), Path(tiny_config.out_dir)
    (process,) = start(file, program=("-c", SLOW))
    while process.poll() is None and len(read_metrics(log / "metrics.jsonl")) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    (out,), codes = finish([process])
    assert codes == [STOPPED], out
    (done,) = steps_in(log / "checkpoints")
    assert f"run: asked to stop, saved after {done} of 300 steps" in out
    assert "Traceback" not in out
    assert len(read_metrics(log / "metrics.jsonl")) == done
    assert json.loads((log / "config.json").read_text())["train"]["steps"] == 300


def test_two_runs_in_one_out_dir_are_refused(tiny_config, monkeypatch):
    out_dir = Path(tiny_config.out_dir)
    out_dir.mkdir()
    clock = itertools.count(0, 5)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with storage.locked(out_dir):
        with pytest.raises(UserError, match=r"run: another run is using it"):
            train.main(tiny_config)
        assert not list(out_dir.iterdir())
    with storage.locked(out_dir):
        pass
