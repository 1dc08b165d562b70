"""Looks on between the steps: tells how training goes, has the student evaluated, saves checkpoints, minds `stop`."""

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
    """The watch of a rank that isn't the first: it has nothing to tell, and leaves when the first one does."""

    def step_done(self, state: TrainState, values: dict[str, Tensor]) -> bool:
        """Never asks to leave."""
        return False


class TrainingMonitor:
    """The loop's watch; its clocks start when it is made, just before the first step.

    `evaluate` gives the student's metrics by name; `folder` is where the job was staged; `memories` are the
    teachers', `account` counts what they and the student compute; `save` writes a checkpoint of the state as it is.
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
        account: FlopCounter,
    ) -> None:
        self._job, self._plan, self._folder = job, plan, folder
        self._send, self._stop, self._evaluate, self._memories = send, stop, evaluate, teacher_caches
        self._write, self._account, self._meter, self._apart = save, account, MetricLogger(), 0.0
        self._began = self._saved_at = time.monotonic()
        self._reported = float("-inf")
        self._seconds_before, self._first = state.seconds, state.step
        self._saved_step = state.step

    def step_done(self, state: TrainState, values: dict[str, Tensor]) -> bool:
        """Called after each step with what it measured; true asks the loop to leave, after a checkpoint."""
        self._meter.add(values)
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
        """Have the student evaluated as it is now, and tell its metrics."""
        with self._between_steps():
            self._tell(state, self._evaluate(state))

    def save(self, state: TrainState) -> None:
        """Save a checkpoint, unless this step has one; never one of weights that a bad step has spoilt."""
        if self._saved_step != state.step:
            with self._between_steps():
                self._save(state)

    def _save(self, state: TrainState) -> None:
        self._meter.check(state.step)
        self._account.settle(state)
        self._memories.sync()  # what a resumed job needs to take the same steps
        path = self._write()
        self._saved_at, self._saved_step = time.monotonic(), state.step
        self._send(CheckpointSaved(step=state.step, path=str(path.relative_to(self._folder))))

    def _report(self, state: TrainState, now: float) -> None:
        values = {f"train/{name}": value for name, value in self._meter.read(state.step).items()}
        values["train/lr"] = state.optimizer.defaults["lr"]
        values |= self._memories.metrics()
        values |= self._account.read(state, now - self._began - self._apart)
        self._reported = now
        self._tell(state, values)
        self._send(self._progress(state, max(now - self._began, 1e-9)))

    def _tell(self, state: TrainState, values: dict[str, float]) -> None:
        state.history.add(state.step, values)
        self._send(Metrics(step=state.step, values=values))

    @contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Time spent within is no time of the steps."""
        begun = time.monotonic()
        yield
        self._apart += time.monotonic() - begun

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
