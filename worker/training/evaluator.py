"""Evaluates the student during training."""

from __future__ import annotations

from collections.abc import Callable

from app.recipe.job import JobSpec
from app.recipe.tasks.base import MainMetric
from worker.students.model import Model
from worker.tasks.base import NonFiniteOutputs, TaskEvaluator
from worker.training.best import update_best
from worker.training.metric_logger import diverged
from worker.training.state import TrainState


class Evaluator:
    """Evaluates the student by the task's evaluator, and stores the best epoch."""

    def __init__(self, job: JobSpec, main: MainMetric, held_out: TaskEvaluator, evaluated: Callable[[], Model]) -> None:
        """`evaluated` returns the student, or the average of its weights."""
        self._main, self._held_out, self._evaluated = main, held_out, evaluated
        self._stores_best = job.evaluation.keep == "best"

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Current metrics of the student, by their names in the job's metrics; raises UserError (`nan_loss`)."""
        model = self._evaluated()
        try:
            found = self._held_out.evaluate(model).evaluation.metrics
        except NonFiniteOutputs as error:
            raise diverged(f"{error} after step {state.step}", state.step) from None
        update_best(state, self._main, found, model if self._stores_best else None)
        return {f"eval/{name}": value for name, value in found.items()}
