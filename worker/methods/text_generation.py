"""Steps on generated texts in place of a batch of the data."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch

from app.recipe.methods.base import FIELD
from app.recipe.methods.text_generation import TextGeneration
from worker.data.batches import Batch
from worker.data.prompts import Prompts
from worker.data.randomness import generator
from worker.errors import UserError
from worker.methods.base import Method
from worker.students.measure import Reading
from worker.tensors import IGNORED
from worker.training.flop_counter import BACKWARD
from worker.training.loop import Stage, Step, take_step
from worker.training.state import MethodState, TrainState
from worker.training.step_inputs import StepInputs

GENERATED, GENERATED_TOKENS = "written", "written_tokens"
"""Metrics of a step: 1 if it used generated texts, else 0, and generated tokens per text."""
Spec = TypeVar("Spec", bound=TextGeneration)


class GenerationCounter(MethodState):
    """Counts generated texts and their operations, over all attempts."""

    steps: int = 0
    """Optimizer steps on generated texts."""
    replaced: int = 0
    """Samples of the data that these steps replaced."""
    texts: int = 0
    tokens: int = 0
    """Generated tokens, without prompts."""
    student_flops: int = 0
    """Operations of generating, and of training on generated texts."""
    teacher_flops: int = 0
    """Operations of generating, and of outputs for generated texts."""


def counter_of(state: TrainState) -> GenerationCounter:
    """The counter of a job whose method generates texts."""
    assert isinstance(state.method, GenerationCounter)
    return state.method


class GeneratedBatches(Protocol):
    """A source of generated batches."""

    def next(self, state: TrainState) -> Batch:
        """The batch of step `state.step`, inputs and targets (N, T-1) int64; its operations are added to the
        counter."""
        ...


class GenerationMethod(Method[Spec]):
    """Base of on-policy and sequence-level distillation."""

    State: ClassVar[type[MethodState]] = GenerationCounter
    generated_by: ClassVar[Literal["student", "teacher"]]

    def step(self, stage: Stage, state: TrainState) -> Step:
        """Build the step. Teachers are run on generated texts, since cached outputs are for the data only. Raises
        Interrupted, or UserError (`invalid_job`) for teachers with another tokenizer."""
        if not self.spec.share:
            return take_step
        for name, teacher in self.inputs.teachers.items():
            if teacher.input_key != stage.input_key:
                found = f"{name!r} has another tokenizer than the student, which generated texts are tokenized by"
                raise UserError("invalid_job", f"{FIELD}: {found}; accepted: teachers with its tokenizer", FIELD)
        return self.generated_step(stage, state)

    def generated_step(self, stage: Stage, state: TrainState) -> Step:
        """Build the step of a job that generates texts; see `step`."""
        raise NotImplementedError

    @property
    def prompts(self) -> Prompts:
        """The prompts of generated texts."""
        assert self.inputs.data.prompts is not None  # the contract allows such methods for language models only
        return self.inputs.data.prompts

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        counter = counter_of(state)
        learning = (1 + BACKWARD) * self.inputs.student_flops
        student = counter.student_flops - learning * counter.replaced
        return {"student": student, "teacher": counter.teacher_flops}

    def figures(self, state: TrainState) -> dict[str, Any]:
        counter = counter_of(state)
        mean = counter.tokens / max(counter.texts, 1)
        counts = {"steps": counter.steps, "texts": counter.texts, "tokens": counter.tokens, "mean_tokens": mean}
        return {"written": {"by": self.generated_by, **counts}}


class GenerationStep:
    """A step that uses one of the generated `batches` with probability `share`, drawn from the seed.

    `generated` is the stage for generated batches; `student` and `teachers` are the costs of forward passes.
    """

    def __init__(
        self, share: float, generated: Stage, batches: GeneratedBatches, student: Reading, teachers: list[Reading]
    ) -> None:
        self._share, self._generated, self._batches = share, generated, batches
        self._student, self._teachers = student, teachers

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, torch.Tensor]:
        """See `Step`."""
        device = stage.device
        if not self._is_generated(state.step):
            return take_step(stage, state, step_inputs) | {GENERATED: torch.zeros((), device=device)}
        batch = self._batches.next(state)
        tokens = (batch.targets != IGNORED).sum() / len(batch)
        self._count(counter_of(state), batch, replaced=len(step_inputs.batch))
        micro_batches = list(batch.split(stage.recipe.accumulate))
        values = take_step(self._generated, state, StepInputs(batch, micro_batches, None))
        return values | {GENERATED: torch.ones((), device=device), GENERATED_TOKENS: tokens}

    def _is_generated(self, step: int) -> bool:
        return bool(torch.rand((), generator=generator(self._generated.seed, "written", step)) < self._share)

    def _count(self, counter: GenerationCounter, batch: Batch, replaced: int) -> None:
        count, length = batch.targets.shape
        counter.steps += 1
        counter.replaced += replaced
        counter.student_flops += (1 + BACKWARD) * count * self._student.of(length)
        counter.teacher_flops += sum(count * teacher.of(length) for teacher in self._teachers)
