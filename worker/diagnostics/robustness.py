"""Robustness: accuracy under attacks within a bound, by FGSM (1412.6572) and PGD (1706.06083).

n samples, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from app.recipe.diagnostics import Robustness
from app.recipe.plan import EVAL_BATCH
from worker.data.batches import Batch
from worker.data.randomness import derive_seed
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult
from worker.students.model import Model
from worker.tasks.prediction import evaluating
from worker.training.attacks import cross_entropy_with, fgsm, pgd, start_noise

SLACK, LEAST = 0.01, 5
"""A higher accuracy under PGD than under FGSM is reported where it is more than this share of the samples, and more
than this number of them."""


class Hits(NamedTuple):
    """Numbers of samples whose class a model predicts."""

    clean: int = 0
    fgsm: int = 0
    pgd: int = 0


class RobustnessAnalysis:
    """Figures of the student (`student`) and of every teacher, by its name."""

    def __init__(self, spec: Robustness) -> None:
        self._spec = spec

    def __call__(self, inputs: DiagnosticInputs) -> DiagnosticResult:
        assert inputs.student is not None  # given wherever a job runs diagnostics
        inputs.images_to_attack()
        samples, highest = inputs.judged.samples, inputs.student.highest_pixel
        hits = {name: self._attacked(model, highest, inputs) for name, model in inputs.models.items()}
        figures = {name: _shares(each, samples.samples) for name, each in hits.items()}
        rows = [
            {"model": name, "attack": attack, "samples": samples.samples, "right": right}
            for name, each in hits.items()
            for attack, right in each._asdict().items()
        ]
        least = max(SLACK * samples.samples, LEAST)
        doubtful = [name for name, each in hits.items() if each.pgd > each.fgsm + least]
        return DiagnosticResult(figures, rows, warnings=[_masked(name) for name in doubtful])

    def _attacked(self, model: Model, highest: float, inputs: DiagnosticInputs) -> Hits:
        found = Hits()
        with evaluating(model, differentiable=True):
            for number, batch in enumerate(inputs.judged.samples.parts(EVAL_BATCH)):
                seed = derive_seed(inputs.seed, "robustness", number)
                counts = self._batch(model, batch.to(inputs.device), highest, seed)
                found = Hits(*(before + count for before, count in zip(found, counts, strict=True)))
        return found

    def _batch(self, model: Model, batch: Batch, highest: float, seed: int) -> Hits:
        """Hits on one batch; PGD starts at points drawn by `seed`, the same for all models."""
        images, labels, spec = batch.inputs[model.input_key], batch.targets, self._spec
        noise = start_noise(spec, images.shape, highest, seed, images.device)
        raised = cross_entropy_with(labels)
        return Hits(
            _right(model, images, labels),
            _right(model, fgsm(model, images, raised, spec.bound, highest), labels),
            _right(model, pgd(model, images, raised, spec, highest, noise), labels),
        )


def _right(model: Model, images: Tensor, labels: Tensor) -> int:
    return int((model(images).argmax(-1) == labels).sum())


def _shares(hits: Hits, samples: int) -> dict[str, float]:
    shares = (count / samples for count in hits)
    return dict(zip(("accuracy", "fgsm_accuracy", "pgd_accuracy"), shares, strict=True))


def _masked(name: str) -> str:
    return (
        f"{name} is right more often under PGD than under FGSM, so its gradients may be masked, and attacks without "
        "gradients may find what these do not"
    )
