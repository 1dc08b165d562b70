"""The student's forward pass in training: eager, compiled, or compiled and replayed as CUDA graphs.

A graph writes to fixed memory, which the next run overwrites. So graphs are used only if losses use the student's
outputs alone and a batch is one micro-batch: then a step has one forward pass, and no later pass overwrites it.
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
    """The function that runs `student` in the steps of `job`; see `Stage.forward` for its tensors."""
    forward = _forward(student)
    if not job.recipe.compile:
        return forward
    return graphed(student) if suits_graphs(student, job, device) else torch.compile(forward)


def _forward(student: Model) -> Forward:
    if student.config.predicts_tokens:
        return student.forward_hidden
    return student if student.codebook is None else student.forward_codes


def suits_graphs(student: Model, job: JobSpec, device: torch.device) -> bool:
    """Whether every step runs the student once, with recurring shapes, and uses its outputs only."""
    uses_activations = any(term.taps().student for terms in job.objectives.values() for term in terms)
    trains_terms = any(stage.trains == "terms" for stage in job.recipe.stages)
    single_pass = job.recipe.accumulate == 1 and not uses_activations and not trains_terms
    whole_outputs = not student.config.predicts_tokens and student.codebook is None
    return device.type == "cuda" and whole_outputs and single_pass


def graphed(student: Model) -> Forward:
    """The student compiled to CUDA graphs, for each of the two batch sizes of an epoch; outputs (B, C) floating."""
    compiled = torch.compile(student, mode="reduce-overhead", dynamic=False)

    def forward(samples: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        outputs: Tensor = compiled(samples)
        return outputs

    return forward
