"""Floating-point operations of training by network, and their share of the machine's rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import mul
from typing import Any, NamedTuple

from app.recipe.job import JobSpec
from app.recipe.plan import TrainingPlan
from app.recipe.students.model import ModelConfig, TextInput
from worker.data.task_data import TaskData
from worker.machine import choose_threads
from worker.students.measure import network_cost
from worker.teachers import TeacherSource
from worker.training.peak import Peak, peak_of
from worker.training.stages import TeacherHandle
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
    sample that it is asked about. What a training method computes beyond that, or saves, it says itself. Left out is
    what the losses compute, and every evaluation.
    """

    def __init__(
        self,
        job: JobSpec,
        plan: TrainingPlan,
        student_flops: int,
        teachers: Mapping[str, TeacherCost],
        peak: Peak,
        state: TrainState,
        further: Callable[[TrainState, int], Mapping[str, int]] = lambda state, samples: {},
    ) -> None:
        """`further` gives the operations of a training method beyond these, by network (see `Method.flops`)."""
        self._plan, self._teachers, self._peak, self._further = plan, teachers, peak, further
        self._before_main = len(job.recipe.stages)
        learns = [stage.trains == "student" for stage in job.recipe.all_stages]
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
        """By network; there is no teacher's where there is no teacher."""
        step = state.step
        samples = [
            self._samples(min(step, stage.end)) - self._samples(min(step, stage.first)) for stage in self._plan.stages
        ]
        done = {"student": sum(map(mul, self._per_sample, samples))}
        if self._teachers:
            done["teacher"] = state.teacher_flops
        for name, count in self._further(state, sum(samples[self._before_main :])).items():
            done[name] = done.get(name, 0) + count
        return done

    def _samples(self, step: int) -> int:
        return self._plan.samples_until(step)


def open_flop_counter(
    job: JobSpec,
    plan: TrainingPlan,
    task: TaskData,
    teachers: Mapping[str, TeacherHandle],
    state: TrainState,
    further: Callable[[TrainState, int], Mapping[str, int]],
    processes: int,
) -> FlopCounter:
    """Chooses the threads too, which the rate depends on. Of several processes each has a share of the samples, asks
    teachers about as many as the others, and has a rate of its own."""
    device = next(state.student.parameters()).device
    flops = student_flops(task)
    samples = -(-min(plan.batch_size, plan.train_samples) // (job.recipe.accumulate * processes))
    choose_threads(samples * flops, device)
    asked = {
        name: TeacherCost(by.source, processes * network_cost(_as_asked(by.model.config, task)).flops)
        for name, by in teachers.items()
    }
    peak = peak_of(device, job.recipe.precision)
    peak = peak._replace(flops_per_second=processes * peak.flops_per_second)
    return FlopCounter(job, plan, flops, asked, peak, state, further)


def student_flops(task: TaskData) -> int:
    """Floating-point operations of the student's forward pass on one sample of the training set."""
    return network_cost(task.model).flops * task.train.rows_per_sample


def _as_asked(teacher: ModelConfig, task: TaskData) -> ModelConfig:
    """A teacher that could read longer texts than a language model's sequences, which are those that it is given."""
    given, taken = task.model.input, teacher.input
    if not teacher.predicts_tokens or not (isinstance(given, TextInput) and isinstance(taken, TextInput)):
        return teacher
    return teacher.model_copy(update={"input": taken.model_copy(update={"length": given.length})})
