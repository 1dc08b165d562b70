"""Observes training between the steps: reports progress, evaluates the student, saves checkpoints, polls `stop`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.plan import TrainingPlan
from worker.protocol import CheckpointSaved, Metrics, Send, ShouldStop, StepProgress
from worker.training.flop_counter import FlopCounter
from worker.training.metric_logger import MetricLogger
from worker.training.state import TrainState
from worker.training.teacher_caches import TeacherCaches

SECONDS_BETWEEN_REPORTS = 0.1
CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints within the staged folder."""

Evaluate = Callable[[TrainState], dict[str, float]]


class NullMonitor:
    """The monitor of a rank other than the first: it reports nothing, and stops when the first rank does."""

    def step_done(self, state: TrainState, values: dict[str, Tensor]) -> bool:
        """See `Monitor`; never stops the loop."""
        return False


class TrainingMonitor:
    """The monitor of the first rank; its clocks start when it is created, just before the first step.

    `evaluate` returns the student's metrics by name; `folder` is the folder of the staged job; `flop_counter` counts
    the operations of teachers and student; `save` writes a checkpoint of the current state.
    """

    def __init__(
        self,
        job: JobSpec,
        plan: TrainingPlan,
        folder: Path,
        send: Send,
        stop: ShouldStop,
        evaluate: Evaluate,
        state: TrainState,
        teacher_caches: TeacherCaches,
        save: Callable[[], Path],
        flop_counter: FlopCounter,
    ) -> None:
        self._job, self._plan, self._folder = job, plan, folder
        self._send, self._stop, self._evaluate, self._teacher_caches = send, stop, evaluate, teacher_caches
        self._write, self._flop_counter, self._metric_logger, self._paused = save, flop_counter, MetricLogger(), 0.0
        self._began = self._saved_at = time.monotonic()
        self._reported = float("-inf")
        self._seconds_before, self._first = state.seconds, state.step
        self._saved_step = state.step

    def step_done(self, state: TrainState, values: dict[str, Tensor]) -> bool:
        """Called after each step with its metrics, floating scalars on the device; true stops the loop, after a
        checkpoint."""
        self._metric_logger.add(values)
        now, last = time.monotonic(), state.step == self._plan.total_steps
        state.seconds = self._seconds_before + now - self._began
        if last or now - self._reported >= SECONDS_BETWEEN_REPORTS:
            self._report(state, now)
        if not last and self._evaluation_due(state.step):
            self.evaluate(state)
        stop = self._stop()
        if stop or self._checkpoint_due(state.step):
            self.save(state)
        return stop

    def evaluate(self, state: TrainState) -> None:
        """Evaluate the current student and send its metrics."""
        with self._between_steps():
            self._send_metrics(state, self._evaluate(state))

    def save(self, state: TrainState) -> None:
        """Save a checkpoint, unless this step has one; raises if a value or a weight is not finite."""
        if self._saved_step != state.step:
            with self._between_steps():
                self._save(state)

    def _save(self, state: TrainState) -> None:
        self._metric_logger.check(state.step)
        self._flop_counter.settle(state)
        self._teacher_caches.sync()  # a resumed job needs these outputs to take the same steps
        path = self._write()
        self._saved_at, self._saved_step = time.monotonic(), state.step
        self._send(CheckpointSaved(step=state.step, path=str(path.relative_to(self._folder))))

    def _report(self, state: TrainState, now: float) -> None:
        values = {f"train/{name}": value for name, value in self._metric_logger.read(state.step).items()}
        values["train/lr"] = state.optimizer.defaults["lr"]
        for name, learner in state.learners.items():
            if learner.optimizer_spec or learner.schedule:  # else it has the student's rate
                values[f"train/{name}/lr"] = learner.optimizer.defaults["lr"]
        values |= self._teacher_caches.metrics()
        values |= self._flop_counter.read(state, now - self._began - self._paused)
        self._reported = now
        self._send_metrics(state, values)
        self._send(self._progress(state, max(now - self._began, 1e-9)))

    def _send_metrics(self, state: TrainState, values: dict[str, float]) -> None:
        state.history.add(state.step, values)
        self._send(Metrics(step=state.step, values=values))

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Exclude the time within from that of the steps."""
        begun = time.monotonic()
        yield
        self._paused += time.monotonic() - begun

    def _progress(self, state: TrainState, elapsed: float) -> StepProgress:
        plan, steps = self._plan, state.step - self._first
        return StepProgress(
            step=state.step,
            total_steps=plan.total_steps,
            epoch=plan.epoch_at(state.step),
            samples_per_second=(plan.samples_until(state.step) - plan.samples_until(self._first)) / elapsed,
            seconds_left=elapsed / steps * (plan.total_steps - state.step),
        )

    def _evaluation_due(self, step: int) -> bool:
        epoch, rest = divmod(step, self._plan.steps_per_epoch)
        return rest == 0 and epoch % self._job.evaluation.every_epochs == 0

    def _checkpoint_due(self, step: int) -> bool:
        every = self._job.recipe.checkpoint
        by_steps = every.every_steps is not None and step % every.every_steps == 0
        by_time = every.every_seconds is not None and time.monotonic() - self._saved_at >= every.every_seconds
        return by_steps or by_time
