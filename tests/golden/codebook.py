"""Losses at a codebook, taken through the objective of language models, and the clusters that it starts from."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from app.recipe.losses import CrossEntropy, Kd, Loss
from app.recipe.teachers.teacher import Teacher
from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.clustering import k_means
from worker.losses.builder import LossBuilder
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.losses.tokens import TokenObjective
from worker.outputs import HiddenStates, TeacherSignal

KIND = "vq-logits"


def _of_classes(case: Case, term: Loss) -> Iterator[Comparison]:
    """The same with a classifier's logits of codes, every token as a sample."""
    hidden, codebook = (case.inputs[name].clone().requires_grad_() for name in ("h", "codebook"))
    codes, taught = case.inputs["mapping"], case.inputs.get("teacher_logits")
    signals = {} if taught is None else {"teacher": TeacherSignal(taught.flatten(0, 1))}
    logits = hidden.flatten(0, 1) @ codebook.T
    labels = case.inputs["targets"].flatten() if taught is None else torch.zeros(len(logits), dtype=torch.int64)
    builder = LossBuilder({}, {}, len(codes), codes=codes.long())
    whole = Objective([term], builder, [Teacher(model="teacher", name="teacher")])
    loss = whole(BatchOutputs(logits, labels, signals), whole.count(labels))[TOTAL]
    yield Comparison(KIND, "classes: loss", loss.detach(), case.outputs["loss"])
    for name, found in zip(("grad_h", "grad_codebook"), torch.autograd.grad(loss, (hidden, codebook)), strict=True):
        yield Comparison(KIND, f"classes: {name}", found, case.outputs[name], is_gradient=True)


def vq_logits(case: Case) -> Iterator[Comparison]:
    """Cross-entropy, and KD from a teacher's logits of all tokens: its hidden states are the logits themselves."""
    if "E" in case.inputs:
        centres, codes = k_means(case.inputs["E"], case.inputs["C0"], case.hyper["iters"])
        yield Comparison(KIND, "codebook", centres, case.outputs["codebook"])
        yield Comparison(KIND, "mapping", codes, case.outputs["mapping"])
        return
    hidden, codebook = (case.inputs[name].clone().requires_grad_() for name in ("h", "codebook"))
    student, signals, targets = HiddenStates(hidden, codebook, None, case.inputs["mapping"]), {}, None
    term: Loss = CrossEntropy()
    if "teacher_logits" in case.inputs:
        logits = case.inputs["teacher_logits"]
        signals = {"teacher": TeacherSignal(HiddenStates(logits, torch.eye(logits.shape[-1], dtype=logits.dtype)))}
        term, targets = Kd(temperature=case.hyper["tau"]), torch.zeros(hidden.shape[:2], dtype=torch.int64)
    whole = TokenObjective([term], LossBuilder({}, {}, 0), [Teacher(model="teacher", name="teacher")])
    labels = case.inputs["targets"] if targets is None else targets
    loss = whole(BatchOutputs(student, labels, signals), whole.count(labels))[TOTAL]
    yield Comparison(KIND, "loss", loss.detach(), case.outputs["loss"])
    for name, found in zip(("grad_h", "grad_codebook"), torch.autograd.grad(loss, (hidden, codebook)), strict=True):
        yield Comparison(KIND, name, found, case.outputs[name], is_gradient=True)
    yield from _of_classes(case, term)
    if "vocab_logits" in case.outputs:
        logits = student.logits(slice(None)).detach()
        yield Comparison(
            KIND, "vocab_logits", logits.view_as(case.outputs["vocab_logits"]), case.outputs["vocab_logits"]
        )
        yield Comparison(KIND, "lse", logits.logsumexp(-1).view_as(case.outputs["lse"]), case.outputs["lse"])
