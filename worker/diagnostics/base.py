"""Inputs and results of diagnostics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from worker.data.batches import Batch
from worker.students.model import Model
from worker.tensors import IGNORED

STUDENT = "student"
"""Column of the student."""


class HeldOutPart(NamedTuple):
    """All held-out samples, or a subset."""

    samples: Batch
    teacher: Tensor | None = None
    """Outputs (n, C) float32 of the teachers' mixture, on the CPU; none: there is no teacher."""

    @property
    def labels(self) -> Tensor:
        """Targets (n,) int64, or (n, C), on the CPU, of all rows that there are outputs of: those that aren't
        ignored."""
        targets = self.samples.targets.cpu()
        return targets[targets != IGNORED] if targets.dtype == torch.int64 else targets

    @property
    def rows_of_samples(self) -> Tensor:
        """How many of those rows each sample has (N,) int64."""
        targets = self.samples.targets.cpu()
        counted = targets != IGNORED if targets.dtype == torch.int64 else torch.ones(len(targets), dtype=torch.bool)
        return counted.reshape(self.samples.samples, -1).sum(1)


class DiagnosticInputs(NamedTuple):
    """The exported student and the samples to analyse it on."""

    predict: Callable[[Batch], Tensor]
    """Outputs (n, C) of the student for the rows of raw samples that aren't ignored, float32 on the CPU, computed
    `EVAL_BATCH` samples at a time in evaluation mode and without TensorFloat-32."""
    judged: HeldOutPart
    """Samples on which all figures are measured."""
    fitted: HeldOutPart | None
    """Samples for fitting, which the student was not trained on and no figures are measured on; none for a kind that
    fits nothing."""
    seed: int
    """Seed of the job, for all draws."""
    device: torch.device
    """Device of the student."""
    student: Model | None = None
    """The exported student itself, for analyses that need more than its outputs; none: only `predict` is given."""
    teachers: Mapping[str, Model] = {}
    """Teachers by name, loaded from their files."""
    train: Batch | None = None
    """Training samples as they are, without augmentation; none: only held-out ones are given."""
    further: Mapping[str, Batch] = {}
    """Samples of the files that the diagnostic's fields name, by field."""

    @property
    def models(self) -> dict[str, Model]:
        """The student as `student`, and every teacher by its name, unless that is taken; on the device."""
        assert self.student is not None  # given wherever a job runs diagnostics
        teachers = {name if name != STUDENT else f"teacher {name}": each for name, each in self.teachers.items()}
        return {name: each.to(self.device) for name, each in {STUDENT: self.student, **teachers}.items()}

    def images_to_attack(self) -> Tensor:
        """The images of the samples to measure on; raises `NotComputable` if their range of pixels is not known."""
        assert self.student is not None  # given wherever a job runs diagnostics
        images, highest = self.judged.samples.inputs[self.student.input_key], self.student.highest_pixel
        if not self.student.in_pixel_range(images):
            raise NotComputable(f"held-out images have pixels outside of 0 to {highest:g}, so that no range is known")
        return images


class DiagnosticResult(NamedTuple):
    """Result of an analysis."""

    figures: Mapping[str, Mapping[str, float]]
    """Numbers by name, for each column of a table."""
    table: Sequence[Mapping[str, Any]] = ()
    """Rows of further numbers, for programs."""
    draw: Callable[[Path], None] | None = None
    """Writes a PNG; none: there is no picture."""
    warnings: Sequence[str] = ()
    """Reasons to doubt figures."""


class DiagnosticAnalysis(Protocol):
    """One kind of diagnostic, with the options of its spec. It changes neither weights nor mode of the student."""

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        """Analyse the student; raises `NotComputable` where these samples or outputs don't allow it."""
        ...


class NotComputable(Exception):
    """A diagnostic can't be computed on the given samples; the message has the reason, for the report."""
