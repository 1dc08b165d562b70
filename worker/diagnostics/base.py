"""What a diagnostic is given, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from worker.data.batches import Batch
from worker.students.model import Model


class HeldOutPart(NamedTuple):
    """Held-out samples, or a part of them."""

    samples: Batch
    teacher: Tensor | None = None
    """Outputs (n, C) of all teachers together, float32 on the CPU; none: there is no teacher."""


class DiagnosticInputs(NamedTuple):
    """The exported student and the samples to analyse it with."""

    predict: Callable[[Batch], Tensor]
    """Outputs (n, C) of the student for raw samples, float32 on the CPU, computed `EVAL_BATCH` samples at a time in
    evaluation mode and without TensorFloat-32."""
    judged: HeldOutPart
    """All figures are measured on these."""
    fitted: HeldOutPart | None
    """What is fitted is fitted on these, which neither the student has learnt from nor the figures are measured on;
    none for a kind that fits nothing."""
    seed: int
    """Of the job; decides whatever is drawn."""
    device: torch.device
    """Where the student computes."""
    student: Model | None = None
    """The exported student itself, for analyses that need more than its outputs; none: only `predict` is there."""
    teachers: Mapping[str, Model] = {}
    """Teachers by name, loaded from their files."""


class DiagnosticResult(NamedTuple):
    """What an analysis has found."""

    figures: Mapping[str, Mapping[str, float]]
    """Numbers by name, for each column of a table."""
    table: Sequence[Mapping[str, Any]] = ()
    """Rows of further numbers, for programs."""
    draw: Callable[[Path], None] | None = None
    """Writes a PNG; none: there is no picture."""
    warnings: Sequence[str] = ()
    """What puts figures in doubt."""


class DiagnosticAnalysis(Protocol):
    """One kind of diagnostic, with the options of its spec. It changes neither weights nor mode of the student."""

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        """Analyse the student; raises `NotComputable` where these samples or outputs don't allow it."""
        ...


class NotComputable(Exception):
    """A diagnostic can't be computed on the given samples; the message, which is for the report, says why."""
