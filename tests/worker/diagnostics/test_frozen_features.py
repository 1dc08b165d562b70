"""Classifiers on frozen features: naive Bayes, logistic regression, and the limits of wide and deep networks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from app.recipe.diagnostics import DiagnosticSpec, LinearEvaluation, WideDeep
from app.recipe.students.architectures import Mlp
from app.recipe.students.inputs import TableInput
from app.recipe.students.model import ModelConfig, Preprocessing
from tests.worker.training.builders import play, stage
from worker.data.batches import Batch, whole_split
from worker.diagnostics import run_diagnostics
from worker.diagnostics.base import HeldOutPart
from worker.diagnostics.linear_evaluation import Errors, _crossing, _with_every_class
from worker.metrics.wide_deep import majority, nearest, optimal_coefficients, singular_exponent, singular_kernel
from worker.protocol import Finished
from worker.students.model import Model

CPU = torch.device("cpu")


class Plain(nn.Module):
    """A network whose last layer reads the samples themselves; with `useful`, it predicts the sign of the first
    number."""

    def __init__(self, useful: bool) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if useful:
            self.head.weight.data[1, 0] = 1.0

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(samples)
        return found


def model(*, useful: bool = True) -> Model:
    plain = Preprocessing(mean=[0.0] * 4, std=[1.0] * 4)
    config = ModelConfig(architecture=Mlp(), input=TableInput(columns=4), preprocessing=plain, classes=2)
    return Model(config, Plain(useful))


def samples(count: int, seed: int, noise: float = 0.0) -> Batch:
    """Classes by the sign of the first of four numbers; with noise, labels are wrong that often."""
    random = torch.Generator().manual_seed(seed)
    table = torch.randn(count, 4, generator=random)
    labels = (table[:, 0] > 0).long()
    wrong = torch.rand(count, generator=random) < noise
    return whole_split({"table": table}, labels.where(~wrong, 1 - labels))


def run(spec: DiagnosticSpec, student: Model, folder: Path, train: Batch, held_out: Batch) -> Any:
    found = run_diagnostics(
        [spec], lambda batch: batch.targets, HeldOutPart(held_out), 3, CPU, folder, student, train=train
    )
    return found.figures[type(spec).model_fields["kind"].default]


def test_errors_fall_with_samples_and_repeat(tmp_path: Path) -> None:
    spec = LinearEvaluation(sizes=[4, 40, 400], draws=3)
    first, again = (run(spec, model(), tmp_path, samples(400, 1), samples(500, 2)) for _ in range(2))
    assert first == again
    figures = first["figures"]["student"]
    assert figures["logistic_error"] < 0.05 < figures["logistic_error_few"]
    assert figures["naive_bayes_error"] < figures["naive_bayes_error_few"]
    assert [(row["samples"], row["draws"]) for row in first["table"]] == [(4, 3), (40, 3), (400, 1)]
    assert first["samples"] == {"fitted": 0, "judged": 500, "training": 400}


def test_a_subset_has_every_class_and_no_sample_twice() -> None:
    labels = torch.tensor([0] * 50 + [1] + [2] * 49)
    chosen = _with_every_class(labels, 3, torch.Generator().manual_seed(0))
    assert labels[chosen].tolist() == [0, 1, 2]
    assert len(torch.unique(_with_every_class(labels, 60, torch.Generator().manual_seed(0)))) == 60


@pytest.mark.parametrize(
    ("logistic", "expected"),
    [([0.5, 0.2, 0.1], 50), ([0.1, 0.2, 0.1], 20), ([0.1, 0.2, 0.5], None), ([0.4, 0.4, 0.1], 100)],
)
def test_the_crossing_is_where_logistic_regression_stays_better(logistic: list[float], expected: int | None) -> None:
    errors = [Errors(size, [0.3], [one], converged=True) for size, one in zip((20, 50, 100), logistic, strict=True)]
    assert _crossing(errors) == expected


def test_one_class_is_no_problem_to_solve(tmp_path: Path) -> None:
    train = samples(30, 1)
    alike = whole_split(train.inputs, torch.zeros_like(train.targets))
    found = run(LinearEvaluation(), model(), tmp_path, alike, samples(20, 2))
    assert found["left_out"] == "the training samples are of one class"


def test_a_model_that_has_learned_is_better_than_its_neighbours(tmp_path: Path) -> None:
    found = run(WideDeep(), model(), tmp_path, samples(300, 1, noise=0.2), samples(500, 2))
    figures = found["figures"]["student"]
    assert figures["model"] == 1.0
    assert 0.4 < figures["majority"] < 0.6 < figures["nearest_neighbour"] < 0.95
    assert found["warnings"] == []


def test_one_that_has_not_is_warned_of(tmp_path: Path) -> None:
    found = run(WideDeep(alpha=3.0), model(useful=False), tmp_path, samples(300, 1), samples(500, 2))
    assert [one.partition(" (")[0] for one in found["warnings"]] == [
        "student is no better than majority vote on its own features",
        "student is no better than the nearest neighbour on its own features",
    ]


def test_ties_go_to_the_lower_class_and_a_known_sample_has_its_label() -> None:
    assert majority(torch.tensor([1, 0, 1, 0]), 3) == 0
    distances = torch.tensor([[1.0, 1.0, 2.0], [0.0, 0.5, 0.5], [1.0, 1.2, 1.2]], dtype=torch.float64)
    labels = torch.tensor([1, 0, 0])
    assert singular_kernel(distances, labels, 3, 2.0).tolist() == [0, 1, 0]
    assert nearest(distances, labels).tolist() == [1, 1, 1]
    assert singular_kernel(distances, labels, 3, 500.0).tolist() == [0, 1, 1]


@pytest.mark.parametrize("alpha", [2.0, 5.0, 63.0])
def test_the_activation_has_the_exponent(alpha: float) -> None:
    coefficients = optimal_coefficients(alpha)
    assert sum(value**2 for value in coefficients) == pytest.approx(1.0)
    assert singular_exponent(coefficients) == pytest.approx(alpha)


def test_report_has_student_and_teacher(tmp_path: Path) -> None:
    asked = [{"kind": "linear-evaluation", "draws": 2}, {"kind": "widedeep"}]
    word = play(stage(tmp_path, teacher=True, evaluation={"diagnostics": asked}), tmp_path).word
    assert isinstance(word, Finished), word
    found = json.loads((tmp_path / "bundle" / "report.json").read_text())["diagnostics"]
    for name in ("linear-evaluation", "widedeep"):
        assert set(found[name]["figures"]) == {"student", "teacher"}
        assert (tmp_path / "bundle" / f"{name}.png").is_file()
