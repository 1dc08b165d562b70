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
from worker.losses.objective import TOTAL, BatchOutputs
from worker.losses.tokens import TokenObjective
from worker.outputs import HiddenStates, TeacherSignal

KIND = "vq-logits"


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
    if "vocab_logits" in case.outputs:
        logits = student.logits(slice(None)).detach()
        yield Comparison(
            KIND, "vocab_logits", logits.view_as(case.outputs["vocab_logits"]), case.outputs["vocab_logits"]
        )
        yield Comparison(KIND, "lse", logits.logsumexp(-1).view_as(case.outputs["lse"]), case.outputs["lse"])
