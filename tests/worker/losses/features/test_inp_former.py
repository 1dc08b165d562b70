"""Soft mining: its gradients, beside the value of a plain cosine, and its means over processes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.losses import MinedReconstruction
from tests.worker.losses.features.samples import build, builder, draw, pair, total
from worker.errors import UserError
from worker.losses import build_term
from worker.losses.base import LossInputs
from worker.losses.features.inp_former import relative

MAP = pair("map", "same.map")


def gradient(rows: LossInputs, gamma: float) -> Tensor:
    built = build(MinedReconstruction(pairs=[MAP], gamma=gamma))
    return torch.autograd.grad(total(built, rows), rows.features.student[MAP.student])[0]


def distances(rows: LossInputs) -> Tensor:
    """1 - cos of each position (B, H, W)."""
    student, teacher = rows.features.student[MAP.student], rows.features.teacher[MAP.teacher]
    return 1.0 - F.cosine_similarity(student.detach(), teacher, dim=1)


def test_the_value_is_one_minus_the_cosine_of_whole_maps_with_any_power() -> None:
    rows = draw()
    student, teacher = rows.features.student[MAP.student], rows.features.teacher[MAP.teacher]
    expected = 1.0 - F.cosine_similarity(student.flatten(1), teacher.flatten(1))
    for gamma in (0.0, 1.0, 3.0):
        torch.testing.assert_close(build(MinedReconstruction(pairs=[MAP], gamma=gamma))(rows), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_gradients_are_scaled_by_the_relative_distance_of_their_position(gamma: float) -> None:
    rows = draw()
    found = distances(rows)
    expected = gradient(rows, 0.0) * ((found / found.mean()) ** gamma).unsqueeze(1)
    torch.testing.assert_close(gradient(rows, gamma), expected)


def test_a_mined_gradient_depends_on_the_other_rows() -> None:
    rows, other = draw(), draw()
    other.features.student[MAP.student].data[1:] = other.features.teacher[MAP.teacher][1:]
    assert torch.equal(gradient(rows, 0.0)[0], gradient(other, 0.0)[0])
    assert not torch.allclose(gradient(rows, 1.0)[0], gradient(other, 1.0)[0])


def test_tokens_that_are_padding_change_neither_value_nor_gradient() -> None:
    spec, place = MinedReconstruction(pairs=[pair("tokens", "same.tokens")]), pair("tokens", "same.tokens")
    real = (torch.arange(4) < 3).expand(5, 4)
    found = []
    for filling in (1.0, 50.0):
        rows = draw()
        rows.features.student[place.student].data[:, 3] *= filling
        rows = rows._replace(features=rows.features._replace(student_tokens=real))
        built = build(spec)
        value = total(built, rows)
        found.append((value.detach(), *torch.autograd.grad(value, rows.features.student[place.student])))
    torch.testing.assert_close(found[0], found[1])
    assert not found[0][1][:, 3].any()


def test_the_mean_distance_is_that_of_all_processes() -> None:
    rows, made = draw(4), builder()
    whole = gradient(rows, 1.0)
    made.everywhere = lambda sums: torch.stack([found.sum(), torch.tensor(float(found.numel()))]).to(sums)
    found = distances(rows)
    term = build_term(MinedReconstruction(pairs=[MAP], gamma=1.0), made)
    half = LossInputs(
        rows.student[:2],
        rows.labels[:2],
        None,
        features=rows.features._replace(
            student={MAP.student: rows.features.student[MAP.student][:2]},
            teacher={MAP.teacher: rows.features.teacher[MAP.teacher][:2]},
        ),
    )
    own = torch.autograd.grad(term(half).sum() / 4, rows.features.student[MAP.student])[0]
    torch.testing.assert_close(own[:2], whole[:2])


def test_equal_features_have_weights_of_one() -> None:
    noise = torch.tensor([0.0, 2e-16, 1e-16], dtype=torch.float64)
    assert torch.equal(relative(noise, noise.mean(), 3.0), torch.ones_like(noise))
    torch.testing.assert_close(relative(torch.tensor([1.0, 3.0]), torch.tensor(2.0), 1.0), torch.tensor([0.5, 1.5]))


@pytest.mark.parametrize("place", [pair("vector"), pair("video", "video")])
def test_features_without_positions_are_refused_by_their_field(place: object) -> None:
    with pytest.raises(UserError, match="tokens") as refused:
        build_term(MinedReconstruction(pairs=[place]), builder())  # type: ignore[list-item]
    assert refused.value.param == "recipe.losses[1].pairs[0]"
