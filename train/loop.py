"""The training loop: intervals of compiled steps, and what the host does between them.

An interval ends at the end of an epoch, at a checkpoint, at a log line or at the end of the run; in between nothing
leaves the device. Everything that decides how the run goes on (early stopping, plateau, best model) is in the
checkpoint.
"""

import io
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dl_core.data import describe
from dl_core.errors import UsageError
from dl_core.regularization import swa_update
from train import configuration, hardening
from train.checkpoint import Checkpoints, abstract_like
from train.feed import Feed
from train.finish import finish
from train.progress import Progress
from train.run import Run, evaluate, make_feed, prepare, validation_variables
from train.state import TrainState
from train.stopping import Stopping, early_stopping
from train.trained import CONFIG_FILE, DATASET_FILE
from train.transfer import start_from_pretrained
from train.whitening import whiten_stem
from train.writers import MetricWriter

SECONDS_BETWEEN_LOOKS = 0.5


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite. The message names the step, its batch and the last good checkpoint."""


def fit(
    run: Run,
    state: TrainState,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    progress: Progress,
    workdir: pathlib.Path,
) -> tuple[TrainState, Stopping, float]:
    """Trains from the newest checkpoint, or from the start, until the steps are done or early stopping says so.

    Returns:
      The last state (global arrays), why it stopped, and the seconds of training over all restarts.

    Raises:
      NonFiniteLoss: with the step, its batch and the last good checkpoint.
    """
    config, parallel = run.config, run.parallel
    rules, seconds_before, step = early_stopping(config.early_stopping), 0.0, 0
    abstract = abstract_like(parallel.to_global(state))
    restored = checkpoints.restore(abstract, warn=progress.message)
    if restored is not None:
        global_state, host = restored
        state, step = parallel.from_global(global_state), int(global_state.step)
        rules, seconds_before = rules.restored(host["stopping"]), host["seconds"]
        progress.message(f"resumed at step {step}")
    else:
        first = start_from_pretrained(run, parallel.to_global(state), workdir, progress.message)
        state = parallel.from_global(whiten_stem(run, first))
    writer.truncate_after(step)
    started = time.monotonic()
    feed = make_feed(run, step)
    shown = time.monotonic()

    def on_step(number: int, metrics: Any) -> None:
        nonlocal shown
        if time.monotonic() - shown > SECONDS_BETWEEN_LOOKS:  # each look waits for the device
            progress.update(number + 1, {name: float(value) for name, value in parallel.metrics(metrics).items()})
            shown = time.monotonic()

    try:
        while step < run.total_steps and not rules.reason:
            end = _next_boundary(run, step)
            interval_start = time.monotonic()
            state, metrics = feed.run(state, step, end - step, on_step)
            interval = time.monotonic() - interval_start
            _require_finite(metrics, step, feed, checkpoints)
            train = {name: float(np.mean(values, dtype=np.float64)) for name, values in metrics.items()}
            train |= {"learning_rate": float(metrics["learning_rate"][-1])}
            train |= {"images_per_second": run.batch_size * (end - step) / interval}
            step = end
            seconds = seconds_before + time.monotonic() - started
            rules = rules.after_interval(step=step, loss=train["loss"], seconds=seconds)
            place = {"step": step, "epoch": step / run.steps_per_epoch}
            writer.write({"split": "train", **place, **train, "seconds": seconds})
            validation = None
            if step % run.period == 0 or step == run.total_steps or rules.reason:
                global_state, rules, validation = _validate(run, parallel.to_global(state), rules)
                seconds = seconds_before + time.monotonic() - started
                writer.write({"split": "validation", **place, **validation, "seconds": seconds})
                if trouble := hardening.warning(validation):
                    progress.message(trouble)
                host = {"stopping": rules.to_json(), "seconds": seconds}
                checkpoints.save(global_state, host, validation)
                state = parallel.from_global(global_state)
            if validation is None:
                progress.update(step, train)
            else:
                progress.epoch(-(-step // run.steps_per_epoch), train, validation, step=step)
    finally:
        feed.close()
    checkpoints.wait()
    if not rules.reason:
        rules = rules._replace(reason=f"all {run.total_steps} steps done")
    return parallel.to_global(state), rules, seconds_before + time.monotonic() - started


def _validate(run: Run, state: TrainState, rules: Stopping) -> tuple[TrainState, Stopping, dict[str, float]]:
    """Validates, and lets averaging, plateau and early stopping know; state as global arrays."""
    config = run.config
    if config.average.name == "swa" and int(state.step) >= config.average.start_epoch * run.steps_per_epoch:
        average = swa_update(state.average, state.params, state.average_count)
        state = state.replace(average=average, average_count=state.average_count + 1)
    validation, _ = evaluate(run, validation_variables(run, state), run.dataset.validation)
    if config.plateau.factor < 1:
        _, plateau = run.plateau.update({}, state.plateau, value=jnp.float32(validation["loss"]))
        state = state.replace(plateau=plateau)
    return state, rules.after_validation(validation["loss"]), validation


def _next_boundary(run: Run, step: int) -> int:
    periods = [run.steps_per_epoch, run.period]
    if run.config.log_every:
        periods.append(run.config.log_every)
    return min(run.total_steps, *((step // period + 1) * period for period in periods))


def _require_finite(metrics: Any, first_step: int, feed: Feed, checkpoints: Checkpoints) -> None:
    losses = metrics["loss"]
    # the norm tells of a step that spoiled the parameters after a finite loss
    bad = np.flatnonzero(~(np.isfinite(losses) & np.isfinite(metrics["parameter_norm"])))
    if len(bad) == 0:
        return
    step = first_step + int(bad[0])
    checkpoints.wait()
    good = checkpoints.latest_step()
    rows = ", ".join(map(str, feed.rows(step)[:8]))
    raise NonFiniteLoss(
        f"the loss is {losses[bad[0]]} and the norm of the parameters {metrics['parameter_norm'][bad[0]]} "
        f"at step {step} (training examples {rows}, …); "
        + (f"the last good checkpoint is step {good}" if good is not None else "there is no checkpoint yet")
        + "; try a smaller learning rate or clipping (--config.optimizer.clip_norm=1)"
    )


def train_and_evaluate(
    config: Any, workdir: str | pathlib.Path, *, resume: bool = False, fold: int = 0, stream: Any = None
) -> dict[str, Any]:
    """Trains what a config names, evaluates it on the test split and leaves everything in a folder.

    Args:
      config: resolved and validated, see `train.configuration`.
      workdir: gets config.json, dataset.json, metrics.jsonl, checkpoints/, weights/, report.html and summary.json.
      resume: go on from the newest readable checkpoint in the workdir.
      fold: which fold is the validation split; for `train.folds`.
      stream: where progress is printed; standard output by default.

    Returns:
      What `summary.json` holds.

    Raises:
      UsageError: something in the config cannot be, or the workdir holds a run already.
      NonFiniteLoss: see there.
    """
    workdir = pathlib.Path(workdir)
    if config.parallel.process_id == 0 and (workdir / CONFIG_FILE).exists() and not resume:
        raise UsageError(f"{str(workdir)!r} holds a run already; go on with --resume, or choose another --workdir")
    run, state = prepare(config, fold=fold)
    first_process = jax.process_index() == 0
    workdir.mkdir(parents=True, exist_ok=True)
    if first_process:
        (workdir / CONFIG_FILE).write_text(configuration.to_json(config), encoding="utf-8")
        (workdir / DATASET_FILE).write_text(json.dumps(run.info._asdict(), indent=2) + "\n", encoding="utf-8")
    quiet = io.StringIO()
    progress = Progress(run.total_steps, run.steps_per_epoch, run.batch_size, stream=stream if first_process else quiet)
    progress.message(describe(run.dataset))
    checkpoints = Checkpoints(workdir / "checkpoints", rank=run.task.rank, keep=config.checkpoint.keep)
    writer = MetricWriter(workdir, enabled=first_process)
    try:
        state, stopped, seconds = fit(run, state, checkpoints, writer, progress, workdir)
        progress.close()
        writer.close()
        return finish(run, state, checkpoints, workdir, stopped=stopped, seconds=seconds)
    finally:
        progress.close()
        writer.close()
        checkpoints.close()
