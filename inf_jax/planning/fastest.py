"""Looks for the fastest form of a step that fits: same objective and batch, other execution."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from inf_jax.core.choices import GATHERS, REMAT_POLICIES
from inf_jax.core.errors import UserError

_REMAT, _CHUNKS, _SCAN = "model.remat", "train.chunks_per_device", "model.scan_layers"
_FSDP, _GATHER, _ROW = "mesh.fsdp", "mesh.gather", "data.row_tokens"
KEYS = (_REMAT, _CHUNKS, _SCAN, _FSDP, _GATHER, _ROW)

Values = tuple[Any, ...]  # of KEYS


class Trial(NamedTuple):
    """One compiled form.

    Attributes:
      overrides: {key: value} of KEYS.
      plan: as of `planning.compile.make_plan`.
    """

    overrides: dict[str, Any]
    plan: dict[str, Any]

    @property
    def fits(self) -> bool:
        """Whether it fits in memory and could be costed."""
        return self.plan["hbm"]["fits"] and "seconds" in self.plan

    @property
    def seconds(self) -> float:
        """Predicted seconds of a step; infinite if it does not fit."""
        return self.plan["seconds"]["step"] if self.fits else float("inf")


def search_fastest(
    planned: Callable[[dict[str, Any]], dict[str, Any]],
    start: Mapping[str, Any],
    *,
    most_chunks: int,
    most_fsdp: int,
    longest: int,
    keep_chunks: bool = False,
) -> list[Trial]:
    """Compiled forms of a step, the fastest first, then those that do not fit.

    A compilation takes minutes, so few are tried. More chunks never need more memory and cost fill
    and passes over the weights, so each remat policy is tried with the fewest chunks that fit.
    From the best of these, one key after another is changed and what is faster is kept.

    Args:
      planned: {key: value} of KEYS -> a plan; may raise UserError for values that do not suit.
      start: the config's own values of KEYS.
      most_chunks: of a device, at least 1.
      most_fsdp: devices of a slice that may share the state.
      longest: tokens of the longest text, the least row.
      keep_chunks: the chunks are part of the objective.
    """
    tried: dict[Values, Trial | None] = {}

    def trial(overrides: Mapping[str, Any]) -> Trial | None:
        values = tuple(overrides[key] for key in KEYS)
        if values not in tried:
            try:
                tried[values] = Trial(dict(overrides), planned(dict(overrides)))
            except UserError as error:
                print(f"not tried: {error}", flush=True)
                tried[values] = None
        return tried[values]

    def fits(overrides: Mapping[str, Any]) -> bool:
        found = trial(overrides)
        return found is not None and found.fits

    for remat in REMAT_POLICIES:
        form = dict(start) | {_REMAT: remat}
        if fits(form):
            while not keep_chunks and form[_CHUNKS] > 1:
                form |= {_CHUNKS: form[_CHUNKS] // 2}
                if not fits(form):
                    break
            continue
        while not keep_chunks and 2 * form[_CHUNKS] <= most_chunks:
            form |= {_CHUNKS: 2 * form[_CHUNKS]}
            if fits(form):
                break

    def best() -> Trial | None:
        return min((t for t in tried.values() if t and t.fits), key=_seconds, default=None)

    fsdp = start[_FSDP]
    for key, values in (
        (_SCAN, (False, True)),
        (_GATHER, GATHERS[1:] if fsdp > 1 else ()),
        (_FSDP, [n for n in (fsdp // 2, 2 * fsdp) if n and most_fsdp % n == 0]),
        (_ROW, [n for n in (longest, 2 * start[_ROW]) if n != start[_ROW]]),
    ):
        found = best()
        for value in values if found else ():
            trial(found.overrides | {key: value})
    done = [t for t in tried.values() if t]
    return sorted(done, key=lambda t: (t.seconds, t.plan["hbm"]["needed"]))


def _seconds(trial: Trial) -> float:
    return trial.seconds


def flags(trial: Trial, start: Mapping[str, Any]) -> str:
    """The overrides that differ from the config's values, to copy; "" where none do."""
    changed = {k: v for k, v in trial.overrides.items() if v != start[k]}
    return " ".join(f"--config.{key}={value}" for key, value in changed.items())
