"""Sequence-level distillation: batches of texts that a teacher has generated before training."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from app.recipe.methods.sequence_level import SequenceLevel
from worker.data.batches import Batch, Batches
from worker.methods.base import Interrupted
from worker.methods.sampler import Sampler, as_batch
from worker.methods.sequence_generator import SequenceGenerator
from worker.methods.text_generation import GenerationMethod, GenerationStep, counter_of
from worker.protocol import Log
from worker.students.decoding import Generation
from worker.students.measure import reading
from worker.teachers.digests import digest_folder
from worker.training.loop import Stage, Step
from worker.training.stages import open_teacher
from worker.training.state import TrainState


class SequenceLevelMethod(GenerationMethod[SequenceLevel]):
    """See `SequenceLevel`."""

    generated_by: ClassVar[Literal["student", "teacher"]] = "teacher"

    def generated_step(self, stage: Stage, state: TrainState) -> Step:
        texts = as_batch(self._generate(stage, state), stage.input_key)
        batches = TeacherBatches(texts, stage.recipe.batch_size, stage.seed)
        teachers = {name: self.inputs.teachers[name] for name in sorted(stage.objective.teachers)}
        live = {name: open_teacher(model, self.inputs.job, name).source for name, model in teachers.items()}
        costs = [reading(model.config) for model in teachers.values()]
        cost = reading(self.inputs.student.config)
        return GenerationStep(self.spec.share, replace(stage, teachers=live), batches, cost, costs)

    def _generate(self, stage: Stage, state: TrainState) -> Generation:
        """All texts, on the device; the teacher is moved to the CPU if training does not use it."""
        spec, inputs, vocabulary = self.spec, self.inputs, self.inputs.student.config.outputs
        name = spec.writer or next(iter(inputs.teachers))
        model, precision = inputs.teachers[name].to(stage.device), inputs.job.teacher_named(name).precision
        autocast = precision is None and stage.recipe.precision == "bf16"
        settings = spec.model_dump(exclude={"share", "writer"}) | {
            "teacher": digest_folder(inputs.folders[name]),
            "vocabulary": vocabulary,
            "arithmetic": f"{precision or stage.recipe.precision} on {stage.device.type}",
            "seed": stage.seed,
        }
        sampler = Sampler(spec, self.prompts, vocabulary, stage.seed, autocast=autocast)
        generator = SequenceGenerator(
            sampler, model, reading(model.config), self.prompts, spec.new_tokens, inputs.cache, inputs.send
        )
        dataset = generator.generate(settings, inputs.stop)
        if dataset is None:
            raise Interrupted
        if name not in stage.objective.teachers:
            model.cpu()
        counter, generated = counter_of(state), dataset.generation.generated
        counter.texts, counter.tokens = len(generated), int(generated.sum())
        counter.teacher_flops += dataset.flops
        inputs.send(Log(message=f"{name!r} has generated {counter.tokens:,} tokens in {counter.texts:,} texts"))
        return dataset.generation


class TeacherBatches:
    """Batches of texts that were generated before training."""

    def __init__(self, texts: Batch, size: int, seed: int) -> None:
        self._texts = Batches(texts, size, seed)

    def next(self, state: TrainState) -> Batch:
        """See `GeneratedBatches`."""
        return self._texts.at(state.step)
