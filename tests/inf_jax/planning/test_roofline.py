"""Predicted seconds of collectives and programs."""

import pytest

from inf_jax.planning.chips import Chip
from inf_jax.planning.hlo import Collective
from inf_jax.planning.hlo_cost import InstructionCost
from inf_jax.planning.roofline import Layout, collective_seconds, predict

CHIP = Chip(
    flops=1e12,
    hbm=1e9,
    usable=1e9,
    hbm_rate=1e11,
    links=4,
    wraps=4,
    link_rate=1e10,
    dcn_rate=1e9,
    clock=0,
    source="made up",
)


def test_seconds_of_collectives():
    def seconds(kind: str, size: int, n: int, shape=(4, 4), slices=1) -> float:
        c = Collective(kind, 1, size, blocking=True, overlapped=False, groups=(tuple(range(n)),))
        return collective_seconds(c, CHIP, Layout(shape, slices))

    whole = 4 * 1e10  # two rings of a 4 x 4 torus, both ways
    assert seconds("all-gather", 16_000, 16) == pytest.approx(15_000 / whole + 4e-6)
    assert seconds("all-reduce", 16_000, 16) == pytest.approx(30_000 / whole + 4e-6)
    assert seconds("reduce-scatter", 1_000, 16) == pytest.approx(15_000 / whole + 4e-6)
    # a part of the slice has one ring
    assert seconds("all-gather", 16_000, 4) == pytest.approx(12_000 / 2e10 + 2e-6)
    assert seconds("all-gather", 16_000, 1) == 0
    assert seconds("collective-permute", 16_000, 2) == pytest.approx(16_000 / 1e10 + 1e-6)
    assert seconds("dcn all-reduce", 16_000, 2, slices=2) == 16_000 / 1e9
    unknown = Collective("all-gather", 1, 16_000, blocking=True, overlapped=False)
    assert collective_seconds(unknown, CHIP, Layout((4, 4))) == seconds("all-gather", 16_000, 16)


@pytest.mark.parametrize(
    ("group", "rings", "hops"),
    [
        (16, 2, 4),  # a plane of the 4 x 4 x 4 torus
        (4, 1, 2),  # a line
        (8, 1, 2),  # a line and half of another
        (2, 1, 1),  # half a line
        ("diagonal", 1, 2),
    ],
)
def test_a_group_uses_the_links_of_the_dimensions_that_it_fills(group, rings, hops):
    places = tuple((i // 16, i // 4 % 4, i % 4) for i in range(64))
    members = (0, 21, 42, 63) if group == "diagonal" else tuple(range(group))
    c = Collective("all-gather", 1, 64_000, blocking=True, overlapped=False, groups=(members,))
    seconds = collective_seconds(c, CHIP, Layout((4, 4, 4), places=places))
    sent = 64_000 * (len(members) - 1) / len(members)
    assert seconds == pytest.approx(sent / (rings * 2e10) + hops * 1e-6)


def test_roofline():
    work = [
        InstructionCost(
            times=3, flops=1e12, unit_flops=2e12, traffic=10**9, cycles=5, blocking=True
        ),
        InstructionCost(times=2, flops=0, unit_flops=0, traffic=10**11, cycles=0, blocking=True),
        InstructionCost(times=1, flops=0, unit_flops=0, traffic=10**11, cycles=0, blocking=False),
    ]
    moved = [
        Collective("collective-permute", 10, 10**10, blocking=False, overlapped=True),
        Collective("collective-permute", 1, 10**10, blocking=True, overlapped=False),
    ]
    found = predict(work, moved, CHIP)
    assert found.compute == pytest.approx(6)
    assert found.memory == pytest.approx(0.03 + 2 + 1)
    assert found.work == pytest.approx(3 * 2 + 2 * 1)
    assert (found.hidden, found.exposed) == (
        pytest.approx(10, abs=1e-4),
        pytest.approx(1, abs=1e-4),
    )
    assert found.step == pytest.approx(10 + 1, abs=1e-3)
    assert found.compiler is None  # the chip's clock is not known
    assert predict(work, [], CHIP).step == pytest.approx(8)
