"""Trains an instruction-following retriever.

    python -m inf_jax.train --config=configs/medquad_minilm.py [--config.optim.lr=2e-5 ...]

Reads the text TFRecords of `python -m data_pipeline.build` (tokenises them on first use) and writes
to `config.out_dir`: config.json, command.txt, metrics.jsonl, timing.jsonl, tensorboard/,
checkpoints/. Run again, it goes on from the newest checkpoint, bit for bit; a finished run says so
and ends. Several processes are one run (`inf_jax.hosts`): the first of them writes all files but
the checkpoints.
"""

import contextlib
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from inf_jax import checkpoint, hosts, report
from inf_jax.config import (
    ReadLog,
    check_all_read,
    check_same_run,
    command_line,
    run,
    save_resolved,
)
from inf_jax.errors import UserError
from inf_jax.loader import to_mesh
from inf_jax.training import make_training
from inf_jax.wandb_log import WandbLog, import_wandb
from inf_jax.watch import Watch, watch_options


def main(resolved: ConfigDict) -> None:
    """One training run, from its config."""
    begun = time.time()
    config = ReadLog(resolved)
    out_dir = Path(config.out_dir)
    hosts.check_shared(out_dir)
    wandb_project = config.train.wandb_project
    if wandb_project:
        import_wandb(wandb_project)  # before any long work
    lead, training = hosts.is_lead(), make_training(config)
    loader, steps = training.loader, config.train.steps
    save_every, max_nonfinite = config.train.checkpoint_every, config.optim.max_nonfinite
    log_every, prefetch = config.train.log_every, config.data.prefetch
    watching = watch_options(config)
    manager = checkpoint.make_manager(out_dir / "checkpoints", keep=config.train.keep_checkpoints)
    check_all_read(config, "", "data", "model", "loss", "optim", "train", "mesh")

    groups = loader.chunks if loader.block_i and loader.query_encoder == "attention" else 0
    here = checkpoint.Position(
        0, config.seed, loader.batch_size, loader.dataset.fingerprint, groups
    )
    if manager.latest_step() is not None:
        check_same_run(resolved, out_dir / "config.json")
    restored = checkpoint.restore(manager, training.shapes)
    if restored:
        state, position = restored
        checkpoint.check_position(position, here, manager.directory)
    else:
        state, position = training.fresh(), here
    first = position.step
    if first >= steps:
        if lead:
            print(f"{out_dir}: all {steps} steps are done, nothing to train")
        return
    log = report.NoLog()
    if lead:
        save_resolved(resolved, out_dir / "config.json")
        (out_dir / "command.txt").write_text(command_line() + "\n")
        report.banner(resolved, training, first_step=first)
        more = None
        if wandb_project:
            more = WandbLog(out_dir, project=wandb_project, config=resolved.to_dict())
        log = report.MetricsLog(out_dir, first_step=first, steps=steps, every=log_every, more=more)

    def finish(step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: value.tolist() for name, value in jax.device_get(metrics).items()}
        log.write(step, values)
        watch.finished(step, values["loss"])
        if values["skipped_in_a_row"] >= max_nonfinite:
            raise UserError(
                f"step {step}: gradients were not finite {max_nonfinite} steps in a row "
                f"(loss {values['loss']}); lower optim.lr, or look at {out_dir}/metrics.jsonl"
            )

    started, pending = time.monotonic(), None
    batches = loader.batches(first, steps, to_device=to_mesh(training.mesh), prefetch=prefetch)
    watch = Watch(
        watching,
        training,
        out_dir=out_dir,
        first=first,
        begun=begun,
        log=log,
        checkpoints=manager.all_steps,
    )
    with log, watch, contextlib.closing(batches), manager:
        for step, batch in enumerate(watch.batches(batches), first):
            with watch.step(step, under_way=pending):
                state, metrics = training.step(state, batch)
            if pending:  # the step before: the device already works on this one
                finish(*pending)
            pending = step, metrics
            if (step + 1) % save_every == 0 or step + 1 == steps:
                finish(*pending)  # a checkpoint never runs ahead of the log, or of the check
                pending = None
                with watch.saving():
                    checkpoint.save(manager, state, position._replace(step=step + 1))
    seconds = time.monotonic() - started
    if lead:
        report.summary(
            training,
            steps=steps - first,
            seconds=seconds,
            metrics=log.last,
            pace=watch.pace.run(),
        )


if __name__ == "__main__":
    run(hosts.on_all(main), __doc__)
