"""How much arithmetic a training takes, teachers' and student's apart, and what share of the machine's rate that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from app.recipe.job import JobSpec
from app.recipe.plan import TrainingPlan
from worker.teachers import TeacherSource
from worker.training.peak import Peak
from worker.training.state import TrainState

BACKWARD = 2
"""Operations of a backward pass, in forward passes."""


class TeacherCost(NamedTuple):
    """A teacher, and what it takes to ask it."""

    source: TeacherSource
    flops: int
    """Of its forward pass on one sample."""


class FlopCounter:
    """Counts floating-point operations over the steps; made before the first step of an attempt.

    They are those of the networks' matrix products, convolutions and attention: three forward passes of the student for
    each sample that it learns from, one where only terms of the loss are trained, and one of each teacher for each
    sample that it is asked about; of texts that are written in training, what writing them and learning from them took
    (`TrainState.ledger`). What the losses compute is left out, and so is every evaluation.
    """

    def __init__(
        self,
        job: JobSpec,
        plan: TrainingPlan,
        student_flops: int,
        teachers: Mapping[str, TeacherCost],
        peak: Peak,
        state: TrainState,
    ) -> None:
        self._plan, self._teachers, self._peak = plan, teachers, peak
        learns = [stage.trains == "student" for stage in job.recipe.stages] + [True]
        self._per_sample = [student_flops * (1 + BACKWARD * learning) for learning in learns]
        self._teachers_before, self._seconds = state.teacher_flops, 0.0
        self._last = self._done(state)

    def settle(self, state: TrainState) -> None:
        """Bring what the state knows of the teachers' operations up to now."""
        asked = sum(teacher.source.answered * teacher.flops for teacher in self._teachers.values())
        state.teacher_flops = self._teachers_before + asked

    def read(self, state: TrainState, seconds: float) -> dict[str, float]:
        """Operations so far, over all attempts, and the share of the machine's rate since the last reading.

        `seconds` is the time that the steps of this attempt took until now.
        """
        self.settle(state)
        done, took = self._done(state), max(seconds - self._seconds, 1e-9)
        values = {f"train/flops/{side}": float(count) for side, count in done.items()}
        for side, count in done.items():
            values[f"train/mfu/{side}"] = (count - self._last[side]) / (took * self._peak.flops_per_second)
        self._last, self._seconds = done, seconds
        return values

    def figures(self, state: TrainState) -> dict[str, Any]:
        """For the report: operations over all attempts, and what the rates are held against."""
        told = {f"{side}_flops": count for side, count in self._done(state).items()}
        return {**told, "peak_flops_per_second": self._peak.flops_per_second, "peak": self._peak.source}

    def _done(self, state: TrainState) -> dict[str, int]:
        """By side; there is no teacher's where there is no teacher."""
        step, ledger = state.step, state.ledger
        student = ledger.student_flops - self._per_sample[-1] * ledger.replaced
        student += sum(
            per_sample * (self._samples(min(step, stage.end)) - self._samples(min(step, stage.first)))
            for per_sample, stage in zip(self._per_sample, self._plan.stages, strict=True)
        )
        return {
            "student": student,
            **({"teacher": state.teacher_flops + ledger.teacher_flops} if self._teachers else {}),
        }

    def _samples(self, step: int) -> int:
        return self._plan.samples_until(step)
