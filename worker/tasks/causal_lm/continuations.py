"""Continuations of held-out texts by student and teachers, for the report."""

from __future__ import annotations

from typing import Any

import torch

from app.recipe.job import EvaluationSpec
from app.recipe.students.model import TextInput
from worker.data.batches import ROWS, Batch
from worker.data.tokens import TextTokenizer
from worker.students.decoding import greedy_continuation
from worker.students.model import Model
from worker.tasks.base import Figures, ReportInputs


def continuations(inputs: ReportInputs) -> list[Figures]:
    """For each of the first held-out texts: the `prompt`, its true continuation (`held_out`), and the greedy
    continuations by `student` and teachers, by their names."""
    options, reader = inputs.job.evaluation, inputs.tokenizer
    if not options.prompts:
        return []
    assert reader is not None  # a language model has one
    samples = inputs.samples.between(0, options.prompts).to(torch.device("cpu"))
    texts = samples.inputs[inputs.student.input_key]
    begin, count = _lengths(options, texts.shape[1])
    models = {"student": inputs.student, **inputs.teachers}
    same = {name: model for name, model in models.items() if name not in inputs.tokenizers}
    tokens = {"held_out": texts[:, : begin + count]}
    tokens |= {name: greedy_continuation(model.cpu(), texts[:, :begin], count) for name, model in same.items()}
    found = {name: [_until_end(reader, row[begin:].tolist()) for row in rows] for name, rows in tokens.items()}
    for name, tokenizer in inputs.tokenizers.items():
        found[name] = _with_own_tokenizer(models[name].cpu(), tokenizer, samples, options)
    prompts = [reader.text(row[:begin].tolist()) for row in texts]
    return [
        {"prompt": prompt, **{name: rows[number] for name, rows in found.items()}}
        for number, prompt in enumerate(prompts)
    ]


def _with_own_tokenizer(teacher: Model, reader: TextTokenizer, samples: Batch, options: EvaluationSpec) -> list[str]:
    """Continuations by a teacher with another tokenizer, after its last token within the prompt, which may end some
    characters earlier."""
    texts, places = samples.inputs[teacher.input_key], samples.inputs[ROWS + teacher.input_key]
    begin, count = _lengths(options, places.shape[1])
    found = []
    for text, last in zip(texts, places[:, :begin].amax(1).clamp(min=0).tolist(), strict=True):
        prompt = text[: last + 1].unsqueeze(0)
        most = min(count, _context(teacher) - last - 1)
        found.append(_until_end(reader, greedy_continuation(teacher, prompt, most)[0, last + 1 :].tolist()))
    return found


def _context(model: Model) -> int:
    """Length of the model's context, in tokens."""
    assert isinstance(model.config.input, TextInput)
    return model.config.input.length


def _lengths(options: EvaluationSpec, length: int) -> tuple[int, int]:
    """Tokens of a prompt, and of its continuation, in sequences of `length`."""
    begin = min(options.prompt_tokens, max(1, length // 2))
    return begin, min(options.new_tokens, length - begin)


def _until_end(reader: TextTokenizer, ids: list[int]) -> str:
    end: Any = reader.end
    return reader.text(ids[: ids.index(end)] if end in ids else ids)
