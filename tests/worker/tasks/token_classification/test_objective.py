"""Losses of a tagger: those of the words that count, as if they were a batch of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from app.recipe.losses import LOSSES, Dist, KdRel, LossSpec
from app.recipe.losses.features import FeatureTerm
from app.recipe.tasks import TASKS
from app.recipe.teachers.teacher import Teacher
from tests.worker.losses.samples import CLASSES, PARENTS
from worker.losses.builder import LossBuilder
from worker.losses.objective import BatchOutputs, Objective
from worker.outputs import TeacherSignal
from worker.tasks.token_classification.objective import WordObjective
from worker.tensors import IGNORED

TASK = TASKS["token-classification"]
ON_LOGITS = [kind for kind in LOSSES if TASK.fits(kind) and not issubclass(kind, FeatureTerm)]
SPECS: list[Any] = [KdRel(parents=PARENTS) if kind is KdRel else kind() for kind in ON_LOGITS]
TEXTS, TOKENS = 4, 6
TEACHERS = [Teacher(model="a", name="one", weight=3.0), Teacher(model="b", name="other", weight=1.0)]


class Drawn:
    """Logits (B, S, C) of a student and two teachers, and targets (B, S) with ignored tokens."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        shape = (TEXTS, TOKENS, CLASSES)
        draws = (2.0 * torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(3))
        self.student, *self.teachers = draws
        self.student.requires_grad_()
        self.targets = torch.randint(CLASSES, (TEXTS, TOKENS), generator=random)
        self.targets[torch.rand(TEXTS, TOKENS, generator=random) < 0.4] = IGNORED
        self.head = torch.randn(CLASSES, 3, generator=random, dtype=torch.float64)

    def seen(self, rows: slice = slice(None)) -> BatchOutputs:
        signals = self._signals([teacher[rows] for teacher in self.teachers])
        return BatchOutputs(self.student[rows], self.targets[rows], signals)

    def words(self) -> BatchOutputs:
        """The tokens that count, as rows."""
        counts = self.targets != IGNORED
        signals = self._signals([teacher[counts] for teacher in self.teachers])
        return BatchOutputs(self.student[counts], self.targets[counts], signals)

    def _signals(self, teachers: list[Tensor]) -> dict[str, TeacherSignal]:
        return {each.name: TeacherSignal(said, self.head) for each, said in zip(TEACHERS, teachers, strict=True)}


def objective(kind: type[Objective], spec: LossSpec, **more: Any) -> Objective:
    return kind([spec], LossBuilder({}, {}, CLASSES), TEACHERS, **more)  # type: ignore[list-item]


def values(of: Objective, seen: BatchOutputs, count: Tensor) -> Tensor:
    return of(seen, count)["loss"]


@pytest.mark.parametrize("weighting", ["fixed", "entropy"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_a_loss_is_the_mean_over_the_words(spec: LossSpec, weighting: str) -> None:
    drawn = Drawn()
    tagger, plain = (objective(kind, spec, weighting=weighting) for kind in (WordObjective, Objective))
    count = tagger.count(drawn.targets)
    assert int(count) == int((drawn.targets != IGNORED).sum())
    found = values(tagger, drawn.seen(), count)
    torch.testing.assert_close(found, values(plain, drawn.words(), count), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found, drawn.student)
    ignored = drawn.targets == IGNORED
    assert not gradient[ignored].any()
    assert gradient[~ignored].any(-1).all()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_parts_of_a_batch_add_up(spec: LossSpec) -> None:
    drawn, tagger = Drawn(), objective(WordObjective, spec)
    count = tagger.count(drawn.targets)
    parts = sum(values(tagger, drawn.seen(rows), count) for rows in (slice(0, 1), slice(1, TEXTS)))
    torch.testing.assert_close(parts, values(tagger, drawn.seen(), count), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_a_batch_without_words_gives_zero(spec: LossSpec) -> None:
    drawn, tagger = Drawn(), objective(WordObjective, spec)
    drawn.targets[:] = IGNORED
    found = values(tagger, drawn.seen(), tagger.count(drawn.targets))
    assert float(found.detach()) == 0.0
    assert not torch.autograd.grad(found, drawn.student)[0].any()


def test_losses_that_look_at_more_than_a_row_are_for_other_tasks() -> None:
    assert not TASK.fits(Dist)
    fitting = {spec.kind for spec in SPECS}
    assert {"cross-entropy", "kd", "nkd", "dkd", "jsd", "akl", "kd-sim", "kd-topk", "kd-rel"} <= fitting
    assert not fitting & {"uld", "ferkd", "uskd", "mse", "contrastive"}
