"""Steps that learn from what a model has just written, or once wrote, in the place of a batch of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.methods.generation import OnPolicy, SequenceLevel
from app.recipe.methods.generation_rules import FIELD, judges
from app.recipe.teachers.cache import NoCache
from worker.bundle.report import Figures
from worker.data.batches import Batch, Batches
from worker.data.prompts import Prompts
from worker.data.randomness import generator
from worker.errors import UserError
from worker.methods.sampler import Author, as_batch
from worker.methods.sequence_generator import Scribe, Send, Stop
from worker.protocol import CachePlace, Log
from worker.students.decoding import Written
from worker.students.measure import Reading, reading
from worker.students.model import Model
from worker.teachers.digests import digest_folder
from worker.tensors import IGNORED
from worker.training.flop_counter import BACKWARD
from worker.training.loop import Stage, take_step
from worker.training.stages import teach
from worker.training.state import TrainState
from worker.training.step_inputs import StepInputs

TEXTS = "texts"
"""Folder of what a teacher wrote, within that of its job, where the machine keeps no answers for all."""
SHARE, TOKENS = "written", "written_tokens"
"""Measures of a step: whether it learned from what was written, and tokens of a text."""


class Pages(Protocol):
    """Where written batches come from."""

    def batch(self, state: TrainState) -> Batch:
        """The one for the next step; what making it took is added to the ledger."""
        ...


class OwnPages:
    """Written by the student as it is at that step."""

    def __init__(self, author: Author, cost: Reading, prompts: Prompts, input_key: str, size: int, seed: int) -> None:
        self._author, self._cost, self._view = author, cost, input_key
        self._prompts = Batches(prompts.samples, size, seed)

    def batch(self, state: TrainState) -> Batch:
        """See `Pages`; a pure function of the student's weights, the seed and the step."""
        prompts, ledger = self._prompts.at(state.step), state.ledger
        text = self._author.write(state.student, self._cost, prompts, "student", state.step)
        ledger.student_flops += text.flops
        ledger.texts += len(prompts)
        ledger.tokens += int(text.written.own.sum())
        return as_batch(text.written, self._view)


class KeptPages:
    """Of texts that were written before."""

    def __init__(self, texts: Batch, size: int, seed: int) -> None:
        self._texts = Batches(texts, size, seed)

    def batch(self, state: TrainState) -> Batch:
        """See `Pages`."""
        return self._texts.at(state.step)


class Interrupted(Exception):
    """Asked to stop before a teacher had written all that training needs."""


class WrittenSteps:
    """The step of a training that learns from `pages` for a share of its steps, drawn from the seed step by step.

    `written` is the training with what a written batch is learned by; `student` and `teachers` say what reading takes.
    """

    def __init__(self, share: float, written: Stage, pages: Pages, student: Reading, teachers: list[Reading]) -> None:
        self._share, self._written, self._pages = share, written, pages
        self._student, self._teachers = student, teachers

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
        """See `Step`."""
        device = stage.device
        if not self._is_written(state.step):
            return take_step(stage, state, step_inputs) | {SHARE: torch.zeros((), device=device)}
        page = self._pages.batch(state)
        tokens = (page.targets != IGNORED).sum() / len(page)
        self._note(state, page, replaced=len(step_inputs.batch))
        parts = list(page.split(stage.recipe.accumulate))
        return take_step(self._written, state, StepInputs(page, parts, None)) | {
            SHARE: torch.ones((), device=device),
            TOKENS: tokens,
        }

    def _is_written(self, step: int) -> bool:
        return bool(torch.rand((), generator=generator(self._written.seed, "written", step)) < self._share)

    def _note(self, state: TrainState, page: Batch, replaced: int) -> None:
        count, length = page.targets.shape
        state.ledger.steps += 1
        state.ledger.replaced += replaced
        state.ledger.student_flops += (1 + BACKWARD) * count * self._student.of(length)
        state.ledger.teacher_flops += sum(count * teacher.of(length) for teacher in self._teachers)


class Opening(NamedTuple):
    """What written steps are made of."""

    job: JobSpec
    prompts: Prompts
    teachers: Mapping[str, Model]
    """By their names."""
    folders: Mapping[str, Path]
    """Of the teachers' files."""
    place: CachePlace
    """Where a teacher's texts are kept."""

    def steps(self, stage: Stage, state: TrainState, send: Send, stop: Stop) -> WrittenSteps | None:
        """Of a main training, once a teacher has written what it is to write; none: nothing is to be written.

        Teachers are asked anew about what is written: whatever is kept of their answers is about the data. Raises
        Interrupted, or UserError (`invalid_job`) for teachers that read other tokens.
        """
        wanted = self.job.recipe.generation
        if wanted is None or not wanted.share:
            return None
        self._require_same_tokens(stage.input_key)
        student = state.student.config
        write = partial(Author, wanted, self.prompts, student.outputs, stage.seed)
        cost, size = reading(student), stage.recipe.batch_size
        if isinstance(wanted, SequenceLevel):
            texts = self._texts(wanted, write, stage, state, send, stop)
            pages: Pages = KeptPages(as_batch(texts, stage.input_key), size, stage.seed)
            objective = stage.objective
        else:
            author = write(autocast=stage.recipe.precision == "bf16")
            pages = OwnPages(author, cost, self.prompts, stage.input_key, size, stage.seed)
            objective = stage.objective.only(judges)
        asked = {name: self.teachers[name] for name in sorted(objective.teachers)}
        live = {name: teach(model, self.job, name).source for name, model in asked.items()}
        costs = [reading(model.config) for model in asked.values()]
        written = replace(stage, objective=objective, teachers=live)
        return WrittenSteps(wanted.share, written, pages, cost, costs)

    def _require_same_tokens(self, input_key: str) -> None:
        others = [name for name, model in self.teachers.items() if model.input_key != input_key]
        if others:
            told = f"{FIELD}: {others[0]!r} reads other tokens than the student, and what is written are the student's"
            raise UserError("invalid_job", f"{told}; accepted: teachers with its tokenizer, or null", FIELD)

    def _texts(
        self,
        wanted: SequenceLevel,
        write: Callable[..., Author],
        stage: Stage,
        state: TrainState,
        send: Send,
        stop: Stop,
    ) -> Written:
        """What the teacher wrote, on the device; it leaves that if training does not ask it."""
        name = wanted.writer or next(iter(self.teachers))
        model, own = self.teachers[name].to(stage.device), self.job.teacher_named(name).precision
        author = write(autocast=own is None and stage.recipe.precision == "bf16")
        about = wanted.model_dump(exclude={"share", "writer"}) | {
            "teacher": digest_folder(self.folders[name]),
            "vocabulary": state.student.config.outputs,
            "arithmetic": f"{own or stage.recipe.precision} on {stage.device.type}",
            "seed": stage.seed,
        }
        scribe = Scribe(author, model, reading(model.config), self.prompts, wanted.new_tokens, self.place, send)
        corpus = scribe.write(about, stop)
        if corpus is None:
            raise Interrupted
        if name not in stage.objective.teachers:
            model.cpu()
        ledger, fresh = state.ledger, corpus.written.own
        ledger.texts, ledger.tokens = len(fresh), int(fresh.sum())
        ledger.teacher_flops += corpus.flops
        send(Log(message=f"{name!r} has written {ledger.tokens:,} tokens in {ledger.texts:,} texts"))
        return corpus.written


def place_of(job: JobSpec, shared: CachePlace | None, folder: Path) -> CachePlace:
    """Where texts are kept: with what all jobs keep of their teachers, or for this job alone in its folder."""
    if shared is None or isinstance(job.teacher_cache, NoCache):
        return CachePlace(folder=str(folder / TEXTS))
    return shared


def figures(job: JobSpec, state: TrainState) -> Figures:
    """For the report; empty where nothing is written."""
    wanted, ledger = job.recipe.generation, state.ledger
    if wanted is None:
        return {}
    by = "student" if isinstance(wanted, OnPolicy) else "teacher"
    mean = ledger.tokens / max(ledger.texts, 1)
    counts = {"steps": ledger.steps, "texts": ledger.texts, "tokens": ledger.tokens, "mean_tokens": mean}
    return {"written": {"by": by, **counts}}
