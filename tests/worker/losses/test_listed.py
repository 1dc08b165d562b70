"""Losses of queries with candidates, and the objective over samples of several texts, some of them padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses import Contrastive, Dexml, EmbeddingDistance, LgAnna, Loss, Mw, SimilarityMatrix, UniMe
from app.recipe.losses.features import Rkd
from app.recipe.losses.taps import Pair, Tap
from app.recipe.teachers.teacher import Teacher
from tests.worker.losses.lists import WIDTH, Lists, draw_lists
from worker.data.pairs import PADDING, ROLE
from worker.losses import build_term
from worker.losses.builder import LossBuilder, TeacherSide
from worker.losses.listed import EmbeddingObjective
from worker.losses.objective import BatchOutputs
from worker.outputs import TeacherSignal

SPECS: list[Loss] = [
    EmbeddingDistance(),
    SimilarityMatrix(temperature=0.2),
    SimilarityMatrix(compare="mse"),
    Contrastive(temperature=0.2),
    Contrastive(temperature=0.2, others="all"),
    Contrastive(target="teacher", temperature=0.2, teacher_temperature=0.3),
    Mw(temperature=0.2),
    Mw(temperature=0.2, per_query=True),
    UniMe(temperature=0.2, judge_temperature=0.1),
    LgAnna(temperature=0.2),
    Dexml(temperature=0.2),
    Dexml(criterion="bce"),
]


def builder() -> LossBuilder:
    return LossBuilder({}, {"teacher": TeacherSide(nn.Identity(), {}, outputs=WIDTH)}, WIDTH)


def objective_of(*specs: Loss) -> EmbeddingObjective:
    return EmbeddingObjective(specs, builder(), [Teacher(model="m")])


def seen(lists: Lists, samples: slice = slice(None)) -> BatchOutputs:
    rows = slice(*(None if end is None else end * lists.size for end in (samples.start, samples.stop)))
    signals = {"teacher": TeacherSignal(lists.teacher[rows])}
    return BatchOutputs(lists.student[rows], lists.labels[rows], signals, rows_per_sample=lists.size)


def loss_and_gradient(spec: Loss, lists: Lists, parts: int = 1) -> tuple[Tensor, Tensor]:
    objective = objective_of(spec)
    count = objective.count(lists.labels)
    ends = torch.arange(lists.samples).tensor_split(parts)
    pieces = [slice(int(part[0]), int(part[-1]) + 1) for part in ends]
    loss = torch.stack([objective(seen(lists, piece), count)["loss"] for piece in pieces]).sum()
    (gradient,) = torch.autograd.grad(loss, lists.student)
    return loss.detach(), gradient


@pytest.mark.parametrize("spec", SPECS)
def test_padding_changes_neither_value_nor_gradient(spec: Loss) -> None:
    lists = draw_lists([3, 1, 4, 2])
    padding = lists.labels[:, ROLE] == PADDING
    assert padding.sum() == 6
    wild = torch.where(padding.unsqueeze(1), 1e4, lists.student.detach()).requires_grad_()
    found, expected = (loss_and_gradient(spec, each) for each in (lists._replace(student=wild), lists))
    torch.testing.assert_close(found, expected)
    assert (found[1][padding] == 0).all()
    wider = lists.widened(2)
    torch.testing.assert_close(loss_and_gradient(spec, wider)[0], expected[0])


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.couples_rows])
def test_ragged_lists_may_be_split_in_any_way(spec: Loss) -> None:
    lists = draw_lists([3, 1, 4, 2])
    torch.testing.assert_close(loss_and_gradient(spec, lists, 3), loss_and_gradient(spec, lists))


def test_a_loss_of_rows_is_the_mean_over_the_samples_of_the_mean_over_their_texts() -> None:
    lists = draw_lists([3, 1])
    each = (lists.student - lists.teacher).square().mean(1)
    expected = (each[:4].mean() + each[4:6].mean()) / 2
    torch.testing.assert_close(loss_and_gradient(EmbeddingDistance(), lists)[0], expected.detach())


def test_a_loss_that_couples_activations_is_the_mean_over_all_texts() -> None:
    lists, tap = draw_lists([3, 1]), Tap(path="x")
    spec = Rkd(pair=Pair(teacher=tap, student=tap))
    there = lists.labels[:, ROLE] != PADDING

    def loss(student: Tensor, teacher: Tensor, labels: Tensor, size: int) -> Tensor:
        shapes = {tap: student.shape}
        side = TeacherSide(nn.Identity(), {tap: teacher.shape}, outputs=WIDTH)
        objective = EmbeddingObjective([spec], LossBuilder(shapes, {"teacher": side}, WIDTH), [Teacher(model="m")])
        signals = {"teacher": TeacherSignal(teacher, features={tap: teacher})}
        outputs = BatchOutputs(student, labels, signals, {tap: student}, rows_per_sample=size)
        return objective(outputs, objective.count(labels))["loss"]

    whole = loss(lists.student, lists.teacher, lists.labels, lists.size)
    texts = loss(lists.student[there], lists.teacher[there], lists.labels[there], 1)
    torch.testing.assert_close(whole, texts)


@pytest.mark.parametrize("target", ["pairs", "teacher"])
@pytest.mark.parametrize("others", ["opposite", "all"])
def test_contrastive_finds_the_first_positive_among_all_candidates(target: str, others: str) -> None:
    """The second sample's first negative is the first sample's positive, which is no candidate of the first but that
    one; the third's second positive is the second's query."""
    lists = draw_lists([2, 3, 3], positives=[1, 1, 2])
    n = lists.size
    lists.labels[n + 2, 1] = lists.labels[1, 1]
    lists.labels[2 * n + 2, 1] = lists.labels[n, 1]
    spec = Contrastive.model_validate({"target": target, "temperature": 0.2, "others": others})
    student, teacher = (F.normalize(side, dim=1) for side in (lists.student, lists.teacher))
    queries = [[4, 8], [0, 8], [0]] if others == "all" else [[], [], []]
    candidates = [[1, 2, 5, 7, 9, 10, 11], [1, 2, 5, 6, 7, 9, 11], [1, 2, 5, 6, 7, 9, 11]]
    expected = []
    for sample in range(3):
        rows = [*candidates[sample], *queries[sample]]
        q = (student[sample * n] @ student[rows].T / 0.2).log_softmax(0)
        if target == "teacher":
            p = (teacher[sample * n] @ teacher[rows].T / 0.2).log_softmax(0)
            expected.append((p.exp() * (p - q)).sum())
        else:
            expected.append(-q[rows.index(sample * n + 1)])
    found = build_term(spec, builder())(lists.inputs)
    torch.testing.assert_close(found[::n], torch.stack(expected))
    torch.testing.assert_close(found.view(-1, n), found[::n, None].expand(-1, n))


def test_lists_of_one_candidate_are_pairs() -> None:
    lists = draw_lists([1, 1, 1])
    assert lists.size == 2
    term = build_term(Contrastive(temperature=0.2), builder())
    pairs = replace(seen(lists), rows_per_sample=2)
    torch.testing.assert_close(
        term(lists.inputs).mean(), objective_of(Contrastive(temperature=0.2))(pairs, torch.tensor(6))["loss"]
    )
