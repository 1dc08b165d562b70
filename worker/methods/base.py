"""Base of all training methods, and their inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import nn

from app.recipe.job import JobSpec
from app.recipe.methods.base import MethodSpec
from worker.data.task_data import TaskData
from worker.protocol import CachePlace, Send, ShouldStop
from worker.students.model import Model
from worker.training.loop import Stage, Step
from worker.training.state import Learner, MethodState, TrainState

Spec = TypeVar("Spec", bound=MethodSpec)


class Interrupted(Exception):
    """A request to stop was received before the inputs of training were complete."""


Latency = Callable[[Model], float]
"""Measures the median time, in milliseconds, that an exported model takes for one sample."""


class Outcome(NamedTuple):
    """What a method adds to the bundle of a trained job."""

    student: Model | None = None
    """The model that is exported; none: the trained student."""
    figures: Mapping[str, Any] = {}
    """Figures for the report's section on training."""
    write: Callable[[Path], Sequence[str]] = lambda folder: ()
    """Writes further files into the folder of the bundle, and returns their names."""


class MethodInputs(NamedTuple):
    """Inputs from which a method is built, before the first step of an attempt."""

    job: JobSpec
    data: TaskData
    """Samples, on their device."""
    student: Model
    student_flops: int
    """Floating-point operations of the student's forward pass on one sample of the training set."""
    teachers: Mapping[str, Model]
    """Teachers by name."""
    folders: Mapping[str, Path]
    """Folders of the teachers' files, by name."""
    cache: CachePlace
    """Place of the cache for texts that teachers generate."""
    seed: int
    send: Send
    stop: ShouldStop


class Method(ABC, Generic[Spec]):
    """Takes the steps of the main training of a job.

    `learners`, `modules`, `untrained_modules` and `State` define what it has beside the student; DDP, FSDP, moving
    averages, optimizers, learning rates and checkpoints use these definitions.
    """

    State: ClassVar[type[MethodState]] = MethodState
    """Class of its counters over all attempts."""

    def __init__(self, spec: Spec, inputs: MethodInputs) -> None:
        self.spec, self.inputs = spec, inputs

    def learners(self) -> dict[str, Learner]:
        """Networks that it trains beside the student, by name, in their state before the first step."""
        return {}

    def modules(self) -> dict[str, nn.Module]:
        """Modules of its own that learn with the student in the main training, by name; called after `learners`."""
        return {}

    def untrained_modules(self) -> dict[str, nn.Module]:
        """Modules of its own that change without gradients, such as averages of weights, by name; called after
        `modules`, when these are on the device."""
        return {}

    @abstractmethod
    def step(self, stage: Stage, state: TrainState) -> Step:
        """Build the step of `stage`; `state` is the initial one of this attempt. Raises Interrupted, or UserError."""

    def arrange(self, stages: list[Stage]) -> list[Stage]:
        """All stages of the job, with what it changes about those of the main training. Raises UserError."""
        return stages

    def begin(self, stage: Stage, state: TrainState) -> None:
        """See `BeginStage`."""

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        """Floating-point operations over all attempts, by network, beyond (or below) those of the student and its
        teachers on `samples` of the data, the number that the main training's steps have used."""
        return {}

    def conclude(self, stage: Stage, state: TrainState, latency: Latency) -> Outcome:
        """Called once after the last step and evaluation, by the first process alone; raises Interrupted."""
        return Outcome()

    def figures(self, state: TrainState) -> dict[str, Any]:
        """Figures for the report's section on training."""
        return {}
