"""Steps that learn from generated texts in the place of a batch of the data."""

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
"""Metrics of a step: 1 where it learned from generated texts and 0 elsewhere, and generated tokens per text."""
Spec = TypeVar("Spec", bound=TextGeneration)


class GenerationCounter(MethodState):
    """What was generated for training, and what that took, over all attempts."""

    steps: int = 0
    """Optimizer steps that learned from generated texts."""
    replaced: int = 0
    """Samples of the data that these steps would have learned from."""
    texts: int = 0
    tokens: int = 0
    """Of the texts, without their prompts."""
    student_flops: int = 0
    """Of generating, and of learning from what was generated."""
    teacher_flops: int = 0
    """Of generating, and of answers about what was generated."""


def counter_of(state: TrainState) -> GenerationCounter:
    """The counter of a job whose method generates texts."""
    assert isinstance(state.method, GenerationCounter)
    return state.method


class GeneratedBatches(Protocol):
    """A source of generated batches."""

    def next(self, state: TrainState) -> Batch:
        """The batch of step `state.step`; what making it took is added to the counter."""
        ...


class GenerationMethod(Method[Spec]):
    """What on-policy and sequence-level distillation have in common."""

    State: ClassVar[type[MethodState]] = GenerationCounter
    generated_by: ClassVar[Literal["student", "teacher"]]

    def step(self, stage: Stage, state: TrainState) -> Step:
        """Teachers are asked anew about generated texts: whatever is kept of their answers is about the data. Raises
        Interrupted, or UserError (`invalid_job`) for teachers that read other tokens."""
        if not self.spec.share:
            return take_step
        for name, teacher in self.inputs.teachers.items():
            if teacher.input_key != stage.input_key:
                found = f"{name!r} reads other tokens than the student, and generated ones are the student's"
                raise UserError("invalid_job", f"{FIELD}: {found}; accepted: teachers with its tokenizer", FIELD)
        return self.generated_step(stage, state)

    def generated_step(self, stage: Stage, state: TrainState) -> Step:
        """As `step`, where there is something to generate."""
        raise NotImplementedError

    @property
    def prompts(self) -> Prompts:
        """What texts are generated after."""
        assert self.inputs.data.prompts is not None  # the contract has such methods for language models alone
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
    """The step of a training that learns from generated `batches` for a share of its steps, drawn from the seed.

    `generated` is the stage that a generated batch is learned in; `student` and `teachers` say what reading takes.
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
        parts = list(batch.split(stage.recipe.accumulate))
        values = take_step(self._generated, state, StepInputs(batch, parts, None))
        return values | {GENERATED: torch.ones((), device=device), GENERATED_TOKENS: tokens}

    def _is_generated(self, step: int) -> bool:
        return bool(torch.rand((), generator=generator(self._generated.seed, "written", step)) < self._share)

    def _count(self, counter: GenerationCounter, batch: Batch, replaced: int) -> None:
        count, length = batch.targets.shape
        counter.steps += 1
        counter.replaced += replaced
        counter.student_flops += (1 + BACKWARD) * count * self._student.of(length)
        counter.teacher_flops += sum(count * teacher.of(length) for teacher in self._teachers)
