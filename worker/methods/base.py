"""Base of all training methods, and what they are built from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from app.recipe.job import JobSpec
from app.recipe.methods.base import MethodSpec
from worker.data.task_data import TaskData
from worker.protocol import CachePlace, Send, ShouldStop
from worker.students.model import Model
from worker.training.loop import Stage, Step
from worker.training.state import Learner, MethodState, TrainState

Spec = TypeVar("Spec", bound=MethodSpec)


class Interrupted(Exception):
    """Asked to stop before all that training needs was made."""


class MethodInputs(NamedTuple):
    """What a method is built from, before the first step of an attempt."""

    job: JobSpec
    data: TaskData
    """Samples on their device."""
    student: Model
    student_flops: int
    """Floating-point operations of the student's forward pass on one sample of the training set."""
    teachers: Mapping[str, Model]
    """By their names."""
    folders: Mapping[str, Path]
    """Of the teachers' files."""
    cache: CachePlace
    """Where teachers' texts are kept."""
    seed: int
    send: Send
    stop: ShouldStop


class Method(ABC, Generic[Spec]):
    """How the main training of a job takes its steps.

    What it trains and keeps beside the student it names here, once: DDP, FSDP, moving averages, optimizers, learning
    rates and checkpoints take it from there.
    """

    State: ClassVar[type[MethodState]] = MethodState
    """Numbers that it keeps over all attempts."""

    def __init__(self, spec: Spec, inputs: MethodInputs) -> None:
        self.spec, self.inputs = spec, inputs

    def learners(self) -> dict[str, Learner]:
        """Networks that it trains beside the student, by their names, as they are before the first step."""
        return {}

    @abstractmethod
    def step(self, stage: Stage, state: TrainState) -> Step:
        """What takes the steps of `stage`, from `state` as an attempt finds it. Raises Interrupted, or UserError."""

    def arrange(self, stages: list[Stage]) -> list[Stage]:
        """All stages of the job, with what it changes about those of the main training. Raises UserError."""
        return stages

    def begin(self, stage: Stage, state: TrainState) -> None:
        """See `BeginStage`."""

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        """Floating-point operations over all attempts, by network, that are more (or fewer) than those of the student
        and its teachers on `samples` of the data, which is how many the main training's steps have had."""
        return {}

    def figures(self, state: TrainState) -> dict[str, Any]:
        """For the report's section about training."""
        return {}
