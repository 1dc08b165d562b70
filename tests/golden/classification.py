"""Losses of classifiers with the labels alone, taken through the objective as in training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from app.recipe.attacks import AttackSpec
from app.recipe.losses import Aldr, AnyLoss, CompSum, L2Svm, Ldr, Loss, ZLoss
from tests.golden import Case, NothingToCompare
from tests.golden.comparison import Comparison, compare, evaluate
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.comp_sum import CompSumTerm
from worker.losses.ensloss import drawn_derivatives, inverse_box_cox
from worker.losses.objective import BatchOutputs, Objective
from worker.losses.spherical import ZLossTerm
from worker.methods.smooth_adversarial import change_of_margins, smoothness
from worker.training.attacks import pgd

Comparisons = Iterator[Comparison]
TWO_CLASSES = 2
FAR = 64.0
"""Middle of a range of pixels, an exact power of two."""
METRICS = {"Accu": "accuracy", "Fbeta": "f-beta", "Gmean": "g-mean", "BAccu": "balanced-accuracy"}
"""Metrics of `anyloss` by their names in the file."""
OF_LAYERS = {"fbeta": "f-beta", "acc": "accuracy", "balacc": "balanced-accuracy", "gmean": "g-mean"}
"""The same of a single layer."""


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
    if case.name == "smooth_adv":
        yield from _smooth_adversarial(case)
        return
    spec, rows = CompSum(tau=case.hyper["tau"]), rows_of(case)
    if "loss_rows" in case.outputs:
        yield Comparison("comp-sum", "loss_rows", CompSumTerm(spec)(rows), case.outputs["loss_rows"])
    yield from compare(case, "comp-sum", evaluate([spec], rows), "loss", "grad_logits")


def _smooth_adversarial(case: Case) -> Comparisons:
    """The attack has no range of pixels there: theirs are moved to the middle of one that it does not leave."""
    hyper, labels = case.hyper, case.inputs["y"].long()
    weights = [case.inputs[name].clone().requires_grad_() for name in ("W1", "W2")]
    images, reach = case.inputs["x"] + FAR, 2 * FAR

    def logits(pixels: Tensor) -> Tensor:
        return ((pixels - FAR) @ weights[0]).tanh() @ weights[1]

    attack = AttackSpec(bound=hyper["gamma"] / reach, step_size=hyper["step_size"] / reach, steps=hyper["steps"])
    raised = change_of_margins(logits, images, labels)
    moved = pgd(logits, images, raised, attack, reach, case.inputs["delta0"])
    changes = smoothness(logits(moved), logits(images), labels)
    clean = CompSumTerm(CompSum(tau=hyper["tau"], rho=hyper["rho"]))(LossInputs(logits(images), labels, None))
    loss = (clean + hyper["nu"] * changes).mean()
    found = {"delta_final": moved - images, "clean_rows": clean, "reg_rows": changes, "loss": loss}
    gradients = torch.autograd.grad(loss, weights)
    found |= {"grad_W1": gradients[0], "grad_W2": gradients[1]}
    for output, value in found.items():
        yield Comparison("smooth-adversarial", output, value.detach(), case.outputs[output], output.startswith("grad"))


def ldr(case: Case) -> Comparisons:
    """The authors' other losses in the file are no kinds of this package, but for generalised cross-entropy."""
    match case.name.partition("_")[0]:
        case "ldr":
            spec: Loss = Ldr(kl_weight=case.hyper["Lambda"], margin=case.hyper["margin"])
        case "gce":
            spec = CompSum(tau=1.0 + case.hyper["q"])
        case "aldr":
            yield from _aldr(case)
            return
        case other:
            raise NothingToCompare(f"{other} is no kind of the contract")
    yield from compare(case, spec.kind, evaluate([spec], rows_of(case)), "loss", "grad_logits")


def _aldr(case: Case) -> Comparisons:
    """Three steps on growing logits, with the weights after each."""
    hyper, rows = case.hyper, rows_of(case)
    spec = Aldr(
        kl_weight=hyper["Lambda0"],
        alpha=hyper["alpha"],
        margin=hyper["margin"],
        scores="softplus" if hyper["softplus"] else "logits",
    )
    builder = LossBuilder({}, {}, rows.student.shape[1], samples=hyper["buffer_rows"])
    objective = Objective([spec], builder)
    (memory,) = builder.aux_modules.double().values()
    for step in range(len(case.outputs["losses"])):
        student = (rows.student * (1.0 + 0.1 * step)).requires_grad_()
        seen = BatchOutputs(student, rows.labels, {}, sample_index=case.inputs["ids"])
        loss = objective(seen, objective.count(rows.labels))["loss"]
        (gradient,) = torch.autograd.grad(loss, student)
        for name, found in (("losses", loss.detach()), ("grads", gradient)):
            yield Comparison("aldr", f"{name}[{step}]", found, case.outputs[name][step], name == "grads")
        weights = memory.get_buffer("weights").clone()
        yield Comparison("aldr", f"lambda_after[{step}]", weights, case.outputs["lambda_after"][step].squeeze(1))


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


def anyloss(case: Case) -> Comparisons:
    """Probabilities as differences of logits; of a single layer, also the gradients at its weights."""
    if "theta" in case.inputs:
        yield from _single_layer(case)
        return
    name = case.name.rsplit("_", 1)[1]
    metric = "squared-g-mean" if name == "Gmean" and "s" in case.hyper else METRICS[name]
    spec = AnyLoss.model_validate(
        {"metric": metric, "beta": float(case.hyper["beta"]), "smoothing": case.hyper.get("s", 0.0)}
    )
    p = case.inputs["p"].clone().requires_grad_()
    loss = _of_probabilities(spec, p, case.inputs["y"])
    yield from compare(case, "anyloss", (loss.detach(), torch.autograd.grad(loss, p)[0]), "loss", "grad_p")


def _of_probabilities(spec: AnyLoss, p: Tensor, y: Tensor) -> Tensor:
    logits = torch.stack((torch.zeros_like(p), p.logit()), dim=1)
    objective = Objective([spec], LossBuilder({}, {}, TWO_CLASSES))
    return objective(BatchOutputs(logits, y.long(), {}), objective.count(y.long()))["loss"]


def _single_layer(case: Case) -> Comparisons:
    for name, metric in OF_LAYERS.items():
        theta = case.inputs["theta"].clone().requires_grad_()
        p = (case.inputs["X"] @ theta).sigmoid()
        loss = _of_probabilities(AnyLoss.model_validate({"metric": metric, "smoothing": 0.0}), p, case.inputs["y"])
        result = (loss.detach(), torch.autograd.grad(loss, theta)[0])
        yield from compare(case, "anyloss", result, f"cost_{name}", f"grad_{name}")


def ensloss(case: Case) -> Comparisons:
    """With the draws of the file; some of their transforms are no numbers there, and infinite here."""
    output, draws, exponent = case.inputs["output"], case.inputs["gauss_draw"], case.hyper["lam"]
    output, expected = output.clone().requires_grad_(), case.outputs["bc_inv"]
    found, known = inverse_box_cox(draws, exponent), expected.isfinite()
    yield Comparison("ensloss", "bc_inv", found[known], expected[known])
    margins = (output * (2 * case.inputs["target01"] - 1)).squeeze(1)
    loss = (margins * drawn_derivatives(margins.detach(), draws, exponent)).mean()
    yield from compare(case, "ensloss", (loss.detach(), torch.autograd.grad(loss, output)[0]), "loss", "grad_output")
