"""Counts the floating-point operations of training by network, and their share of the machine's rate."""

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
from worker.training.dual_encoder import label_flops
from worker.training.peak import Peak, peak_of
from worker.training.stages import TeacherHandle
from worker.training.state import TrainState

BACKWARD = 2
"""Operations of a backward pass, in forward passes."""


class TeacherCost(NamedTuple):
    """A teacher, and the cost of its forward pass."""

    source: TeacherSource
    flops: int
    """Operations of its forward pass on one sample."""


class FlopCounter:
    """Counts floating-point operations over the steps; created before the first step of an attempt.

    Counted are the networks' matrix products, convolutions and attention: three forward passes of the student for each
    sample that it learns from, one if only terms of the loss are trained, and one of each teacher for each sample that
    it is run on; of a dual encoder also the labels in every step. A training method adds what it computes beyond that,
    or saves. Losses, evaluations and pools of hard negatives are left out.
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
        frozen_flops: int = 0,
        per_step: int = 0,
    ) -> None:
        """`further` returns the operations of a training method beyond these, by network (see `Method.flops`). Of the
        student's, `frozen_flops` have no backward pass; `per_step` are those of the student in a step beside its
        samples' (see `label_flops`)."""
        self._plan, self._teachers, self._peak, self._further = plan, teachers, peak, further
        self._before_main = len(job.recipe.stages)
        trains_student = [stage.trains == "student" for stage in job.recipe.all_stages]
        self.counts_steps = per_step > 0
        """Whether the student's operations are not those of its samples alone."""
        self._per_step = [per_step * trains for trains in trains_student]
        learning = student_flops - frozen_flops
        self._per_sample = [student_flops + BACKWARD * learning * trains for trains in trains_student]
        self._teachers_before, self._seconds = state.teacher_flops, 0.0
        self._last = self._done(state)

    def settle(self, state: TrainState) -> None:
        """Update the teachers' operations in the state."""
        computed = sum(teacher.source.computed_samples * teacher.flops for teacher in self._teachers.values())
        state.teacher_flops = self._teachers_before + computed

    def read(self, state: TrainState, seconds: float) -> dict[str, float]:
        """Operations so far, over all attempts, and the share of the machine's rate since the last call.

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
        """Figures for the report: operations over all attempts, and the machine's rate that they are compared with."""
        counts = {f"{side}_flops": count for side, count in self._done(state).items()}
        return {**counts, "peak_flops_per_second": self._peak.flops_per_second, "peak": self._peak.source}

    def total(self, state: TrainState) -> int:
        """Operations of all networks, over all attempts."""
        return sum(self._done(state).values())

    def _done(self, state: TrainState) -> dict[str, int]:
        """Operations by network; without an entry for teachers if there are none."""
        step = state.step
        steps = [min(step, stage.end) - min(step, stage.first) for stage in self._plan.stages]
        samples = [
            self._samples(min(step, stage.end)) - self._samples(min(step, stage.first)) for stage in self._plan.stages
        ]
        done = {"student": sum(map(mul, self._per_sample, samples)) + sum(map(mul, self._per_step, steps))}
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
    """Build the counter; also chooses the number of threads, which the rate depends on.

    Of several `processes`, each has an equal share of the samples and of the teachers' samples, and its own rate.
    """
    device = next(state.student.parameters()).device
    flops = student_flops(task, job.recipe.views)
    samples = -(-min(plan.batch_size, plan.train_samples) // (job.recipe.accumulate * processes))
    choose_threads(samples * flops, device)
    costs = {
        name: TeacherCost(by.source, processes * network_cost(_at_task_length(by.model.config, task)).flops)
        for name, by in teachers.items()
    }
    peak = peak_of(device, job.recipe.precision)
    peak = peak._replace(flops_per_second=processes * peak.flops_per_second)
    frozen = network_cost(task.model).frozen_flops * job.recipe.views
    per_step = label_flops(state.student, job) * job.recipe.accumulate * processes
    return FlopCounter(job, plan, flops, costs, peak, state, further, frozen, per_step)


def student_flops(task: TaskData, views: int = 1) -> int:
    """Floating-point operations of the student's forward pass on one sample of the training set, in all its views."""
    return network_cost(task.model).flops * task.train.rows_per_sample * views


def _at_task_length(teacher: ModelConfig, task: TaskData) -> ModelConfig:
    """Config of a language model with the length of the task's sequences, which may be shorter than its own."""
    task_input, own_input = task.model.input, teacher.input
    if not teacher.predicts_tokens or not (isinstance(task_input, TextInput) and isinstance(own_input, TextInput)):
        return teacher
    return teacher.model_copy(update={"input": own_input.model_copy(update={"length": task_input.length})})
