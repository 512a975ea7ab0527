"""Trains an instruction-following retriever.

    python -m inf_jax.train --config=medquad_minilm [--config.optim.lr=2e-5 ...]

Reads the text TFRecords of `python -m data_pipeline.build` (tokenises them on first use) and writes
to `config.out_dir`: config.json, command.txt, metrics.jsonl, timing.jsonl, tensorboard/,
checkpoints/. Started again, it resumes from the newest checkpoint, bit for bit. SIGTERM makes it
save and exit with code 143, Ctrl-C with code 130 (a second Ctrl-C ends it at once); SIGUSR1 traces
a few steps, a process that hangs exits with code 75 (`monitoring.watch`). Several processes form
one run (`distributed.cluster`); the primary one writes all files but the checkpoints.
"""

import contextlib
import time
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from inf_jax.checkpoints.saver import Saver
from inf_jax.config.command_line import command_line, run
from inf_jax.config.defaults import run_config
from inf_jax.config.resume import save_resolved
from inf_jax.config.sections import RunConfig
from inf_jax.core.cli_flags import FlagParser
from inf_jax.core.errors import UserError
from inf_jax.data.from_config import check_datasets
from inf_jax.data.loader import to_mesh
from inf_jax.data.step_shapes import index_warning
from inf_jax.distributed import coordination
from inf_jax.distributed.entry_point import run_distributed
from inf_jax.distributed.preemption import CONTINUE, STOP, PreemptionGuard
from inf_jax.io import storage
from inf_jax.monitoring.compilation import CompileCounter, use_compilation_cache
from inf_jax.monitoring.metrics_log import GROWING, MetricsLog, NoLog, of_present_sources
from inf_jax.monitoring.wandb_log import WandbLog, import_wandb
from inf_jax.monitoring.watch import Watch, watching_start
from inf_jax.training.automatic import settle_keys
from inf_jax.training.banner import banner, summary, work_of
from inf_jax.training.setup import Training, make_training


def main(resolved: ConfigDict, *, resume: bool | None = None) -> None:
    """Trains one run; `resume`: whether a checkpoint must exist, None takes either.

    Raises:
      UserError: see `make_training`, `Saver`, `StepResults`.
      SystemExit: the run was asked to stop and has saved its state.
    """
    resolved = resolved.copy_and_resolve_references()  # "auto" is replaced in it
    config = run_config(resolved)
    out_dir, steps, dev_every = config.out_dir, config.train.steps, config.train.dev_every
    if config.train.wandb_project:
        import_wandb(config.train.wandb_project)
    check_datasets(config)  # raises before any long work, and before out_dir is written
    if said := index_warning(config):
        _say(f"WARNING: {said}")
    coordination.check_shared(storage.as_path(out_dir), storage.check_access)
    cache = use_compilation_cache(config.train.compilation_cache, out_dir=storage.as_path(out_dir))
    with (
        CompileCounter() as compiles,
        coordination.on_primary(storage.locked(storage.as_path(out_dir))),
        PreemptionGuard(save_every_s=60 * config.train.checkpoint_minutes) as guard,
        contextlib.closing(Saver(config, resolved, resume=resume)) as saver,
        storage.WorkDir(storage.as_path(out_dir)) as work_dir,
    ):
        choice = settle_keys(resolved, dataset=saver.dataset, order=saver.order)
        config = run_config(resolved)
        training = make_training(config, expected=saver.dataset, order=saver.order)
        with watching_start(config.train, work_dir.path):
            state, first = training.start(saver)
        if first >= steps:
            _say(f"{out_dir}: all {steps} steps are done, nothing to train after {first}")
            return
        more = {"compiled so far": str(compiles), "compilation cache": cache or "none"}
        if choice:
            _say(f"auto: {choice}")
        log = start_log(config, resolved, training, saver, work_dir, more=more)
        watch = Watch(
            config.train,
            work_of(training, dims=config.loss.dims),
            out_dir=storage.as_path(out_dir),
            work_dir=work_dir.path,
            first=first,
            compiles=compiles,
            log=log,
            checkpoints=saver.checkpoints,
        )
        results = StepResults(log, saver, watch, max_nonfinite=config.optim.max_nonfinite)
        batches = training.loader.batches(
            first, steps, to_device=to_mesh(training.program.mesh), prefetch=config.data.prefetch
        )
        started, action = time.monotonic(), CONTINUE
        with log, watch, contextlib.closing(batches):
            for step, batch in enumerate(watch.timer.batches(batches), first):
                with watch.step(step, in_flight=results.pending):
                    state, metrics = training.program.step(state, batch)
                if step == first:
                    _say(f"compiled: {compiles}")
                results.finish()  # of the step before; the devices already work on this one
                done = step + 1
                if training.dev and (done % dev_every == 0 or done == steps):
                    metrics |= training.dev_metrics(state)
                action = guard.action(done)
                saving = saver.due(done, action)
                if training.scores and training.scores.due(done, saving=saving and action != STOP):
                    with watch.scoring(step, metrics):
                        metrics |= training.scores.measure(state)
                results.pending = step, metrics
                if saving:
                    results.finish()  # no checkpoint is ahead of the log and its checks
                    with watch.saving():
                        log.flush()
                        work_dir.push()
                        saver.save(state.saved, done)
                    guard.saved()
                if action == STOP:
                    break
            saver.wait()
        seconds = time.monotonic() - started
        if action == STOP and done < steps:
            _say(f"{out_dir}: asked to stop, saved after {done} of {steps} steps")
            raise SystemExit(guard.exit_code)
        if coordination.is_primary():
            pace = watch.timer.run()
            summary(training, steps=steps - first, seconds=seconds, metrics=log.last, pace=pace)
        if guard.interrupted:  # in the last step: what follows in a script does not run
            raise KeyboardInterrupt


def start_log(
    config: RunConfig,
    resolved: ConfigDict,
    training: Training,
    saver: Saver,
    work_dir: storage.WorkDir,
    *,
    more: Mapping[str, str],
) -> MetricsLog | NoLog:
    """Claims the out_dir, writes its first files, prints the banner, with `more` lines, and opens
    the log, all on the primary process alone. UserError: another run has written to the out_dir."""
    if not coordination.is_primary():
        return NoLog()
    out_dir = storage.as_path(config.out_dir)
    work_dir.claim()
    saver.check_alone()
    save_resolved(resolved, out_dir / "config.json")
    with storage.new_file(out_dir / "command.txt") as file:
        file.write(f"{command_line()}\n".encode())
    banner(config, training, first_step=saver.first_step, more=more)
    for name in GROWING:
        work_dir.pull(name)
    wandb, train = None, config.train
    if train.wandb_project:
        project, name = train.wandb_project, out_dir.name
        wandb = WandbLog(work_dir.path, project=project, name=name, config=resolved.to_dict())
    return MetricsLog(
        work_dir.path,
        first_step=saver.first_step,
        steps=train.steps,
        every=train.log_every,
        more=wandb,
    )


class StepResults:
    """Fetches a step's metrics from the devices one step late, logs and checks them; the run ends
    after `max_nonfinite` steps in a row with non-finite gradients.

    Attributes:
      pending: (step, metrics on the devices) not yet fetched; None if there are none.
    """

    def __init__(self, log: MetricsLog | NoLog, saver: Saver, watch: Watch, *, max_nonfinite: int):
        self._log, self._saver, self._watch = log, saver, watch
        self._max_nonfinite = max_nonfinite
        self.pending: tuple[int, dict[str, jax.Array]] | None = None

    def finish(self) -> None:
        """Waits for the pending metrics, logs and checks them.

        Raises:
          UserError: gradients were not finite too often, or the loss has diverged.
        """
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        on_host = jax.device_get(metrics)
        values = of_present_sources({name: value.tolist() for name, value in on_host.items()})
        self._log.write(step, values)
        self._saver.count(values)
        self._watch.finished(step, values["loss"])
        if values["skipped_in_a_row"] >= self._max_nonfinite:
            raise UserError(
                f"step {step}: gradients were not finite for {self._max_nonfinite} steps in a row "
                f"(loss {values['loss']}); lower optim.lr, or look at metrics.jsonl in the out_dir"
            )


def _say(text: str) -> None:
    if coordination.is_primary():
        print(text)


def _flags(parser: FlagParser) -> None:
    text = "require a checkpoint to resume from; --no-resume requires an out_dir without one"
    parser.add_boolean("--resume", text, default=None)


if __name__ == "__main__":
    run(run_distributed(main), __doc__, define=_flags)
