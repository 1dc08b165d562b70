"""Losses that make or mend labels, losses of lists of numbers, and what goes with them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from app.recipe.data.augmentation import SelfMix
from app.recipe.losses.labels import Ferkd, Uskd
from app.recipe.losses.numbers import Assistive
from app.recipe.losses.taps import Tap
from tests.golden import Case
from tests.golden.comparison import Comparison, compare
from worker.data.augment.mixing import MixStep
from worker.data.batches import Batch
from worker.data.soft_landmarks import fit_shapes
from worker.kernels.log_probs import log_probs
from worker.losses.assistive import AssistiveTerm
from worker.losses.base import Features, LossInputs, LossTerm
from worker.losses.builder import LossBuilder
from worker.losses.ferkd import FerkdTerm
from worker.losses.soft_labels import recover
from worker.losses.uskd import UskdTerm

Comparisons = Iterator[Comparison]
TAP = Tap(path="feature")


def uskd(case: Case) -> Comparisons:
    """Also the gradients of the feature and of the weak head."""
    hyper, inputs = case.hyper, case.inputs
    feature = inputs["fea_mid"].clone().requires_grad_()
    logits = inputs["logit_s"].clone().requires_grad_()
    term = UskdTerm(
        Uskd(feature=TAP, **{name: hyper[name] for name in ("alpha", "beta", "mu")}),
        LossBuilder({TAP: feature.shape}, {}, logits.shape[-1]),
    )
    weight, bias = _load(term.head, inputs["fc_weight"], inputs["fc_bias"])
    labels = inputs["label_soft"] if "label_soft" in inputs else inputs["label"]
    loss = term(LossInputs(logits, labels, None, features=Features({TAP: feature}, {}))).mean()
    gradients = torch.autograd.grad(loss, (logits, feature, weight, bias))
    value = loss.detach()
    for name, gradient in zip(("logit_s", "fea_mid", "fc_weight", "fc_bias"), gradients, strict=True):
        yield from compare(case, "uskd", (value, gradient), "loss" if name == "logit_s" else "", f"grad_{name}")


def ferkd(case: Case) -> Comparisons:
    if "crop_a" in case.inputs:
        yield from _self_mix(case)
        return
    hyper, inputs = case.hyper, case.inputs
    thresholds = {"low": hyper["t_low"], "middle": hyper["t_mid"], "high": hyper["t_high"]}
    term = FerkdTerm(Ferkd(smoothing=hyper["smoothing"], confidence=hyper["confidence"], **thresholds))
    rows = LossInputs(inputs["logit_s"], inputs["label"], inputs["soft_label"].log())
    _, log_p, masked = log_probs(rows.student, inputs["soft_label"].log())
    calibrated = term.calibrate(log_p, masked, rows)
    yield from compare(case, "ferkd", _loss(term, rows), "loss", "grad_logit_s")
    yield Comparison("ferkd", "kind", calibrated.kinds, case.outputs["kind"])
    yield Comparison("ferkd", "label_used", calibrated.labels, case.outputs["label_used"])
    yield Comparison("ferkd", "weight", calibrated.kept, case.outputs["weight"])


def fkd_soft_labels(case: Case) -> Comparisons:
    """Labels out of a store; the loss is that of `ferkd` when it sorts nothing out."""
    logits, label_type = case.inputs["logit_s"], case.hyper["label_type"]
    columns, probabilities = _stored(case.inputs["stored_label"])
    left = None if label_type in ("hard", "marginal_renorm") else 1.0 - probabilities.sum(-1, keepdim=True)
    labels = recover(columns, probabilities, torch.ones_like(logits, dtype=torch.bool), left)
    yield Comparison("ferkd", "soft_label", labels, case.outputs["soft_label"])
    term = FerkdTerm(Ferkd(low=0.0, middle=0.0, high=1.0))
    rows = LossInputs(logits, torch.zeros(len(logits), dtype=torch.int64), labels.log())
    yield from compare(case, "ferkd", _loss(term, rows), "loss", "grad_logit_s")


def facial_kd_loss(case: Case) -> Comparisons:
    """Parts come with their weights."""
    if "train_shapes" in case.inputs:
        yield from _soft_landmarks(case)
        return
    inputs = case.inputs
    spec = _assistive(case)
    term = AssistiveTerm(spec)
    teachers = {"tolerant": inputs["x_tol"], "tough": inputs["x_tough"]}
    rows = LossInputs(inputs["x_pr"], inputs["x_gt"], None, teachers=teachers)
    yield from compare(case, "assistive", _loss(term, rows), "loss", "grad_x_pr")
    label, tolerant, tough = (part.mean() for part in term.parts(rows))
    yield Comparison("assistive", "loss_main", spec.label_weight * label, case.outputs["loss_main"])
    yield Comparison("assistive", "loss_tol", spec.tolerant_weight * tolerant, case.outputs["loss_tol"])
    yield Comparison("assistive", "loss_tough", spec.tough_weight * tough, case.outputs["loss_tough"])


def _assistive(case: Case) -> Assistive:
    hyper = case.hyper
    return Assistive(
        tolerant="tolerant",
        tough="tough",
        label_weight=hyper["main_loss_weight"],
        tolerant_weight=hyper["tol_loss_weight"],
        tough_weight=hyper["tough_loss_weight"],
        tolerant_outer=hyper["alpha_tol"],
        tolerant_inner=hyper["alpha_mi_tol"],
        tough_outer=hyper["alpha_tough"],
        tough_inner=hyper["alpha_mi_tough"],
        near=hyper["beta_fraction"],
    )


def _soft_landmarks(case: Case) -> Comparisons:
    """Directions have arbitrary signs, so their projector is compared."""
    shapes = fit_shapes(case.inputs["train_shapes"], case.hyper["variance_share"])
    found = {
        "mean": shapes.mean,
        "eigenvalues": shapes.variances,
        "projector": shapes.directions @ shapes.directions.T,
        "soft": shapes.soften(case.inputs["points"], clip=3.0),
    }
    for name, tensor in found.items():
        yield Comparison("soft-landmarks", name, tensor, case.outputs[name])


def _self_mix(case: Case) -> Comparisons:
    """Two crops of one image, by a given box and by a given share."""
    top, left, bottom, right = case.hyper["box_y1x1y2x2"]
    first, second = (_crops(case, side) for side in "ab")
    height, width = first.inputs["images"].shape[-2:]
    seen = 1.0 - (bottom - top) * (right - left) / (height * width)
    for name, how, share in (("cut", "box", seen), ("mix", "mean", case.hyper["mixup_lambda"])):
        count = len(first.targets)
        draws = {
            "mixed": torch.ones(count, dtype=torch.bool),
            "share": torch.full((count,), share, dtype=torch.float64),
            "box": torch.tensor([[top, left, bottom, right]]).expand(count, 4),
        }
        mixed = MixStep(SelfMix(how=how)).join(first, second, draws)
        yield Comparison("self-mix", f"{name}_image", mixed.inputs["images"], case.outputs[f"{name}_image"])
        yield Comparison("self-mix", f"{name}_label", mixed.targets, case.outputs[f"{name}_label"])


def _crops(case: Case, side: str) -> Batch:
    labels = case.inputs[f"label_{side}"]
    return Batch({"images": case.inputs[f"crop_{side}"]}, labels, torch.arange(len(labels)))


def _loss(term: LossTerm, rows: LossInputs) -> tuple[Tensor, Tensor]:
    """Mean over the rows, and its gradient at the student's outputs."""
    student = rows.student.clone().requires_grad_()
    loss = term(rows._replace(student=student)).mean()
    (gradient,) = torch.autograd.grad(loss, student)
    return loss.detach(), gradient


def _load(head: nn.Module, weight: Tensor, bias: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
    """The parameters of a linear layer, which have these values from now on."""
    assert isinstance(head, nn.Linear)
    head.weight, head.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
    return head.weight, head.bias


def _stored(label: Tensor) -> tuple[Tensor, Tensor]:
    """Classes and probabilities (B, K), from (B,) classes, (B, 2) or (B, 2, K) pairs."""
    if label.ndim == 1:
        return label.long().unsqueeze(1), torch.ones(len(label), 1, dtype=torch.float64)
    classes, probabilities = label.reshape(len(label), 2, -1).unbind(1)
    return classes.long(), probabilities
