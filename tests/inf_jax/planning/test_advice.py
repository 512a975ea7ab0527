"""Advice for steps that do not fit, and the search for the largest batch."""

import pytest

from inf_jax.config.defaults import defaults
from inf_jax.core.errors import UserError
from inf_jax.planning.advice import advice, exhausted, largest_fitting


@pytest.mark.parametrize("bound", [7, 8, 100, 4096, 5000])
def test_largest(bound):
    tried = []

    def fits(n):
        tried.append(n)
        return n <= bound

    found = largest_fitting(fits, start=64, unit=8)
    assert found % 8 == 0 and found <= bound
    assert found + max(8, found // 16 + 8) > bound
    assert len(tried) == len(set(tried)) < 20


def test_largest_stops():
    assert largest_fitting(lambda n: True, start=8, unit=8, most=64) == 64


def test_refusals_of_the_compiler():
    new = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (400.00G) exceeds available HBM (15.75G)."
    )
    old = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 37.20G of 15.75G hbm. Exceeded hbm capacity by 21.45G.\n\nTotal hbm usage >= "
        "37.70G:\n    reserved        530.00M"
    )
    assert exhausted(new) == (400 * 2**30, 15.75 * 2**30)
    assert exhausted(old) == (37.2 * 2**30, 15.75 * 2**30)
    with pytest.raises(UserError, match="the compiler failed: INTERNAL"):
        exhausted("INTERNAL: 3G of 4G")


def test_advice_fits_the_cause():
    config = defaults()
    config.loss.engine = "dense"
    config.data.row_tokens = 512
    gib = 2**30

    def keys(state, needed, pairs=4096, trained=2**30):
        found = {
            "hbm": {"at_rest": state * gib, "needed": needed * gib, "limit": 16 * gib},
            "batch": {"pairs": pairs},
            "devices": 8,
            "slices": 1,
            "parameters": 2**30,
            "trained_parameters": trained,
            "tensor_divides": 16,
        }
        return {o["key"]: o["value"] for o in advice(config, found)}

    found = keys(1, 100)  # 99 GiB of activations in a room of 15
    assert next(iter(found)) == "loss.engine" and "mesh.fsdp" not in found
    assert found["train.chunks_per_device"] == 8 and found["data.row_tokens"] == 128
    assert keys(20, 24)["mesh.fsdp"] == 8  # 20 to 4.8 takes 4.2
    assert "model.frozen_dtype" not in found
    assert keys(1, 100, trained=2**20)["model.frozen_dtype"] == "bfloat16"
    config.model.remat, config.model.dtype, config.loss.engine = "full", "bfloat16", "ring"
    assert set(keys(1, 100)) == {"train.chunks_per_device", "data.row_tokens"}
    config.mesh.fsdp = 2
    config.train.chunks_per_device = 2
    found = keys(1, 20)
    assert found["mesh.gather"] == "layer" and "mesh.tensor" not in found  # 6 GiB of 16
    config.mesh.gather = "layer"
    found = keys(1, 20, pairs=8)  # a chunk is one pair
    assert found["mesh.tensor"] == 2 and "train.chunks_per_device" not in found
    assert "mesh.gather" not in found
    config.mesh.update({"fsdp": 2, "tensor": 4})  # all devices share a copy
    assert not {"mesh.fsdp", "mesh.tensor"} & set(keys(20, 40, pairs=2))
