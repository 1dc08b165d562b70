"""Losses of vectors with classes, taken through the objective as in training; the files' class weights are loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import Cfcd, CfcdLocal, Loss, NormFace, Unpg
from app.recipe.losses.taps import Tap
from tests.golden import Case, NothingToCompare
from tests.golden.comparison import Comparison
from worker.losses.builder import LossBuilder
from worker.losses.class_vectors import (
    ClassVectors,
    LearnedScale,
    cosines_with,
    madacos,
    madacos_logits,
)
from worker.losses.features.local_mining import LocalFeatures, Tuples, matches, mined
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.losses.unpg import count_of_pairs, pair_parts, whiskers_of


def normface(case: Case) -> Iterator[Comparison]:
    """The scale's gradient is that of its logarithm over the scale."""
    inputs, scale = case.inputs, case.hyper["scale"]
    loss, gradients = through_objective(NormFace(scale=scale, eps=case.hyper["eps"]), inputs)
    yield Comparison("normface", "loss", loss, case.outputs["loss"])
    found = {"grad_x": gradients[0], "grad_W": gradients[1], "grad_scale": gradients[-1] / scale}
    for name in (name for name in found if name in case.outputs):
        yield Comparison("normface", name, found[name], case.outputs[name], is_gradient=True)
    if "grad_x_rows02" in case.outputs:
        rows = gradients[0][[0, 2]]
        yield Comparison("normface", "grad_x_rows02", rows, case.outputs["grad_x_rows02"], is_gradient=True)
    if "cos" in case.outputs:
        yield Comparison("normface", "cos", cosines_with(inputs["x"], inputs["W"]), case.outputs["cos"])
        others = len(inputs["W"]) - 1
        bound = math.log1p(others * math.exp(-scale * (others + 1) / others))
        expected = case.outputs["lower_bound"]
        yield Comparison("normface", "lower_bound", torch.tensor(bound, dtype=torch.float64), expected)


def unpg(case: Case) -> Iterator[Comparison]:
    inputs, hyper = case.inputs, case.hyper
    settings = {"margin": hyper["head"].lower(), "margin_size": hyper["margin"], "scale": hyper["scale"]}
    loss, gradients = through_objective(Unpg(whiskers=hyper["wisk"], **settings), inputs)
    yield Comparison("unpg", "loss", loss, case.outputs["loss"])
    for name, found in zip(("grad_x", "grad_W"), gradients, strict=True):
        yield Comparison("unpg", name, found, case.outputs[name], is_gradient=True)
    labels, directions = inputs["y"], F.normalize(inputs["x"], dim=-1)
    rows = directions, labels, torch.ones_like(labels, dtype=torch.bool)
    negatives = torch.cat([part.cosines[part.counted] for part in pair_parts(*rows)])
    whiskers = whiskers_of(*rows, count_of_pairs(*rows[1:]), hyper["wisk"])
    kept = negatives[whiskers.hold(negatives)].sort().values
    yield Comparison("unpg", "sn_all", negatives.sort().values, case.outputs["sn_all"].sort().values)
    yield Comparison("unpg", "sn_kept_sorted", kept, case.outputs["sn_kept_sorted"])


def cfcd(case: Case) -> Iterator[Comparison]:
    """MadaCos from cosines on, in evaluation without a margin, and local mining. Raises NothingToCompare for curricular
    margins."""
    inputs, hyper, outputs = case.inputs, case.hyper, case.outputs
    if "lowe_ratio" in hyper:
        yield from _local_mining(case)
        return
    if "method_B" not in hyper:
        raise NothingToCompare("curricular margins are not computed here")
    spec = Cfcd(alpha=hyper["alpha"], mass=hyper["method_B"], most_scale=1e6)
    cosines, labels = inputs["cos"].clone().requires_grad_(), inputs["y"]
    batch = madacos(spec, cosines.detach(), labels)
    batch = batch if hyper["training"] else batch._replace(margin=torch.zeros_like(batch.margin))
    logits = madacos_logits(cosines, labels, batch)
    loss = F.cross_entropy(logits, labels)
    (gradient,) = torch.autograd.grad(loss, cosines)
    found = {"median": batch.median, "scale": batch.scale, "margin": batch.margin, "B": batch.log_mass.exp()}
    found |= {"logits": logits.detach(), "loss": loss.detach()}
    for name, value in found.items():
        yield Comparison("cfcd", name, value.reshape(outputs[name].shape), outputs[name])
    yield Comparison("cfcd", "grad_cos", gradient, outputs["grad_cos"], is_gradient=True)


def _local_mining(case: Case) -> Iterator[Comparison]:
    """A tuple of a query, its positive, and negatives, whose features have any length."""
    inputs, hyper = case.inputs, case.hyper
    spec = CfcdLocal(feature=Tap(path="map"), margin=hyper["margin"], ratio=hyper["lowe_ratio"])
    features = inputs["features"].clone().requires_grad_()
    local = LocalFeatures(F.normalize(features, dim=-1), inputs["attention"])
    query, positive = local.vectors[:1], LocalFeatures(*(part[1:2] for part in local))
    negatives = torch.arange(2, len(features)).unsqueeze(0)
    found = Tuples(torch.tensor([1]), negatives, torch.ones_like(negatives, dtype=torch.bool))
    matched, partner = matches(query.detach(), positive, spec.ratio)
    loss = hyper["weight"] * mined(query, positive, local.vectors, found, spec).sum()
    (gradient,) = torch.autograd.grad(loss, features)
    places = {"query_idx": matched[0].nonzero().squeeze(1), "pos_idx": partner[matched]}
    for name, value in {**places, "loss": loss.detach()}.items():
        yield Comparison("cfcd", name, value.double(), case.outputs[name].double())
    yield Comparison("cfcd", "grad_features", gradient, case.outputs["grad_features"], is_gradient=True)


def through_objective(spec: Loss, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Mean over the rows, and its gradients at the vectors, at the class weights, and at the scale's logarithm."""
    vectors, labels = inputs["x"].clone().requires_grad_(), inputs["y"]
    classes, width = inputs["W"].shape
    builder = LossBuilder({}, {}, width, classes=classes)
    objective = Objective([spec], builder)
    builder.aux_modules.double()
    weights = next(part for part in builder.aux_modules.values() if isinstance(part, ClassVectors))
    weights.weight.data.copy_(inputs["W"])
    scales = [part.log_factor for part in builder.aux_modules.values() if isinstance(part, LearnedScale)]
    loss = objective(BatchOutputs(vectors, labels, {}), objective.count(labels))[TOTAL]
    return loss.detach(), list(torch.autograd.grad(loss, [vectors, weights.weight, *scales]))
