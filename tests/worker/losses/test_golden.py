"""Values and gradients against the authors' own code, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from app.recipe.losses import Kd, LossTerm, Nkd
from tests.golden import Case, cases
from worker.losses import build_term
from worker.losses.base import Rows
from worker.losses.nkd import NkdTerm


def case_ids(case: Case) -> str:
    return case.name


def evaluate(spec: LossTerm, case: Case) -> tuple[Tensor, Tensor]:
    student = case.inputs["logit_s"].clone().requires_grad_()
    labels = case.inputs.get("label", case.inputs.get("label_soft", torch.zeros(len(student), dtype=torch.int64)))
    loss = build_term(spec)(Rows(student, labels, case.inputs["logit_t"])).mean()
    loss.backward()
    assert student.grad is not None
    return loss.detach(), student.grad


def assert_gradient(case: Case, gradient: Tensor) -> None:
    expected = case.outputs["grad_logit_s"]
    large = "large_logits" in case.name  # these gradients saturate: held absolutely
    allowed = 1e-6 if large else max(1e-9 * float(expected.abs().max()), 1e-12)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=allowed)


@pytest.mark.parametrize("case", cases("kd_hinton"), ids=case_ids)
def test_kd_equals_authors_code(case: Case) -> None:
    loss, gradient = evaluate(Kd(temperature=case.hyper["temperature"]), case)
    torch.testing.assert_close(loss, case.outputs["loss"], rtol=1e-9, atol=1e-12)
    assert_gradient(case, gradient)


@pytest.mark.parametrize("case", cases("nkd"), ids=case_ids)
def test_nkd_equals_authors_code(case: Case) -> None:
    loss, gradient = evaluate(Nkd(gamma=case.hyper["gamma"], temperature=case.hyper["temp"]), case)
    torch.testing.assert_close(loss, case.outputs["loss"], rtol=1e-9, atol=1e-12)
    assert_gradient(case, gradient)


@pytest.mark.parametrize("case", [c for c in cases("nkd") if "loss_target" in c.outputs], ids=case_ids)
def test_both_parts_of_nkd_equal_authors_code(case: Case) -> None:
    gamma, temperature = case.hyper["gamma"], case.hyper["temp"]
    rows = Rows(case.inputs["logit_s"], case.inputs["label"], case.inputs["logit_t"])
    target, others = NkdTerm(Nkd(gamma=gamma, temperature=temperature)).parts(rows)
    torch.testing.assert_close(target.mean(), case.outputs["loss_target"], rtol=1e-9, atol=1e-12)
    weighted = gamma * temperature**2 * others.mean()
    torch.testing.assert_close(weighted, case.outputs["loss_nontarget"], rtol=1e-9, atol=1e-12)
