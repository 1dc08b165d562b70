"""Losses on logits of codes against those on the logits of all classes, in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe.losses import CrossEntropy, Kd, Loss
from app.recipe.teachers.teacher import Teacher
from tests.worker.live_memory import peak_bytes
from worker.data.randomness import generator
from worker.losses import build_term
from worker.losses.base import LossInputs, LossTerm
from worker.losses.builder import LossBuilder
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.outputs import TeacherSignal
from worker.tensors import IGNORED

B, C, K = 6, 13, 5
CODES = torch.tensor([0, 2, 2, 0, 2, 1, 2, 0, 1, 2, 2, 2, 3])
"""The last code has no class, and the one before has one."""
SPECS: list[Loss] = [CrossEntropy(), Kd(temperature=1.0), Kd(temperature=4.0)]


def draw(columns: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(B, columns, generator=generator(seed, "logits"), dtype=torch.float64)


def both(spec: Loss) -> tuple[LossTerm, LossTerm]:
    """On codes, and on all classes."""
    return build_term(spec, LossBuilder({}, {}, C, codes=CODES)), build_term(spec, LossBuilder({}, {}, C))


def labels(kind: str) -> Tensor:
    if kind == "classes":
        return torch.tensor([0, 1, 5, 12, 7, 3])
    return torch.rand(B, C, generator=generator(1, "labels"), dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", ["classes", "shares"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 300.0])
def test_value_and_gradient_are_those_of_all_classes(spec: Loss, kind: str, scale: float) -> None:
    logits, teacher = (scale * draw(K)).requires_grad_(), draw(C, seed=1)
    teacher[0, 2:4] = -torch.inf
    coded, plain = both(spec)
    upstream = torch.linspace(0.5, 2.0, B, dtype=torch.float64)
    found = coded(LossInputs(logits, labels(kind), teacher))
    expected = plain(LossInputs(logits[:, CODES], labels(kind), teacher))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    sides = [torch.autograd.grad(each, logits, upstream)[0] for each in (found, expected)]
    torch.testing.assert_close(sides[0], sides[1], rtol=1e-10, atol=1e-11)
    assert not sides[0][:, K - 1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS)
def test_extreme_logits_stay_finite(spec: Loss, dtype: torch.dtype) -> None:
    logits = (1e4 * draw(K).sign()).to(dtype).requires_grad_()
    teacher = (1e4 * draw(C, seed=1).sign()).to(dtype)
    loss = both(spec)[0](LossInputs(logits, labels("classes"), teacher))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_an_objective_with_ignored_rows_and_two_teachers_is_that_of_all_classes() -> None:
    logits, targets = draw(K).requires_grad_(), labels("classes")
    targets[1], targets[4] = IGNORED, IGNORED
    named = [Teacher(model="m", name="one", weight=1.0), Teacher(model="n", name="other", weight=3.0)]
    signals = {each.name: TeacherSignal(draw(C, seed=place)) for place, each in enumerate(named, 1)}
    values = []
    for codes, outputs in ((CODES, logits), (None, logits[:, CODES])):
        whole = Objective([CrossEntropy(), Kd(temperature=2.0)], LossBuilder({}, {}, C, codes=codes), named, "entropy")
        values.append(whole(BatchOutputs(outputs, targets, signals), whole.count(targets)))
    torch.testing.assert_close(values[0], values[1])
    sides = [torch.autograd.grad(each[TOTAL], logits)[0] for each in values]
    torch.testing.assert_close(sides[0], sides[1])


def test_a_teacher_with_equal_logits_in_every_code_can_be_learned_exactly() -> None:
    logits = draw(K).requires_grad_()
    loss = both(Kd(temperature=2.0))[0](LossInputs(logits, labels("classes"), logits[:, CODES].detach()))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(loss.detach(), torch.zeros_like(loss), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_the_student_s_logits_of_all_classes_are_never_there() -> None:
    classes, codes = 2**14, 16
    of_classes = torch.arange(classes) % codes
    logits, targets = torch.randn(32, codes).requires_grad_(), torch.randint(0, classes, (32,))
    term = build_term(CrossEntropy(), LossBuilder({}, {}, classes, codes=of_classes))
    peak = peak_bytes(lambda: torch.autograd.grad(term(LossInputs(logits, targets, None)).sum(), logits))
    assert peak < 0.5 * 32 * classes * 4
