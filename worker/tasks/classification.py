"""Classification of images, tables or texts into one class per sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.plan import EVAL_BATCH
from app.recipe.students.model import ModelConfig
from worker.data.batches import Batch
from worker.data.formats.column_readers import ClassColumns
from worker.data.formats.columns import Samples
from worker.data.holdout import hold_out
from worker.data.label_notes import class_notes
from worker.data.labels import class_targets, find_classes
from worker.data.task_data import Targets, TaskData
from worker.metrics import classification as metrics
from worker.metrics.permutation import moved_classes, permuted_hits
from worker.students.model import Model
from worker.tasks.base import ClassRow, Evaluation, Figures, Metrics, ReportInputs
from worker.tasks.card import ClassCard
from worker.tasks.codebook import codebook_figures
from worker.tasks.moved import listed_moves
from worker.tasks.prediction import mixture_of_logits, predict
from worker.tasks.samples import SampleTask

LISTED_CLASSES = 1000
"""With more classes than this, the table of classes is left out."""


class Classification(SampleTask):
    """Targets (N,) int64, outputs logits (N, C) floating."""

    def __init__(self, name: str, *, texts: bool = False) -> None:
        """`texts`: inputs are texts, also if they could be read as numbers."""
        self.name, self.columns = name, ClassColumns(name, texts=texts)
        self.card = ClassCard(name, "tabular-classification")

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        classes = find_classes(job, teachers, samples)
        read = {param: class_targets(one, classes, job.data, param) for param, one in samples.items()}
        return Targets.about(classes, read)

    def hold_out(self, train: Batch, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Numbers (n,) int64 of the samples to train and to evaluate on, with a share of each class."""
        return hold_out(train.targets, count, seed)

    def answer(
        self,
        job: JobSpec,
        train: Batch,
        targets: Targets,
        teachers: Mapping[str, ModelConfig],
        inherited: ModelConfig | None,
    ) -> dict[str, Any]:
        return targets.class_fields()

    def label_notes(self, train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
        """Peculiarities of labels (N,) int64."""
        return class_notes(train, evaluation, model)

    def evaluate(
        self, logits: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """`accuracy`, `nll` (nats), `ece`, `adaptive_ece`, `brier` of logits (N, C) float32; likeness to the teacher's
        logits (N, C): `agreement`, `kl`."""
        labels = targets.cpu()
        found = {
            "accuracy": metrics.accuracy(logits, labels),
            "nll": metrics.negative_log_likelihood(logits, labels),
            "ece": metrics.calibration_error(logits, labels, options.ece_bins),
            "adaptive_ece": metrics.adaptive_calibration_error(logits, labels, options.ece_bins),
            "brier": metrics.brier_score(logits, labels),
        }
        found |= {} if teacher is None else self.likeness(logits, teacher)
        table = class_table(logits, labels) if logits.shape[-1] <= LISTED_CLASSES else None
        return Evaluation({name: float(value) for name, value in found.items()}, table)

    def likeness(self, logits: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """`agreement`, the share with the same likeliest class, and `kl`, the mean KL(reference || logits) in nats, of
        logits (N, C) float32."""
        return {
            "agreement": metrics.agreement(logits, reference),
            "kl": metrics.divergence(logits, reference),
        }

    def mixture(self, logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Log-probabilities (N, C) float32 of the mixture, or a single teacher's logits (N, C)."""
        return mixture_of_logits(logits, weights)

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """The most frequent class of the training samples."""
        targets, classes = data.train.targets.cpu(), data.model.classes or 0
        likeliest = int(torch.bincount(targets, minlength=classes).argmax())
        share = float((held_out.targets.cpu() == likeliest).double().mean())
        if share < 1 / classes:
            return {"accuracy": 1 / classes}, "chance"
        return {"accuracy": share}, f"always predicting {_names(data.model)[likeliest]!r}"

    def oddities(self, logits: Tensor, targets: Tensor, model: ModelConfig) -> Iterator[str]:
        """Classes whose predictions, by logits (N, C) float32, would be right in another order."""
        names, choices = _names(model), logits.argmax(-1)
        if moved := moved_classes(choices, targets):
            hits, plain, _ = permuted_hits(choices, targets, moved)
            right = int((choices == targets).sum())
            shares = f"accuracy {right / len(targets):.4g} as it is, {(right - plain + hits) / len(targets):.4g} then"
            listed = listed_moves(moved, lambda number: repr(names[number]))
            yield f"seems to have its classes in another order: {listed} ({shares})"

    def tolerances(
        self, logits: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """Two choices with close logits (N, C) float32 may swap; the NLL differs by at most twice the largest
        difference of a logit. The calibration error is left out, since it jumps at the edges of its bins."""
        best = logits.topk(2, dim=-1).values
        yield "accuracy", float((best[:, 0] - best[:, 1] <= 2 * allowed).double().mean())
        yield "nll", 2 * allowed

    def report_figures(self, inputs: ReportInputs) -> Figures:
        """The `codebook`, if the student has one; `highest_accuracy` is the share of held-out samples whose class is
        the first of its code, the only one that is chosen."""
        found = codebook_figures(inputs, lambda teacher: _logits(teacher, inputs.samples))
        if inputs.student.codebook is None:
            return {}
        codes, labels = inputs.student.codebook.codes.cpu(), inputs.samples.targets.cpu()
        first = torch.full_like(codes, len(codes)).scatter_reduce(0, codes, torch.arange(len(codes)), "amin")
        share = (first[codes[labels]] == labels).double().mean()
        return {"codebook": {**found, "highest_accuracy": float(share)}}

    def same_choice(self, logits: Tensor, live: Tensor) -> Tensor | None:
        """Share with the same likeliest class, a float64 scalar, for logits (N, C) float32."""
        return (logits.argmax(-1) == live.argmax(-1)).double().mean()


def class_table(logits: Tensor, labels: Tensor) -> list[ClassRow]:
    """Samples and accuracy of each class, for logits (N, C) float32 and labels (N,) int64."""
    samples, correct = (counts.tolist() for counts in metrics.class_counts(logits, labels))
    pairs = enumerate(zip(samples, correct, strict=True))
    return [ClassRow(number, count, hits / count if count else None) for number, (count, hits) in pairs]


def _logits(teacher: Model, samples: Batch) -> Iterator[Tensor]:
    """Its logits (n, C) float32 for some samples after the other."""
    device = next(teacher.parameters()).device
    yield from (predict(teacher, part.inputs[teacher.input_key].to(device)) for part in samples.parts(EVAL_BATCH))


def _names(model: ModelConfig) -> list[str]:
    return model.class_names or [str(number) for number in range(model.classes or 0)]


IMAGES, TEXTS = Classification("image-classification"), Classification("text-classification", texts=True)
