"""The shipped scaling configs suit their chips and models."""

import importlib.util
import math
from pathlib import Path

import pytest

from inf_jax.config.checks import check_config
from inf_jax.planning.model_shapes import model_shape
from inf_jax.planning.topology import parse_topology
from launch.bench import plan as bench_plan

ROOT = Path(__file__).resolve().parents[3]


def scaling_module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def says_its_data(module, config):
    """The header has the command that builds the config's data, which holds more than a step."""
    words = [line.split() for line in module.__doc__.splitlines() if "data_pipeline.build" in line]
    flags = [word.removeprefix("--").split("=") for line in words for word in line[3:]]
    assert ["source", config.data.source] in flags
    most = {"msmarco": 532_761, "synthetic": max(int(v) for f, v in flags if f == "count")}
    # a quarter may be dropped as too short, as a duplicate or for dev
    assert config.train.batch_size < 0.75 * most[config.data.source]


@pytest.mark.parametrize(("file", "count"), [("e5_large.py", 10), ("qwen2_5.py", 8)])
def test_scaling_configs(file, count):
    module = scaling_module(ROOT / "configs" / "scaling" / file)
    assert len(module.NAMES) == count
    for name in module.NAMES:
        config = module.get_config(name)
        check_config(config)
        pairs, (target, chips) = int(name.split("-")[1]), module.TOPOLOGIES[name.split("-")[0]]
        assert math.prod(parse_topology(target)[1]) == chips
        assert config.train.batch_size == pairs
        says_its_data(module, config)
        chunks = chips * config.train.chunks_per_device
        assert -(-pairs // chunks) * chunks < 1.03 * pairs  # few empty slots
        assert config.train.steps * pairs == module.RUN_PAIRS
        shape, _ = model_shape(config.model.name)
        assert chips % config.mesh.fsdp == shape.width % config.mesh.fsdp == 0
    with pytest.raises(ValueError, match=f"one of {module.NAMES[0]}"):
        module.get_config("v5e-1")


def test_backbones_configs():
    module = scaling_module(ROOT / "configs" / "scaling" / "backbones.py")
    for name in module.NAMES:
        config = module.get_config(name)
        check_config(config)
        shape, _ = model_shape(config.model.name)
        says_its_data(module, config)
        assert config.data.row_tokens % 128 == 0  # splash attention wants it
        assert math.prod(parse_topology(module.TOPOLOGY)[1]) % config.mesh.fsdp == 0
        assert shape.width % config.mesh.fsdp == 0
    with pytest.raises(ValueError, match="one of e5-large"):
        module.get_config("gpt")
    planned = {program[0].partition(":")[2] for program in bench_plan.BACKBONES}
    assert planned == set(module.NAMES)
