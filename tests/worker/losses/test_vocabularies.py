"""Distances between probabilities over different vocabularies."""

from __future__ import annotations

import itertools

import pytest
import torch

from app.recipe.losses import Uld
from tests.worker.losses.samples import term_of
from worker.losses.base import LossInputs

LABELS = torch.zeros(1, dtype=torch.int64)


def distance(student: list[float], teacher: list[float], temperature: float = 1.0) -> float:
    """The distance of given probabilities."""
    ours, theirs = (torch.tensor([side], dtype=torch.float64).log() for side in (student, teacher))
    return float(term_of(Uld(temperature=temperature))(LossInputs(ours, LABELS, theirs)))


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3], 0.0),
        ([0.7, 0.2, 0.1], [0.4, 0.5, 0.1], 0.4),  # .7-.5, .2-.4, .1-.1
        ([0.25, 0.75], [0.1, 0.6, 0.3], 0.3),  # .75-.6, .25-.3, 0-.1
        ([0.1, 0.6, 0.3], [0.25, 0.75], 0.3),
        ([1.0], [0.25, 0.25, 0.25, 0.25], 1.5),
        ([0.5, 0.0, 0.5], [0.5, 0.5], 0.0),
    ],
)
def test_values_by_hand(student: list[float], teacher: list[float], expected: float) -> None:
    assert distance(student, teacher) == pytest.approx(expected, abs=1e-12)


def test_a_temperature_softens_both_sides() -> None:
    assert distance([0.8, 0.2], [0.5, 0.5], 2.0) == pytest.approx(2 * (2 / 3 - 1 / 2), abs=1e-12)


def test_it_is_the_cheapest_of_all_pairings() -> None:
    """When any token may be paired with any other, and a pair costs what its probabilities differ by."""
    draw = torch.Generator().manual_seed(0)
    p, q = (torch.randn(5, generator=draw, dtype=torch.float64).softmax(0) for _ in range(2))
    cheapest = min(float((p[list(order)] - q).abs().sum()) for order in itertools.permutations(range(5)))
    assert distance(q.tolist(), p.tolist()) == pytest.approx(cheapest, abs=1e-12)
