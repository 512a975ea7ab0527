"""The search for the fastest form of a step that fits, on a made-up cost."""

import pytest

from inf_jax.core.errors import UserError
from inf_jax.planning.advice import KEYS, SearchLimits, flags, search_fastest

START = dict(zip(KEYS, ("full", 1, True, 2, "auto", 256), strict=True))
MEMORY = {"none": 64, "dots": 24, "ffn": 14, "sums": 8, "full": 4, "offload": 3}
SECONDS = {"none": 3.0, "dots": 3.3, "ffn": 3.5, "sums": 3.8, "full": 4.0, "offload": 4.5}


def plan_of(form, *, limit, pairs=16):
    """Memory shrinks with chunks, and GradCache costs one more forward pass."""
    if form["train.chunks_per_device"] > pairs:
        raise UserError("more chunks than pairs")
    chunks = form["train.chunks_per_device"]
    needed = MEMORY[form["model.remat"]] / chunks + 8 / form["mesh.fsdp"]
    hbm = {"needed": needed, "limit": limit, "fits": needed <= limit}
    if not hbm["fits"]:
        return {"hbm": hbm}
    step = SECONDS[form["model.remat"]] + (chunks > 1) + 0.01 * chunks
    step += 0.1 * form["model.scan_layers"] + 0.01 * form["mesh.fsdp"]
    return {"hbm": hbm, "seconds": {"step": step}}


@pytest.mark.parametrize(
    "limit",
    [100, 30, 12, 9],
)
def test_fastest_that_fits(limit):
    """Exhaustive search over remat policies and chunks agrees."""
    count = []

    def planned(form):
        count.append(form)
        return plan_of(form, limit=limit)

    trials = search_fastest(planned, START, SearchLimits(16, fsdp=8, longest=128))
    forms = [
        START | {"model.remat": r, "train.chunks_per_device": 2**n}
        for r in MEMORY
        for n in range(5)
    ]
    exhaustive = [
        (plan["seconds"]["step"], form["model.remat"])
        for form in forms
        if (plan := plan_of(form, limit=limit))["hbm"]["fits"]
    ]
    assert trials[0].seconds <= min(exhaustive, default=(9e9,))[0]
    assert len(count) == len({tuple(f.values()) for f in count}) <= 32
    seconds = [t.seconds for t in trials]
    assert seconds == sorted(seconds)


def test_flags_name_what_differs_and_nothing_fits():
    limits = SearchLimits(1, fsdp=2, longest=256)
    trials = search_fastest(lambda f: plan_of(f, limit=1), START, limits)
    assert [t.fits for t in trials] == [False] * len(MEMORY)
    assert {flags(t, START) for t in trials} >= {"", "--config.model.remat=none"}
    kept = search_fastest(
        lambda f: plan_of(f, limit=12),
        START,
        SearchLimits(16, fsdp=2, longest=256),
        keys=[key for key in KEYS if key != "train.chunks_per_device"],
    )
    assert {t.overrides["train.chunks_per_device"] for t in kept} == {1}


@pytest.mark.parametrize("limit", [40, 20, 9])
def test_unrolled_layers_leave_room_for_faster_forms(limit):
    """Remat and chunks are chosen with the loop over layers, and once more without it."""

    def planned(form):
        return plan_of(form, limit=limit * (1 if form["model.scan_layers"] else 2))

    start, keys = START | {"mesh.fsdp": 1}, KEYS[:3]
    found = search_fastest(planned, start, SearchLimits(16), keys=keys)[0]
    forms = [
        start | dict(zip(keys, (remat, 2**n, scan), strict=True))
        for remat in MEMORY
        for n in range(5)
        for scan in (True, False)
    ]
    plans = [plan for form in forms if (plan := planned(form))["hbm"]["fits"]]
    assert found.seconds == min(plan["seconds"]["step"] for plan in plans)


def test_no_more_trials_than_allowed():
    count = []

    def planned(form):
        count.append(form)
        return plan_of(form, limit=30)

    assert search_fastest(planned, START, SearchLimits(16, trials=4))[0].fits and len(count) == 4
