"""Similarity of decision boundaries (1805.05532), by the moves that take samples to them.

n samples, C classes, P pairs of a sample and a class that it is moved to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from app.recipe.diagnostics import DecisionBoundary
from app.recipe.plan import EVAL_BATCH
from worker.data.batches import Batch
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult, NotComputable
from worker.students.boundary import ComputeLogits, SearchSettings, search_boundary, search_settings
from worker.students.model import Model
from worker.tasks.prediction import evaluating

FEW = 30
"""Pairs; figures of fewer are in doubt."""


class Moves(NamedTuple):
    """Pairs of which both networks' moves arrived, each once; all are on the CPU."""

    classes: Tensor
    """(P,) int64, of the samples."""
    magnitude: Tensor
    """(P,) float64: the shorter move's length divided by the longer one's."""
    angle: Tensor
    """(P,) float64: cosine of the angle between the two moves."""
    samples: int
    """Samples that both classify correctly."""
    tried: int
    """Pairs that were tried."""
    by_teacher: int
    by_student: int
    """Pairs of which the move through this one arrived."""


class DecisionBoundaryAnalysis:
    """Figures for each teacher, by its name.

    A sample x is looked at if student and teacher both predict its label y. For each class k of the teacher's likeliest
    others it is moved by `search_boundary` from y towards k, once by the teacher's logits and once by the student's. A
    move arrives if that network predicts k in the end; pairs (x, k) count if both do. With v_t and v_s the differences
    between the moved and the original sample, `magnitude_similarity` is the mean over these pairs of
    min(|v_t|, |v_s|) / max(|v_t|, |v_s|), and `angle_similarity` that of v_t v_s / (|v_t| |v_s|).

    All moves are made in what the student's network is given: of its size, in its normalised units. The teacher reads
    the pixels that these stand for through its own preprocessing.
    """

    def __init__(self, spec: DecisionBoundary) -> None:
        self._spec = spec

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        assert inputs.student is not None  # whoever runs diagnostics on images has it
        student, samples = inputs.student, inputs.judged.samples
        if self._spec.clip is None and not student.in_pixel_range(samples.inputs[student.input_key]):
            highest = f"{student.highest_pixel:g}"
            raise NotComputable(f"held-out images have pixels outside of 0 to {highest}, and no `clip` is given")
        compared, reasons = {}, {}
        with evaluating(student.to(inputs.device), differentiable=True):
            for name, teacher in inputs.teachers.items():
                moves = self._compared(student, teacher.to(inputs.device), samples)
                if len(moves.classes):
                    compared[name] = moves
                else:
                    reasons[name] = _nothing(name, moves)
        if not compared:
            raise NotComputable("; ".join(reasons.values()))
        figures = {name: _figures(moves) for name, moves in compared.items()}
        rows = [row for name, moves in compared.items() for row in _rows(name, moves)]
        few = [
            f"only {len(each.classes)} pairs of {name}" for name, each in compared.items() if len(each.classes) < FEW
        ]
        return DiagnosticResult(figures, rows, warnings=[*reasons.values(), *few])

    def _compared(self, student: Model, teacher: Model, samples: Batch) -> Moves:
        settings = search_settings(student, self._spec.steps, self._spec.alpha, self._spec.clip)
        size = max(EVAL_BATCH // (self._spec.targets or student.config.outputs), 1)
        with evaluating(teacher, differentiable=True):
            return _joined([self._part(student, teacher, settings, part) for part in samples.parts(size)])

    def _part(self, student: Model, teacher: Model, settings: SearchSettings, part: Batch) -> Moves:
        """Of few samples, whose pairs are one batch."""

        def taught(inputs: Tensor) -> Tensor:
            logits: Tensor = teacher(student.denormalized(inputs))
            return logits

        part = part.to(settings.low.device)
        inputs, labels = student.normalized(part.inputs[student.input_key]), part.targets
        predicted = taught(inputs)
        right = (predicted.argmax(-1) == labels) & (student.forward_normalized(inputs).argmax(-1) == labels)
        inputs, labels, predicted = inputs[right], labels[right], predicted[right]
        targets = _targets(predicted, labels, self._spec.targets)
        wide, base = targets.shape[1], labels.repeat_interleave(targets.shape[1])
        starts, ends = inputs.repeat_interleave(wide, dim=0), targets.flatten()
        teachers, by_teacher = _move(taught, starts, base, ends, settings)
        students, by_student = _move(student.forward_normalized, starts, base, ends, settings)
        both = by_teacher & by_student
        lengths = torch.stack([teachers[both].norm(dim=1), students[both].norm(dim=1)])
        dot = (teachers[both] * students[both]).sum(1)
        return Moves(
            classes=base[both].cpu(),
            magnitude=(lengths.amin(0) / lengths.amax(0)).cpu(),
            angle=(dot / lengths.prod(0)).cpu(),
            samples=len(labels),
            tried=len(base),
            by_teacher=int(by_teacher.sum()),
            by_student=int(by_student.sum()),
        )


def _move(
    network: ComputeLogits, starts: Tensor, base: Tensor, targets: Tensor, settings: SearchSettings
) -> tuple[Tensor, Tensor]:
    """Differences (P, numbers of an image) float64 of the moved and the original images, and which arrived (P,)."""
    if not len(starts):  # not every network takes an empty batch
        return starts.flatten(1).double(), torch.zeros_like(base, dtype=torch.bool)
    moved = search_boundary(network, starts, base, targets, settings).inputs
    return (moved.double() - starts.double()).flatten(1), network(moved).argmax(-1) == targets


def _targets(predicted: Tensor, labels: Tensor, most: int | None) -> Tensor:
    """(n, k) int64: the likeliest classes of logits (n, C) but for the labels (n,)."""
    others = predicted.float().scatter(1, labels.unsqueeze(1), float("-inf"))
    classes = predicted.shape[1] - 1
    return others.sort(dim=1, descending=True, stable=True).indices[:, : min(most or classes, classes)]


def _joined(parts: list[Moves]) -> Moves:
    return Moves(
        classes=torch.cat([part.classes for part in parts]),
        magnitude=torch.cat([part.magnitude for part in parts]),
        angle=torch.cat([part.angle for part in parts]),
        samples=sum(part.samples for part in parts),
        tried=sum(part.tried for part in parts),
        by_teacher=sum(part.by_teacher for part in parts),
        by_student=sum(part.by_student for part in parts),
    )


def _nothing(name: str, moves: Moves) -> str:
    if not moves.samples:
        return f"the student and {name} are right together about none of the held-out samples"
    return f"none of {moves.tried} moves of held-out samples arrives both through the student and through {name}"


def _figures(moves: Moves) -> Mapping[str, float]:
    return {
        "magnitude_similarity": float(moves.magnitude.mean()),
        "angle_similarity": float(moves.angle.mean()),
        "base_samples": moves.samples,
        "pairs": len(moves.classes),
        "arrived_by_teacher": moves.by_teacher / moves.tried,
        "arrived_by_student": moves.by_student / moves.tried,
    }


def _rows(name: str, moves: Moves) -> Iterator[dict[str, Any]]:
    """By the class of the sample."""
    for number in sorted(set(moves.classes.tolist())):
        chosen = moves.classes == number
        means = {"magnitude_similarity": moves.magnitude[chosen].mean(), "angle_similarity": moves.angle[chosen].mean()}
        values = {key: float(value) for key, value in means.items()}
        yield {"teacher": name, "class": number, "pairs": int(chosen.sum()), **values}
