"""The student as training runs it: as it is, compiled, or compiled and replayed as CUDA graphs.

A graph repeats its launches on memory of its own, which the next run overwrites. So it is for students of which nothing
is looked at but the answer, and whose batch is one micro-batch: then a step has one run, and nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from app.recipe.job import JobSpec
from worker.outputs import HiddenStates
from worker.students.model import Model

Forward = Callable[[Tensor], Tensor | HiddenStates]


def training_forward(student: Model, job: JobSpec, device: torch.device) -> Forward:
    """Runs `student` in the steps of `job`."""
    look = student.forward_hidden if student.config.predicts_tokens else student
    if not job.recipe.compile:
        return look
    return graphed(student) if suits_graphs(student, job, device) else torch.compile(look)


def suits_graphs(student: Model, job: JobSpec, device: torch.device) -> bool:
    """Whether every step runs the student once, with shapes that come again, and looks at its answer alone."""
    looks_inside = any(term.taps().student for terms in job.objectives.values() for term in terms)
    trains_terms = any(stage.trains == "terms" for stage in job.recipe.stages)
    alone = job.recipe.accumulate == 1 and not looks_inside and not trains_terms
    return device.type == "cuda" and not student.config.predicts_tokens and alone


def graphed(student: Model) -> Forward:
    """Compiled for the two sizes of batches that an epoch has, each of which becomes graphs of its own."""
    compiled = torch.compile(student, mode="reduce-overhead", dynamic=False)

    def forward(samples: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        outputs: Tensor = compiled(samples)
        return outputs

    return forward
