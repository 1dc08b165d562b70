"""A last layer with a codebook against the logits of all tokens, in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe import losses as spec
from app.recipe.losses import Loss
from app.recipe.teachers.teacher import Teacher
from worker.kernels.spec import Divergence, RowSpec
from worker.losses.builder import LossBuilder
from worker.losses.codebook import code_mass, codebook_distillation, log_counts
from worker.losses.objective import TOTAL, BatchOutputs
from worker.losses.tokens import TokenObjective
from worker.outputs import HiddenStates, LikeliestTokens, TeacherSignal
from worker.tensors import IGNORED

B, S, H, V, K = 3, 5, 6, 13, 4
CODES = torch.tensor([0, 2, 2, 0, 2, 1, 2, 0, 1, 2, 2, 2, 0])
"""The last code has no token."""


def states(seed: int, rows: int, width: int = H, codes: Tensor | None = None) -> HiddenStates:
    draw = torch.Generator().manual_seed(seed)
    made = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((B, S, width), (rows, width)))
    hidden, weight = (each.requires_grad_() for each in made)
    return HiddenStates(hidden, weight, None, codes)


def targets() -> Tensor:
    found = torch.randint(0, V - 2, (B, S), generator=torch.Generator().manual_seed(9))
    found[0, :3], found[2] = IGNORED, IGNORED
    return found


def found_and_expected(terms: list[Loss], teacher: HiddenStates, labels: Tensor) -> Any:
    """Losses and gradients at the codebook, and those of a layer with a row for every token."""
    results = []
    for coded in (True, False):
        student = states(1, K, codes=CODES)
        read = student if coded else HiddenStates(student.hidden, student.weight[CODES])
        named = [Teacher(model="teacher", name="teacher")]
        whole = TokenObjective(terms, LossBuilder({}, {}, V), named)
        signal = TeacherSignal(teacher._replace(hidden=teacher.hidden.detach()))
        found = whole(BatchOutputs(read, labels, {"teacher": signal}), whole.count(labels))
        gradients = torch.autograd.grad(found[TOTAL], (student.hidden, student.weight))
        results.append((found, gradients))
    return results


@pytest.mark.parametrize("vocabulary", [V, V + 4, V - 2], ids=["same", "larger", "smaller"])
@pytest.mark.parametrize(
    "terms",
    [
        [spec.CrossEntropy()],
        [spec.Kd(temperature=1.0)],
        [spec.Kd(temperature=3.0)],
        [spec.CrossEntropy(weight=0.3), spec.Kd(temperature=2.0, weight=0.7)],
    ],
    ids=["labels", "kd", "softened", "both"],
)
def test_values_and_gradients_are_those_of_the_logits_of_all_tokens(terms: list[Loss], vocabulary: int) -> None:
    (ours, gradients), (theirs, expected) = found_and_expected(terms, states(2, vocabulary, 4), targets())
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-9, atol=1e-12, check_dtype=False)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert not gradients[1][K - 1].any(), "a code without tokens has no gradient"


def test_large_logits_and_a_batch_of_ignored_tokens_stay_finite() -> None:
    teacher = states(2, V, 4)
    teacher = teacher._replace(weight=(teacher.weight * 1e4).detach())
    both: list[Loss] = [spec.CrossEntropy(), spec.Kd(temperature=1.0)]
    (ours, gradients), (theirs, _) = found_and_expected(both, teacher, targets())
    torch.testing.assert_close(ours[TOTAL], theirs[TOTAL], rtol=1e-9, atol=1e-9, check_dtype=False)
    (ours, gradients), _ = found_and_expected(both, states(2, V, 4), torch.full((B, S), IGNORED))
    assert float(ours[TOTAL].detach()) == 0.0
    assert not any(bool(each.any()) for each in gradients)


def test_the_largest_logits_of_a_teacher_are_enough() -> None:
    student, labels = states(1, K, codes=CODES), targets()
    logits = states(2, V, 4).logits(slice(None)).detach()
    top = logits.topk(V - 1)
    rest = logits.logsumexp(-1).exp() - top.values.exp().sum(-1)
    kept = LikeliestTokens(
        top.indices.view(B, S, -1), top.values.view(B, S, -1), rest.log().float().view(B, S), vocabulary=V
    )
    whole = TokenObjective([spec.Kd(temperature=1.0)], LossBuilder({}, {}, V), [Teacher(model="t", name="teacher")])
    found = whole(BatchOutputs(student, labels, {"teacher": TeacherSignal(kept)}), whole.count(labels))
    rows = labels.flatten() != IGNORED
    expected = (
        F.kl_div(student.logits(rows).log_softmax(-1), logits[rows].log_softmax(-1), log_target=True, reduction="none")
        .sum(-1)
        .mean()
    )
    torch.testing.assert_close(found[TOTAL], expected, rtol=1e-5, atol=1e-6, check_dtype=False)


def test_the_mass_of_codes_and_the_entropy_within_them() -> None:
    log_p = states(3, V, 4).logits(slice(None)).detach().log_softmax(-1)
    found = code_mass(log_p, CODES, K)
    mass = found.logs
    expected = torch.stack([log_p.exp()[:, code == CODES].sum(-1) for code in range(K)], -1)
    torch.testing.assert_close(mass.exp(), expected)
    floor = torch.zeros(len(log_p), dtype=torch.float64)
    for code in range(K - 1):
        share = log_p[:, code == CODES] - mass[:, code : code + 1]
        floor -= expected[:, code] * (share.exp() * share).sum(-1)
    torch.testing.assert_close(found.within, floor)
    best = (mass - log_counts(CODES, K))[:, CODES]  # the mass of each code, divided equally
    bound = F.kl_div(best, log_p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found.least_kl(log_counts(CODES, K)), bound)


@pytest.mark.parametrize(
    "row",
    [
        RowSpec(None, ce_weight=1.0, label_smoothing=0.1),
        RowSpec(Divergence("reverse-kl"), divergence_weight=1.0),
    ],
)
def test_losses_that_codes_do_not_have_are_refused(row: RowSpec) -> None:
    student = states(1, K, codes=CODES)
    with pytest.raises(ValueError, match="codebook"):
        codebook_distillation(student, None, 0, targets().flatten(), row, torch.tensor(3.0))
