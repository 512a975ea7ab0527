"""Keys that a config leaves to "auto": what is chosen, when, and what a resumed run keeps."""

import json
from pathlib import Path

import jax
import pytest

from inf_jax.config.checks import check_config
from inf_jax.config.resume import check_same_run, save_resolved
from inf_jax.core.errors import UserError
from inf_jax.planning.topology import topology_of
from inf_jax.training import automatic
from inf_jax.training.automatic import settle_keys

REMAT, CHUNKS = "model.remat", "train.chunks_per_device"
NEEDED = {"none": 32, "dots": 20, "ffn": 16, "sums": 10, "full": 6, "offload": 4}  # GiB
SECONDS = {"none": 3.0, "dots": 3.1, "ffn": 3.6, "sums": 3.8, "full": 4.2, "offload": 4.3}


def plan_of(config, limit):
    remat, chunks = config.model.remat, config.train.chunks_per_device
    needed = 1 + NEEDED[remat] / chunks
    hbm = {"needed": needed * 2**30, "limit": limit * 2**30, "at_rest": 2**30}
    hbm["fits"] = needed <= limit
    return {"hbm": hbm} | (
        {"seconds": {"step": SECONDS[remat] + (chunks > 1)}} if hbm["fits"] else {}
    )


@pytest.fixture
def compiled(monkeypatch):
    """The forms that a start plans, with a device of 10 GiB."""
    forms = []

    def fake_choose(config, keys, **_):
        def planned(form):
            forms.append((form.model.remat, form.train.chunks_per_device))
            return plan_of(form, 10)

        best = automatic.search_open(config, planned, devices=2)[0]
        return automatic.Choice({key: best.overrides[key] for key in keys}, "made up"), {}

    monkeypatch.setattr(automatic, "_choose", fake_choose)
    return forms


@pytest.mark.parametrize(
    ("open_keys", "expected", "most"),
    [
        ({REMAT: "auto", CHUNKS: "auto"}, {REMAT: "none", CHUNKS: 4}, 8),
        ({REMAT: "auto"}, {REMAT: "full", CHUNKS: 1}, 5),
        ({CHUNKS: "auto", REMAT: "dots"}, {REMAT: "dots", CHUNKS: 4}, 3),
    ],
)
def test_few_forms_are_compiled_once(tiny_config, tmp_path, compiled, open_keys, expected, most):
    """None and dots need four chunks, ffn and sums several, full one."""
    for key, value in open_keys.items():
        section, name = key.split(".")
        tiny_config[section][name] = value
    started = tiny_config.copy_and_resolve_references()
    assert settle_keys(started, dataset=None, order=None)
    chosen = {REMAT: started.model.remat, CHUNKS: started.train.chunks_per_device}
    assert chosen == expected and len(compiled) == len(set(compiled)) <= most
    # a later start, which trains on, by a version with a further key: the same choice, nothing is
    # compiled
    file = Path(tiny_config.out_dir) / "automatic.json"
    record = json.loads(file.read_text())
    del record["of"]["train.health"]
    file.write_text(json.dumps(record))
    tiny_config.train.steps = 9
    again = tiny_config.copy_and_resolve_references()
    compiled.clear()
    assert "first start" in settle_keys(again, dataset=None, order=None).why and not compiled
    assert again.model.remat == started.model.remat
    # the run's config has the values, and "auto" is no difference
    save_resolved(started, tmp_path / "config.json")
    saved = json.loads((tmp_path / "config.json").read_text())
    assert check_same_run(tiny_config, saved, "checkpoint") == ["train.steps was 4, is now 9"]
    tiny_config.train.batch_size *= 2  # another step
    settle_keys(tiny_config, dataset=None, order=None)
    assert compiled


def test_without_a_figure_of_the_memory_nothing_is_compared(tiny_config):
    """On a CPU, for example."""
    tiny_config.train.chunks_per_device = tiny_config.model.remat = "auto"
    choice = settle_keys(tiny_config, dataset=None, order=None)
    assert (
        choice.values == {REMAT: "none", CHUNKS: 1} and "cpu: its memory is not known" in choice.why
    )
    assert json.loads((Path(tiny_config.out_dir) / "automatic.json").read_text())["values"]
    assert settle_keys(tiny_config, dataset=None, order=None) is None


def test_chunks_that_are_part_of_the_objective_are_not_open(tiny_config):
    tiny_config.train.chunks_per_device = "auto"
    tiny_config.model.query_encoder, tiny_config.loss.objective = "attention", "multi(P,I)"
    with pytest.raises(UserError, match=r"chunks_per_device='auto': .*give the number"):
        check_config(tiny_config)


class Chip:
    """A TPU device, as far as a topology asks."""

    def __init__(self, kind, coords, slice_index=0):
        self.device_kind, self.coords, self.slice_index = kind, coords, slice_index


def test_devices_as_a_topology():
    chips = [
        Chip("TPU v5 lite", (x, y, 0), s) for s in range(2) for y in range(4) for x in range(2)
    ]
    found = topology_of(chips)
    assert (found.slices, found.shape, found.chips) == (2, (2, 4), 16)
    assert found.device.flops == 197e12
    cores = [Chip("TPU7x", (x, 0, 0)) for x in range(4) for _ in range(2)]
    assert topology_of(cores).chips == 4 and topology_of(cores).device.flops == 2307e12 / 2
    here = topology_of(jax.devices()[:2])
    assert here.name == "2 x cpu" and here.shape == (2,) and here.chips == 2
