"""Losses of classifiers with the labels alone, taken through the objective as in training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from app.recipe.losses import CompSum, L2Svm, Ldr, Loss, ZLoss
from tests.golden import Case, NothingToCompare
from tests.golden.comparison import Comparison, compare, evaluate
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.comp_sum import CompSumTerm
from worker.losses.objective import BatchOutputs, Objective
from worker.losses.spherical import ZLossTerm

Comparisons = Iterator[Comparison]
TWO_CLASSES = 2


def rows_of(case: Case) -> LossInputs:
    return LossInputs(case.inputs["logits"], case.inputs["y"], None)


def zloss(case: Case) -> Comparisons:
    """The authors add up the rows."""
    hyper, rows = case.hyper, rows_of(case)
    spec = ZLoss(a=hyper["a"], b=hyper["b"])
    values = {"loss_rows": _rows(spec, rows.student, case), "loss_rows2": _rows(spec, case.inputs.get("logits2"), case)}
    for name, found in values.items():
        if found is not None and name in case.outputs:
            yield Comparison("z-loss", name, found, case.outputs[name])
    if "grad_logits" in case.outputs:
        value, gradient = _directly(spec, rows) if rows.student.shape[1] == TWO_CLASSES else evaluate([spec], rows)
        name, factor = ("loss_sum", len(rows.labels)) if "loss_sum" in case.outputs else ("loss", 1)
        yield from compare(case, "z-loss", (factor * value, factor * gradient), name, "grad_logits")


def _rows(spec: ZLoss, logits: Tensor | None, case: Case) -> Tensor | None:
    return None if logits is None else ZLossTerm(spec)(LossInputs(logits, case.inputs["y"].clamp(min=0), None))


def _directly(spec: ZLoss, rows: LossInputs) -> tuple[Tensor, Tensor]:
    """Of two classes, for which the contract refuses it."""
    student = rows.student.clone().requires_grad_()
    loss = ZLossTerm(spec)(rows._replace(student=student)).mean()
    return loss.detach(), torch.autograd.grad(loss, student)[0]


def compsum(case: Case) -> Comparisons:
    if "logits" not in case.inputs:
        raise NothingToCompare("of a method, not of a loss")
    spec, rows = CompSum(tau=case.hyper["tau"]), rows_of(case)
    if "loss_rows" in case.outputs:
        yield Comparison("comp-sum", "loss_rows", CompSumTerm(spec)(rows), case.outputs["loss_rows"])
    yield from compare(case, "comp-sum", evaluate([spec], rows), "loss", "grad_logits")


def ldr(case: Case) -> Comparisons:
    """The authors' other losses in the file are no kinds of this package, but for generalised cross-entropy."""
    match case.name.partition("_")[0]:
        case "ldr":
            spec: Loss = Ldr(kl_weight=case.hyper["Lambda"], margin=case.hyper["margin"])
        case "gce":
            spec = CompSum(tau=1.0 + case.hyper["q"])
        case other:
            raise NothingToCompare(f"{other} is no kind of the contract")
    yield from compare(case, spec.kind, evaluate([spec], rows_of(case)), "loss", "grad_logits")


def l2svm(case: Case) -> Comparisons:
    form, p = ("crammer-singer", 2) if case.name.startswith("cs") else ("one-against-all", case.hyper.get("p", 2))
    spec = L2Svm(
        form=form,  # type: ignore[arg-type]  # one of its values
        hinge="squared" if p == 2 else "absolute",
        margin=case.hyper.get("margin", 1.0),
        c=case.hyper.get("C", 1.0),
        regularisation=1.0 if "W" in case.inputs else 0.0,
    )
    rows = rows_of(case)
    head = nn.Linear(case.inputs["W"].shape[0], rows.student.shape[1]).double() if "W" in case.inputs else None
    student = rows.student.clone().requires_grad_()
    if head is not None:
        head.weight = nn.Parameter(case.inputs["W"].T.clone())
    objective = Objective([spec], LossBuilder({}, {}, student.shape[1], student_head=head))
    loss = objective(BatchOutputs(student, rows.labels, {}), objective.count(rows.labels))["loss"]
    (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
    yield from compare(case, "l2-svm", (loss.detach(), gradient), "loss", "grad_logits")
    if head is not None:
        (by_weight,) = torch.autograd.grad(loss, head.weight)
        yield from compare(case, "l2-svm", (loss.detach(), by_weight.T), "", "grad_W")
        alone = evaluate([spec.model_copy(update={"regularisation": 0.0})], rows)
        yield Comparison("l2-svm", "hinge", alone[0], case.outputs["hinge"])
