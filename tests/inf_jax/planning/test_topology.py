"""Chips, their links, and names of topologies."""

import jax
import jax.numpy as jnp
import pytest

from inf_jax.core.errors import UserError
from inf_jax.planning.chips import CHIPS, GPUS
from inf_jax.planning.hlo import collectives
from inf_jax.planning.hlo_cost import instruction_costs
from inf_jax.planning.topology import has_gpu_compiler, parse_topology, topology


def test_chips_are_plausible():
    for name, chip in CHIPS.items():
        assert name == "cpu" or chip.source.startswith("https://")
        rates = (chip.flops, chip.hbm_rate, chip.links * chip.link_rate, chip.dcn_rate)
        assert list(rates) == sorted(rates, reverse=True) and chip.dcn_rate > 0
        share = 0.75 if name in GPUS else 1  # what JAX takes of a GPU's
        assert 0.9 * share * chip.hbm < chip.usable < 1.01 * share * chip.hbm
        # what makes a chip bound by its memory: 100 to 600 operations a byte on all chips
        assert name == "cpu" or 100 < chip.flops / chip.hbm_rate < 600
    assert "made up" in CHIPS["cpu"].source
    assert round(CHIPS["v4"].clock / 1e6) == 1049  # 1,050 MHz by the TPU v4 paper


def test_links_in_use():
    v5e = CHIPS["v5e"]
    assert v5e.rate((16, 16)) == 4 * 50e9  # two rings
    assert v5e.rate((4, 8)) == 2 * 50e9  # two lines: a chip at the end has one link of each
    assert v5e.rate((16, 1)) == 2 * 50e9
    assert CHIPS["v5p"].rate((4, 4, 8)) == 6 * 100e9
    half = CHIPS["tpu7x"].share(2)
    assert half.flops == CHIPS["tpu7x"].flops / 2 and half.rate((4, 4, 4)) == 6 * 50e9


def test_topologies():
    assert parse_topology("v5p:8x8x8") == ("v5p", (8, 8, 8))
    for wrong in ("v5e", "v5e:", "h300:8", "v5e:16x"):
        with pytest.raises(UserError, match="write CHIP:AxB"):
            parse_topology(wrong)
    target = topology("cpu:2x2", slices=2)
    assert (target.chips, len(target.devices), target.device) == (8, 8, CHIPS["cpu"])
    with pytest.raises(UserError, match="8 virtual devices"):
        topology("cpu:9")


def test_gpus_of_a_host():
    assert parse_topology("h100:8") == ("h100", (8,))
    for wrong in ("h100:16", "a100:2x4", "h200:0"):
        with pytest.raises(UserError, match=r"for one host with NVLink: .*:1 to .*:8"):
            parse_topology(wrong)
    with pytest.raises(UserError, match="leave out --slices"):
        topology("h200:8", slices=2)
    assert CHIPS["h100"].rate((8,)) == CHIPS["h100"].rate((2,)) == 450e9  # one way to the switch


@pytest.mark.skipif(has_gpu_compiler(), reason="JAX's CUDA plugin is installed")
def test_gpus_need_their_compiler():
    with pytest.raises(UserError, match=r"JAX's CUDA plugin, but no GPU .*\[gpu\]"):
        topology("b200:1")


@pytest.mark.skipif(not has_gpu_compiler(), reason="needs JAX's CUDA plugin, of the extra [gpu]")
@pytest.mark.parametrize("name", GPUS)
def test_programs_for_gpus(name):
    """A product over two GPUs, and its sum."""
    target = topology(f"{name}:2")
    mesh = jax.sharding.Mesh(target.devices, ("d",))
    rows, whole = (jax.NamedSharding(mesh, jax.P(axis)) for axis in ("d", None))
    x, y = (
        jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=each) for each in (rows, whole)
    )
    step = jax.jit(lambda x, y: jnp.tanh(x @ y).sum(0), out_shardings=whole)
    compiled = step.lower(x, y).compile()
    assert sum(w.flops for w in instruction_costs(compiled.as_text())) == 4096**3
    (summed,) = collectives(compiled.as_text())
    assert (summed.kind, summed.group) == ("all-reduce", 2)
    assert compiled.memory_analysis().argument_size_in_bytes == (0.5 + 1) * 4096**2 * 2
