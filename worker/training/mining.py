"""The phase of a job in which its teacher, or the student as it starts, finds hard negatives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from app.recipe.data.mining import Mining
from app.recipe.data.sources import Table
from app.recipe.job import JobSpec
from app.recipe.plan import EVAL_BATCH
from worker.data.batches import Batch
from worker.data.mining import NO_ROW, Mined, mine, texts_of, with_negatives
from worker.data.task_data import TaskData
from worker.distributed.ranks import SingleProcess
from worker.errors import UserError
from worker.machine import sample_memory
from worker.protocol import Log, PhaseBegan, Send
from worker.students.model import Model
from worker.tasks.base import Figures
from worker.training.job_inputs import JobInputs
from worker.training.shared_vectors import from_first, shared_vectors

MESSAGES = 10
"""Most messages about the texts done."""


def mine_negatives(
    job: JobSpec, inputs: JobInputs, student: Model, send: Send, stop: Callable[[], bool], ranks: SingleProcess
) -> TaskData | None:
    """The data, with negatives that the teacher or else the student has found if the job wants them; none: `stop` has
    interrupted it. A resumed job does it again from the same models, and finds the same. Each of the `ranks` computes a
    share of the vectors, and all take what the first one finds.

    Raises UserError (`invalid_data`) if no query has a negative.
    """
    spec = job.data.mining if isinstance(job.data, Table) else None
    if spec is None:
        return inputs.data
    send(PhaseBegan(phase="mining"))
    finder, data = next(iter(inputs.teachers.values()), student), inputs.data
    samples, device = data.train, next(finder.parameters()).device
    texts, by = texts_of(samples), "student" if finder is student else "teacher"
    send(Log(message=f"the {by} searches negatives of {samples.samples} queries among {len(texts.documents)} texts"))
    vectors = _encoded(finder, samples, texts.rows, send, stop, ranks)
    if vectors is None:
        return None
    found = Mined(*(from_first(part.to(device), ranks).cpu() for part in mine(samples, texts, vectors, spec)))
    figures = _figures(by, spec, len(texts.documents), found)
    if not figures["negatives"]:
        message = f"of {figures['texts']} texts none is a negative of any query: {figures['filtered']} were filtered"
        raise UserError("invalid_data", f"data.mining: {message}; accepted: a rule that keeps some", "data.mining")
    send(Log(message=_summary(figures)))
    train = with_negatives(samples, found.rows).settle(device, sample_memory(device))
    return replace(data, train=train, numbers=None, split={**data.split, "mining": figures})


def _encoded(
    finder: Model, samples: Batch, rows: Tensor, send: Send, stop: Callable[[], bool], ranks: SingleProcess
) -> Tensor | None:
    """Vectors (T, D) float32 of these rows (T,) int64, the same on all ranks; none: `stop` has interrupted it."""
    count, logged = len(rows), 0
    vectors: list[Tensor] = []
    for begin in range(0, count, EVAL_BATCH):
        if ranks.agree(stop()):
            return None
        if begin * MESSAGES // count > logged:
            logged = begin * MESSAGES // count
            send(Log(message=f"mining: {begin} of {count} texts are encoded"))
        vectors.append(shared_vectors(finder, samples, rows[begin : begin + EVAL_BATCH], ranks))
    return torch.cat(vectors)


def _figures(finder: str, spec: Mining, documents: int, found: Mined) -> dict[str, Any]:
    negatives = (found.rows != NO_ROW).sum(1)
    return {
        "by": finder,
        "queries": len(negatives),
        "texts": documents,
        "negatives": int(negatives.sum()),
        "filtered": int(found.filtered.sum()),
        "queries_with_fewer": int((negatives < spec.count).sum()),
        "queries_without": int((negatives == 0).sum()),
    }


def _summary(figures: Figures) -> str:
    filtered = f"{figures['filtered']} were left out as probable positives"
    few = f"{figures['queries_with_fewer']} queries have fewer than wanted, {figures['queries_without']} have none"
    return f"mining: {figures['negatives']} negatives of {figures['queries']} queries were found; {filtered}; {few}"
