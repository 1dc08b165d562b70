"""The objective of a language model against plain logits in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe import losses as spec
from app.recipe.losses import Loss
from app.recipe.losses.weights import LinearWeight
from app.recipe.teachers.teacher import Teacher
from worker.kernels.log_probs import log_probs
from worker.losses import build_term
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.objective import TOTAL, BatchOutputs
from worker.losses.passes import in_kernels, kernel_divergence
from worker.losses.tokens import TokenObjective
from worker.outputs import HiddenStates, TeacherSignal
from worker.tensors import IGNORED

B, S, H, V = 3, 5, 6, 11
KINDS: list[Loss] = [
    spec.Kd(temperature=2.0),
    spec.ReverseKl(temperature=1.5),
    spec.Jsd(beta=0.3),
    spec.SkewKl(),
    spec.SkewReverseKl(),
    spec.Tvd(),
    spec.LogitMse(centered=True),
    spec.BdKd(),
    spec.Nkd(),
    spec.Dkd(),
    spec.Akl(),
    spec.Uld(temperature=2.0),
    spec.Kd(temperature=2.0, standardize=True),
]
IDS = [f"{term.kind}{'-outside' * (not in_kernels(term))}" for term in KINDS]


def states(seed: int, vocabulary: int = V, width: int = H) -> HiddenStates:
    draw = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    return HiddenStates(make(B, S, width), make(vocabulary, width), make(vocabulary))


def targets() -> Tensor:
    found = torch.randint(0, V - 2, (B, S), generator=torch.Generator().manual_seed(9))
    found[0, :3], found[2] = IGNORED, IGNORED
    return found


def objective(*terms: Loss, teachers: dict[str, float] | None = None) -> TokenObjective:
    named = [Teacher(model=name, name=name, weight=weight) for name, weight in (teachers or {"teacher": 1.0}).items()]
    return TokenObjective(terms, LossBuilder({}, {}, V), named)


def seen(student: HiddenStates, labels: Tensor, **teachers: HiddenStates) -> BatchOutputs:
    signals = {name: TeacherSignal(said._replace(hidden=said.hidden.detach())) for name, said in teachers.items()}
    return BatchOutputs(student, labels, signals)


def plain(term: Loss, student: HiddenStates, teacher: HiddenStates, labels: Tensor) -> Tensor:
    """The mean over the tokens that count, of logits made at once."""
    rows = (labels.flatten() != IGNORED).nonzero().squeeze(1)
    ours, theirs = student.logits(rows), teacher.logits(rows).detach()
    width = max(ours.shape[1], theirs.shape[1])
    ours, theirs = (
        torch.nn.functional.pad(side, (0, width - side.shape[1]), value=-torch.inf) for side in (ours, theirs)
    )
    made: Any = build_term(term, LossBuilder({}, {}, V))
    return made(LossInputs(ours, labels.flatten()[rows], theirs)).mean()


def gradients(loss: Tensor, student: HiddenStates) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [part for part in student if part is not None]))


@pytest.mark.parametrize("vocabulary", [V, V + 4, V - 2], ids=["same", "larger", "smaller"])
@pytest.mark.parametrize("term", KINDS, ids=IDS)
def test_it_is_that_of_plain_logits(term: Loss, vocabulary: int) -> None:
    student, teacher, labels = states(1), states(2, vocabulary, 4), targets()
    hard = spec.CrossEntropy(weight=0.3, label_smoothing=0.1)
    soft = term.model_copy(update={"weight": 0.7})
    whole = objective(hard, soft)
    found = whole(seen(student, labels, teacher=teacher), whole.count(labels))
    expected = 0.3 * plain(hard, student, teacher, labels) + 0.7 * plain(soft, student, teacher, labels)
    torch.testing.assert_close(found[TOTAL], expected, check_dtype=False)
    torch.testing.assert_close(found[f"{TOTAL}/{term.kind}"], plain(soft, student, teacher, labels), check_dtype=False)
    for ours, theirs in zip(gradients(found[TOTAL], student), gradients(expected, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("at_once", [1, 10**6], ids=["one", "all"])
def test_a_teacher_with_another_tokenizer_is_used_at_aligned_tokens(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("worker.losses.tokens.CHUNK", at_once)
    student, labels = states(1), targets()
    draw = torch.Generator().manual_seed(4)
    hidden, weight = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((B, 7, 4), (V + 3, 4)))
    teacher = HiddenStates(hidden, weight)
    places = torch.tensor([[0, 2, -1, 3, 6], [-1, -1, 4, -1, 5], [0, 1, 2, 3, 4]])
    whole, count = objective(spec.CrossEntropy(), spec.Uld(weight=0.7)), (labels != IGNORED).sum()
    found = whole(BatchOutputs(student, labels, {"teacher": TeacherSignal(teacher, rows=places)}), count)
    expected = torch.zeros((), dtype=torch.float64)
    for text, row in ((0, 3), (0, 4), (1, 2), (1, 4)):
        ours = F.softmax(student.logits(torch.tensor([text * S + row]))[0], -1).sort(descending=True).values
        theirs = F.softmax(hidden[text, places[text, row]] @ weight.T, -1).sort(descending=True).values
        expected = expected + (F.pad(ours, (0, 3)) - theirs).abs().sum() / 7
    assert count == 7
    torch.testing.assert_close(found[f"{TOTAL}/uld"], expected, check_dtype=False)
    parts = gradients(found[TOTAL] - found[f"{TOTAL}/cross-entropy"], student)
    cross = plain(spec.CrossEntropy(), student, student, labels)
    for ours, theirs in zip(parts, gradients(cross + 0.7 * expected, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_several_divergences_and_teachers_share_by_their_weights() -> None:
    student, one, other, labels = states(1), states(2), states(3, V + 1, 4), targets()
    terms = [spec.CrossEntropy(), spec.Kd(temperature=1.0, weight=2.0), spec.Jsd(teacher="other"), spec.Akl()]
    whole = objective(*terms, teachers={"one": 1.0, "other": 3.0})
    found = whole(seen(student, labels, one=one, other=other), whole.count(labels))
    expected = plain(terms[0], student, one, labels) + plain(terms[2], student, other, labels)
    for term, weight in ((terms[1], 2.0), (terms[3], 1.0)):
        expected = expected + weight * (
            0.25 * plain(term, student, one, labels) + 0.75 * plain(term, student, other, labels)
        )
    torch.testing.assert_close(found[TOTAL], expected, check_dtype=False)
    for ours, theirs in zip(gradients(found[TOTAL], student), gradients(expected, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_parts_add_up_to_the_whole() -> None:
    student, teacher, labels = states(1), states(2), targets()
    whole = objective(spec.CrossEntropy(), spec.SkewKl(), spec.Akl())
    count = whole.count(labels)
    assert count == 7
    complete = whole(seen(student, labels, teacher=teacher), count)
    parts = [
        whole(
            seen(
                student._replace(hidden=student.hidden[i : i + 1]),
                labels[i : i + 1],
                teacher=teacher._replace(hidden=teacher.hidden[i : i + 1]),
            ),
            count,
        )
        for i in range(B)
    ]
    for name, value in complete.items():
        torch.testing.assert_close(sum(part[name] for part in parts), value)


def test_a_batch_without_a_token_that_counts_costs_nothing() -> None:
    student, teacher, labels = states(1), states(2), torch.full((B, S), IGNORED)
    whole = objective(spec.CrossEntropy(), spec.Kd(), spec.Akl())
    found = whole(seen(student, labels, teacher=teacher), whole.count(labels))
    assert found[TOTAL] == 0.0
    assert all(not gradient.any() for gradient in gradients(found[TOTAL], student))


def test_a_weight_may_change_over_the_stage() -> None:
    student, teacher, labels = states(1), states(2), targets()
    rising = LinearWeight(kind="linear", first=0.0, last=2.0)
    whole = objective(spec.CrossEntropy(), spec.ReverseKl(weight=rising))
    count = whole.count(labels)
    totals = [whole(seen(student, labels, teacher=teacher), count, epoch, 1.0)[TOTAL] for epoch in (0.0, 0.5, 1.0)]
    hard, soft = (plain(term, student, teacher, labels) for term in (spec.CrossEntropy(), spec.ReverseKl()))
    for total, weight in zip(totals, (0.0, 1.0, 2.0), strict=True):
        torch.testing.assert_close(total, hard + weight * soft, check_dtype=False)


@pytest.mark.parametrize("term", KINDS, ids=IDS)
def test_it_never_holds_all_logits(term: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither path makes a tensor of as many numbers as all logits have."""
    monkeypatch.setattr("worker.losses.tokens.CHUNK", 4 * V)
    monkeypatch.setattr("worker.kernels.linear.LEAST_BUDGET", 1)
    largest = 0
    full = B * S * V

    class Monitor(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            if isinstance(made, Tensor) and made.ndim == 2 and made.shape[1] == V and made.shape[0] != H:
                largest = max(largest, made.numel())
            return made

    student, teacher = states(1), states(2)
    labels = torch.zeros(B, S, dtype=torch.int64)
    whole = objective(spec.CrossEntropy(), term)
    with Monitor():
        gradients(whole(seen(student, labels, teacher=teacher), whole.count(labels))[TOTAL], student)
    assert 0 < largest < full


def test_the_contract_determines_which_terms_the_kernels_compute() -> None:
    told = kernel_divergence(spec.Dkd(alpha=0.5, beta=2.0, temperature=3.0))
    assert told is not None
    assert (told.kind, told.alpha, told.beta, told.temperature) == ("dkd", 0.5, 2.0, 3.0)
    assert kernel_divergence(spec.Akl()) is None
    assert log_probs(torch.zeros(1, 2), torch.zeros(1, 2)).student.exp().sum() == pytest.approx(1.0)
