"""Trains an instruction-following retriever.

    python -m inf_jax.train --config=configs/medquad_minilm.py [--config.optim.lr=2e-5 ...]

Reads the text TFRecords of `python -m data_pipeline.build` (tokenises them on first use) and writes
to `config.out_dir`: config.json, command.txt, metrics.jsonl, timing.jsonl, tensorboard/,
checkpoints/. Run again, it goes on from the newest checkpoint, bit for bit; a finished run says so
and ends. SIGTERM makes it save and end with exit code 143, SIGUSR1 traces a few steps, and a
process that hangs ends with exit code 75 (`monitoring.watch`). Several processes are one run
(`inf_jax.distributed.cluster`): the primary one writes all files but the checkpoints.

Options, beside --config and --config.KEY=VALUE:
  --resume      there must be a checkpoint to go on from
  --noresume    there must be none
"""

import contextlib
import time

import jax
from absl import flags
from ml_collections import ConfigDict

from inf_jax.checkpoints.saver import Saver
from inf_jax.config.command_line import command_line, run
from inf_jax.config.defaults import run_config
from inf_jax.config.resume import save_resolved
from inf_jax.core.errors import UserError
from inf_jax.data.loader import to_mesh
from inf_jax.distributed import coordination, preemption
from inf_jax.distributed.entry_point import run_distributed
from inf_jax.io import storage
from inf_jax.monitoring import metrics_log as report
from inf_jax.monitoring.wandb_log import WandbLog, import_wandb
from inf_jax.monitoring.watch import Watch, watching_start
from inf_jax.training.banner import banner, summary, work_of
from inf_jax.training.setup import make_training


def main(resolved: ConfigDict, *, resume: bool | None = None) -> None:
    """One training run, from its config; `resume` as on the command line, None is neither."""
    begun, config = time.time(), run_config(resolved)
    out_dir, primary = storage.as_path(config.out_dir), coordination.is_primary()
    minutes, wandb_project = config.train.checkpoint_minutes, config.train.wandb_project
    watching = config.train
    if wandb_project:
        import_wandb(wandb_project)  # before any long work
    coordination.check_shared(out_dir, storage.check)
    with (
        coordination.on_primary(storage.locked(out_dir)),
        preemption.PreemptionGuard(save_every_s=60 * minutes) as guard,
        contextlib.closing(Saver(config, resolved, resume=resume)) as saver,
        storage.WorkDir(out_dir) as work,
    ):
        training = make_training(config, expected=saver.dataset)
        loader, steps = training.loader, config.train.steps
        max_nonfinite, dev_every = config.optim.max_nonfinite, config.train.dev_every
        log_every, prefetch = config.train.log_every, config.data.prefetch

        with watching_start(watching, work.path):
            state, first = training.start(saver)
        if first >= steps:
            if primary:
                print(f"{out_dir}: all {steps} steps are done, nothing to train after {first}")
            return
        log = report.NoLog()
        if primary:
            work.claim()
            saver.check_alone()
            save_resolved(resolved, out_dir / "config.json")
            with storage.new_file(out_dir / "command.txt") as file:
                file.write(f"{command_line()}\n".encode())
            banner(config, training, first_step=first)
            for name in report.GROWING:
                work.pull(name)
            more = None
            if wandb_project:
                more = WandbLog(
                    work.path,
                    project=wandb_project,
                    name=out_dir.name,
                    config=resolved.to_dict(),
                )
            log = report.MetricsLog(
                work.path, first_step=first, steps=steps, every=log_every, more=more
            )
        watch = Watch(
            watching,
            work_of(training, dims=config.loss.dims),
            out_dir=out_dir,
            work_dir=work.path,
            first=first,
            begun=begun,
            log=log,
            checkpoints=saver.checkpoints,
        )

        def finish(step: int, metrics: dict[str, jax.Array]) -> None:
            values = {name: value.tolist() for name, value in jax.device_get(metrics).items()}
            log.write(step, values)
            saver.count(values)
            watch.finished(step, values["loss"])
            if values["skipped_in_a_row"] >= max_nonfinite:
                raise UserError(
                    f"step {step}: gradients were not finite {max_nonfinite} steps in a row "
                    f"(loss {values['loss']}); lower optim.lr, or look at {out_dir}/metrics.jsonl"
                )

        started, pending, action = time.monotonic(), None, preemption.CONTINUE
        batches = loader.batches(first, steps, to_device=to_mesh(training.mesh), prefetch=prefetch)
        with log, watch, contextlib.closing(batches):
            for step, batch in enumerate(watch.batches(batches), first):
                with watch.step(step, in_flight=pending):
                    state, metrics = training.step(state, batch)
                if pending:  # the step before: the device already works on this one
                    finish(*pending)
                done = step + 1
                if training.dev and (done % dev_every == 0 or done == steps):
                    metrics |= training.dev(state)
                pending = step, metrics
                action = guard.action(done)
                if saver.due(done, action):
                    finish(*pending)  # a checkpoint never runs ahead of the log, or of the check
                    pending = None
                    with watch.saving():
                        log.flush()
                        work.push()
                        saver.save(state.saved, done)
                    guard.saved()
                if action == preemption.STOP:
                    break
            saver.wait()
        seconds = time.monotonic() - started
        if action == preemption.STOP and done < steps:
            if primary:
                print(f"{out_dir}: asked to stop, saved after {done} of {steps} steps")
            raise SystemExit(preemption.STOPPED)
        if primary:
            summary(
                training,
                steps=steps - first,
                seconds=seconds,
                metrics=log.last,
                pace=watch.timer.run(),
            )


def _flags(values: flags.FlagValues) -> None:
    flags.DEFINE_boolean("resume", None, "There must be a checkpoint.", flag_values=values)


if __name__ == "__main__":
    run(run_distributed(main), __doc__, define=_flags)
