"""The search for the fastest form of a step that fits, on a made-up cost."""

import pytest

from inf_jax.core.errors import UserError
from inf_jax.planning.advice import KEYS, flags, search_fastest

START = dict(zip(KEYS, ("full", 1, True, 2, "auto", 256), strict=True))
MEMORY = {"none": 64, "dots": 24, "ffn": 14, "sums": 8, "full": 4}
SECONDS = {"none": 3.0, "dots": 3.3, "ffn": 3.5, "sums": 3.8, "full": 4.0}


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

    limits = {"most_chunks": 16, "most_fsdp": 8, "longest": 128}
    trials = search_fastest(planned, START, **limits)
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
    limits = {"most_chunks": 1, "most_fsdp": 2, "longest": 256}
    trials = search_fastest(lambda f: plan_of(f, limit=1), START, **limits)
    assert [t.fits for t in trials] == [False] * 5
    assert {flags(t, START) for t in trials} >= {"", "--config.model.remat=none"}
    kept = search_fastest(
        lambda f: plan_of(f, limit=12),
        START,
        most_chunks=16,
        most_fsdp=2,
        longest=256,
        keep_chunks=True,
    )
    assert {t.overrides["train.chunks_per_device"] for t in kept} == {1}
