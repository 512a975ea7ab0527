"""The data record stored in a checkpoint, and its check on resume."""

from pathlib import Path
from typing import NamedTuple

from inf_jax.core.errors import UserError


class ResumeInfo(NamedTuple):
    """Where a run continues, and what the order of its data depends on.

    Attributes:
      step: the next step to do.
      seed, batch_size: of the order.
      dataset: fingerprint of the tokenised dataset.
      groups: chunks of a step where a chunk's rows are each other's negatives (block I with the
        query encoder "attention"), else 0.
      frozen: `integrity.fingerprint` of the frozen parameters, which are not saved; "" for none.
      order: of the examples, a key of `data.example_order.ORDERS`; a checkpoint without it is of a
        run that began with order 1.
      start: fingerprint of what the run began with: the backbone's weights, or the checkpoint of
        model.start_from (`manager.Saved`). "" in runs of versions that did not record it.
      start_step: step of that checkpoint; None for a backbone.
      mixture: of sources, `data.mixture.order.Mixing` as text; "" for one source. `dataset` then
        has the fingerprints of all, with + between them.
      teacher: of loss.teacher, WEIGHTS-SETTINGS as of `run_model.teacher_fingerprint`; of versions
        that recorded no settings WEIGHTS alone; "" for none.
    """

    step: int
    seed: int
    batch_size: int
    dataset: str
    groups: int = 0
    frozen: str = ""
    order: int = 1
    start: str = ""
    start_step: int | None = None
    mixture: str = ""
    teacher: str = ""


def check_same_data(saved: ResumeInfo, now: ResumeInfo, directory: str | Path) -> None:
    """Raises UserError where the checkpoint's run read other data, or in another order."""
    differ = [
        f"{name}: {getattr(saved, name)} in the checkpoint, {getattr(now, name)} now"
        for name in ("seed", "batch_size", "dataset", "groups", "order", "mixture")
        if getattr(saved, name) != getattr(now, name)
    ]
    if differ:
        raise UserError(
            f"{directory}: cannot resume, order or negatives would change ({'; '.join(differ)}); "
            "restore the old values or give a new out_dir"
        )


def check_start(saved: ResumeInfo, start: str, source: str) -> None:
    """Raises UserError where `source` now has other weights than those that the run began with."""
    if saved.start and saved.start != start:
        raise UserError(
            f"{source}: its weights are no longer those that the run began with (fingerprint "
            f"{saved.start}, now {start}); restore the old ones. To evaluate without them, name an "
            "eval.json that has the scores of the start: eval.base_from"
        )


def check_frozen(saved: ResumeInfo, frozen: str, directory: str | Path) -> None:
    """Raises UserError where the frozen parameters are not those that the run began with."""
    if saved.frozen != frozen:
        raise UserError(
            f"{directory}: frozen parameters are not saved, and those that model.name or "
            f"model.start_from gives now are not what the run began with (fingerprint "
            f"{saved.frozen or 'none'}, now {frozen or 'none'}); restore the old weights, or give "
            "a new out_dir"
        )


def check_same_teacher(saved: ResumeInfo, teacher: str, name: str) -> None:
    """Raises UserError where loss.teacher, `name`, is not the one that the run began with."""
    was, _, settings = saved.teacher.partition("-")
    now, _, others = teacher.partition("-")
    if was == now and (settings == others or not settings):
        return
    which = "is not the teacher that the run began with"
    if was == now:
        which += ": the same weights, but another pooling, mask or architecture"
    raise UserError(
        f"loss.teacher={name!r}: {which} (fingerprint {saved.teacher or 'none'}, now "
        f"{teacher or 'none'}); restore the old one (of a run, whose newest checkpoint is taken, "
        "name OUT_DIR/checkpoints/STEP), or give a new out_dir"
    )
