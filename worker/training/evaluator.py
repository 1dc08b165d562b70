"""Who evaluates a student while it trains, beside its teachers; a language model's are in `language`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from app.recipe.job import JobSpec
from worker.data.batches import Batch
from worker.students.model import Model
from worker.tasks.evaluation import MAIN_METRICS, judge, predict, together
from worker.training.best import consider
from worker.training.metric_logger import diverged
from worker.training.state import TrainState


class Evaluator:
    """Evaluates students on the held-out samples; the teachers are asked once, unless they have answered before."""

    def __init__(
        self,
        job: JobSpec,
        samples: Batch,
        evaluated: Callable[[], Model],
        teachers: Mapping[str, Callable[[], Model]],
        answers: Mapping[str, Tensor],
    ) -> None:
        """`answers` (N, C), on the CPU, are those of teachers that were asked about all `samples` before."""
        self._job, self._samples, self._judged = job, samples, evaluated
        self._teachers, self._answers = teachers, answers
        self._teacher_logits: Tensor | None = None

    @property
    def teacher_logits(self) -> Tensor | None:
        """What the teachers say together (N, C), on the CPU: several are averaged with their weights."""
        if self._teacher_logits is None and self._teachers:
            said = [self._answer(name) for name in self._teachers]
            weights = [teacher.weight for teacher in self._job.all_teachers]
            self._teacher_logits = together(said, weights, self._job.task)
        return self._teacher_logits

    def _answer(self, name: str) -> Tensor:
        if name in self._answers:
            return self._answers[name]
        model = self._teachers[name]()
        return predict(model, self._samples.inputs[model.input_key])

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Metrics of the student as it is now, by their name in the job's metrics; raises UserError (`nan_loss`)."""
        logits = predict(evaluated := self._judged(), self._samples.inputs[state.student.input_key])
        if not bool(logits.isfinite().all()):
            raise diverged(f"the logits of held-out samples are not finite after step {state.step}", state.step)
        job = self._job
        found = judge(job.task, logits, self._samples.targets, job.evaluation, self.teacher_logits).metrics
        consider(state, MAIN_METRICS[job.task], found, evaluated if job.evaluation.keep == "best" else None)
        return {f"eval/{name}": value for name, value in found.items()}
