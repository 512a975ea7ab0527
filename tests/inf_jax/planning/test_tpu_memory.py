"""What a program takes of a TPU's memory, and what libtpu refuses."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inf_jax.planning.advice import exhausted
from inf_jax.planning.chips import CHIPS
from inf_jax.planning.compile import bytes_needed, memory_parts
from inf_jax.planning.topology import topology

GIB = 2**30
# Of a program for v5e with 9 GiB of temporary arrays alive at once, beside 3 GiB of arguments.
HOLED = {"arguments": 3.0, "outputs": 3.0, "reused": 3.0, "temp": 11.294, "code": 0.0}


def _needed(parts, platform="tpu", usable=100):
    sizes = {name: round(gib * GIB) for name, gib in parts.items()}
    return bytes_needed(sizes, platform=platform, usable=usable * GIB) / GIB


def test_holes_count_once():
    parts = HOLED | {"peak": 11.944}
    # libtpu refuses the same program with all arrays 1.4 times as large: "18.37G"
    assert _needed(parts) == pytest.approx(18.37 / 1.4, rel=1e-3)
    assert _needed(parts, "gpu") == pytest.approx(3 + 11.294)
    # arrays on the chip are alive without taking memory
    assert _needed(parts | {"temp": 0}) == 3


def test_a_program_that_libtpu_compiled_fits():
    # qwen2_5.py:v5p-1048576, which it compiles for 95.74 GiB
    parts = {"arguments": 1.08, "outputs": 1.08, "reused": 1.08, "temp": 131.54, "code": 0.07}
    parts["peak"] = 79.26
    assert _needed(parts, usable=95.74) == pytest.approx(95.74)


def _events(rng, most):
    """("make", number, rows) and ("use", number, 0) of arrays of 32 KiB a row, of which at most
    `most` rows are alive."""
    alive = {}
    for number in range(25):
        rows = int(most / 48 * 2 ** rng.uniform(0, 4)) // 8 * 8
        while alive and sum(alive.values()) + rows > most:
            used = rng.choice(list(alive))
            del alive[used]
            yield "use", used, 0
        alive[number] = rows
        yield "make", number, rows
    yield from (("use", number, 0) for number in alive)


def _compiled(times, sharding):
    """A program of arrays of many sizes that are alive for different times."""
    keep = jax.lax.optimization_barrier
    events = list(_events(np.random.default_rng(1), int(9 * times * GIB) >> 15))

    def program(whole, x, at):
        alive = {}
        for kind, number, rows in events:
            if kind == "make":
                alive[number] = keep(jnp.full((rows, 8192), x, jnp.float32))
                x = keep(x + alive[number][at, 0])
            else:
                used, x = keep((alive.pop(number), x))
                x = keep(jnp.sin(x * used[at, 1]))
        return keep(whole + x), x

    shapes = ((int(3 * times * GIB) >> 15, 8192), jnp.float32), ((), jnp.float32), ((), jnp.int32)
    inputs = [jax.ShapeDtypeStruct(*each, sharding=sharding) for each in shapes]
    step = jax.jit(program, donate_argnums=0, out_shardings=sharding)
    return step.lower(*inputs).compile()


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu (the extra aot) is not installed"
)
def test_what_is_needed_is_what_libtpu_refuses():
    mesh = jax.sharding.Mesh(topology("v5e:2x2").devices[:1], ("d",))
    sharding = jax.NamedSharding(mesh, jax.P())
    limit, sizes = CHIPS["v5e"].usable, {}
    for times in (1.0, 1.4):
        try:
            parts = memory_parts(_compiled(times, sharding))
        except jax.errors.JaxRuntimeError as error:
            sizes[times], available = exhausted(str(error))
            assert available == limit
        else:
            sizes[times] = bytes_needed(parts, platform="tpu", usable=2 * limit)
            assert parts["arguments"] + parts["temp"] > sizes[times] + GIB  # has holes
    assert sizes[1.0] < limit < sizes[1.4]
    assert sizes[1.4] / sizes[1.0] == pytest.approx(1.4, rel=0.002)
