"""Losses of queries with candidates; those that start from vectors are taken through the objective as in training."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from app.recipe.losses import Dexml, LgAnna, Mw, UniMe
from tests.golden import Case, NothingToCompare
from tests.golden.comparison import Comparison, evaluate
from worker.data.pairs import NEGATIVE, POSITIVE, QUERY
from worker.losses.base import LossInputs
from worker.losses.dexml import log_soft_top_k, soft_top_k
from worker.losses.retrieval import LgAnnaTerm, mann_whitney, symmetric
from worker.tensors import IGNORED


def mw(case: Case) -> Iterator[Comparison]:
    if "q" in case.inputs:
        yield from _mw_in_batch(case)
        return
    sides = [case.inputs[name].requires_grad_() for name in ("s_pos", "s_neg")]
    loss = mann_whitney(*(side.unsqueeze(0) / case.hyper["tau"] for side in sides))
    yield Comparison("mw", "loss", loss.detach(), case.outputs["loss"])
    for name, gradient in zip(("grad_pos", "grad_neg"), torch.autograd.grad(loss, sides), strict=True):
        yield Comparison("mw", name, gradient, case.outputs[name], is_gradient=True)
    assert 1.0 - float(case.outputs["auc"]) <= float(loss) / math.log(2.0)


def _mw_in_batch(case: Case) -> Iterator[Comparison]:
    """Documents of one group have the same text."""
    groups = case.inputs["group"].double()
    texts = torch.stack([-1.0 - torch.arange(len(groups)), groups], 1)
    loss, gradient = evaluate([Mw(temperature=case.hyper["tau"])], _listed(case, "q", "p", texts))
    yield Comparison("mw", "loss", loss, case.outputs["loss"])
    for name, side in (("grad_q", gradient[0::2]), ("grad_p", gradient[1::2])):
        yield Comparison("mw", name, side, case.outputs[name], is_gradient=True)


def unime(case: Case) -> Iterator[Comparison]:
    """Raises NothingToCompare for the case whose logits are products of vectors of any length."""
    if "judge_scores" not in case.inputs:
        raise NothingToCompare("logits that are no cosines; contrastive has cosines")
    cosines, scores, temperature = case.inputs["cos"], case.inputs["judge_scores"], case.hyper["temperature"]
    rows = _listed(case, "query", "candidates", scores=scores)
    loss, gradient = evaluate([UniMe(temperature=temperature)], rows)
    yield Comparison("unime", "loss", loss, case.outputs["loss"])
    size = rows.rows_per_sample
    of_samples = gradient.view(-1, size, gradient.shape[1])
    yield Comparison("unime", "grad_query", of_samples[:, 0], case.outputs["grad_query"], is_gradient=True)
    yield Comparison("unime", "grad_candidates", of_samples[:, 1:], case.outputs["grad_candidates"], is_gradient=True)
    there = torch.ones_like(cosines, dtype=torch.bool)
    alone = symmetric(cosines.requires_grad_() / temperature, scores / temperature, there).mean()
    (gradient,) = torch.autograd.grad(alone, cosines)
    yield Comparison("unime", "grad_cos", gradient, case.outputs["grad_cos"], is_gradient=True)


CRITERIA = {"decoupled-softmax": "decoupled", "topk": "top-k"}


def dexml(case: Case) -> Iterator[Comparison]:
    """Losses of logits of a multi-label task, whose targets are one for each label, or the numbers of the positives.
    Gradients of saturated sigmoids, which are far below the others, are held to 1e-8."""
    hyper = case.hyper
    if "x" in case.inputs:
        scores = case.inputs["x"].requires_grad_()
        member = (log_soft_top_k if "logsofttopk" in case.name else soft_top_k)(scores, hyper["K"], hyper["alpha"])
        (gradient,) = torch.autograd.grad(member, scores, case.inputs["cotangent"])
        within = 1e-8 if case.name.startswith("large_sim") else 1e-9
        yield Comparison("dexml", "out", member.detach(), case.outputs["out"])
        yield Comparison("dexml", "grad_x", gradient, case.outputs["grad_x"], is_gradient=True, within=within)
        return
    criterion = CRITERIA.get(hyper["criterion"], hyper["criterion"])
    own = {"k": hyper["K"], "alpha": hyper["alpha"]} if criterion == "top-k" else {}
    own |= {"weighted": bool(hyper["weighted"]), "left_out": "constant"}
    spec = Dexml.model_validate({"kind": "dexml", "criterion": criterion, **own})
    scores, values, numbers = (case.inputs[name] for name in ("sim", "target_vals", "target_inds"))
    there = values > 1e-8
    dense = torch.zeros_like(scores).scatter_add(1, numbers, values.where(there, 0.0))
    listed = numbers.where(there, IGNORED).int()
    for targets in (dense,) if spec.weighted else (dense, listed):
        loss, gradient = evaluate([spec], LossInputs(scores, targets, None))
        yield Comparison("dexml", "loss", loss, case.outputs["loss"])
        yield Comparison("dexml", "grad_sim", gradient, case.outputs["grad_sim"], is_gradient=True)


def lg_anna(case: Case) -> Iterator[Comparison]:
    hyper, absolute = case.hyper, case.hyper["margin_mode"] == "abs"
    rule = {"keep": "margin", "margin": hyper["margin"]} if absolute else {"keep": "ratio", "ratio": hyper["margin"]}
    more = {"relevance_temperature": hyper["T_teacher"], "soft_weight": hyper["soft_weight"]}
    spec = LgAnna.model_validate({"kind": "lg-anna", "temperature": hyper["tau"], **rule, **more})
    cosines, taught, relevance = (case.inputs[name] for name in ("student_cos", "teacher_cos", "relevance"))
    positive = (torch.arange(cosines.shape[1]) == 0).expand(cosines.shape)
    term = LgAnnaTerm(spec)
    parts = term.parts(cosines.requires_grad_(), taught, relevance, positive, torch.ones_like(positive))
    loss = (parts[0] + spec.soft_weight * parts[1]).mean()
    (gradient,) = torch.autograd.grad(loss, cosines)
    yield Comparison("lg-anna", "loss", loss.detach(), case.outputs["loss"])
    yield Comparison("lg-anna", "grad_cos", gradient, case.outputs["grad_cos"], is_gradient=True)
    for name, found in zip(("hard_rows", "kl_rows"), parts, strict=True):
        yield Comparison("lg-anna", name, found.detach(), case.outputs[name])
    kept = (positive | term.kept(taught)).double()
    yield Comparison("lg-anna", "keep", kept, case.outputs["keep"].double())


def _listed(
    case: Case, query: str, candidates: str, texts: Tensor | None = None, scores: Tensor | None = None
) -> LossInputs:
    """Queries (Q, D) and their candidates, (Q, D) or (Q, K, D), as rows; the first candidate is the positive. All texts
    differ unless `texts` (Q, 1 + K) are given."""
    first = case.inputs[query]
    others = case.inputs[candidates].view(len(first), -1, first.shape[1])
    vectors = torch.cat([first.unsqueeze(1), others], 1)
    shape = vectors.shape[:2]
    labels = torch.zeros(*shape, 3, dtype=torch.float64)
    labels[..., 1] = torch.arange(float(shape[0] * shape[1])).view(shape) if texts is None else texts
    labels[..., 2] = NEGATIVE
    labels[:, :2, 2] = torch.tensor([QUERY, POSITIVE], dtype=torch.float64)
    if scores is not None:
        labels[:, 1:, 0] = scores
    return LossInputs(vectors.flatten(0, 1), labels.flatten(0, 1), None, rows_per_sample=shape[1])
