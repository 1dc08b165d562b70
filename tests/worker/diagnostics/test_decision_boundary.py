"""Similarity of decision boundaries."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.recipe.checks import find_problems
from app.recipe.diagnostics import DecisionBoundary
from app.recipe.job import JobSpec
from app.recipe.students.architectures import Mlp
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from tests.worker.training.builders import document, play, stage
from worker.data.batches import Batch, whole_split
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult, HeldOutPart, NotComputable
from worker.diagnostics.decision_boundary import DecisionBoundaryAnalysis
from worker.protocol import Finished
from worker.students.model import Model

SAMPLES = 40
HALF = [0.5, 0.5]


class Planes(nn.Module):
    """Two pixels as logits of two classes: (0, distance from a line with this normal)."""

    def __init__(self, normal: list[float], offset: float, sharpness: float) -> None:
        super().__init__()
        self.normal, self.offset, self.sharpness = nn.Parameter(torch.tensor(normal)), offset, sharpness

    def forward(self, images: Tensor) -> Tensor:
        distance = self.sharpness * (images.flatten(1) @ self.normal - self.offset)
        return torch.stack([torch.zeros_like(distance), distance], dim=1)


def model(normal: list[float], offset: float = 0.0, sharpness: float = 1.0, std: float = 1.0) -> Model:
    """The line lies in pixels of 0 to 1, whatever the preprocessing is; `offset` is from their middle."""
    config = ModelConfig(
        architecture=Mlp(),
        input=ImageInput(channels=1, height=1, width=2),
        preprocessing=Preprocessing(mean=[0.5], std=[std]),
        classes=2,
    )
    return Model(config, Planes(normal, offset / std, sharpness))


def samples(low: float = 0.2, high: float = 0.8) -> Batch:
    random = torch.Generator().manual_seed(0)
    pixels = low + (high - low) * torch.rand(SAMPLES, 1, 1, 2, generator=random)
    return whole_split({"images": pixels}, (pixels[:, 0, 0, 0] > 0.5).long())


def analysed(student: Model, teachers: dict[str, Model], part: Batch | None = None, **spec: Any) -> DiagnosticResult:
    inputs = DiagnosticInputs(
        lambda batch: batch.targets, HeldOutPart(part or samples()), None, 0, torch.device("cpu"), student, teachers
    )
    return DecisionBoundaryAnalysis(DecisionBoundary.model_validate({"kind": "decision-boundary", **spec}))(inputs)


def test_a_student_that_is_its_teacher_decides_alike() -> None:
    teacher = model([1.0, 0.0])
    found = analysed(teacher, {"teacher": teacher}).figures["teacher"]
    assert found["magnitude_similarity"] == pytest.approx(1.0, abs=1e-6)
    assert found["angle_similarity"] == pytest.approx(1.0, abs=1e-6)
    assert found["base_samples"] == found["pairs"] == SAMPLES
    assert found["arrived_by_teacher"] == found["arrived_by_student"] == 1.0


@pytest.mark.parametrize("std", [1.0, 0.25])
def test_lines_that_cross_at_an_angle_are_as_similar_as_the_moves_to_them(std: float) -> None:
    angle = math.pi / 6
    turned, straight = [math.cos(angle), math.sin(angle)], [1.0, 0.0]
    part = samples()
    found = analysed(model(turned), {"teacher": model(straight, std=std)}, part, alpha=0.05, steps=1000)
    pixels = part.inputs["images"].flatten(1).double() - 0.5
    far = [(pixels @ torch.tensor(normal, dtype=torch.float64)) for normal in (turned, straight)]
    right = (far[0] > 0) == (far[1] > 0)
    lengths = torch.stack(far).abs()[:, right]
    figures = found.figures["teacher"]
    assert figures["base_samples"] == int(right.sum()) < SAMPLES
    assert figures["angle_similarity"] == pytest.approx(math.cos(angle), abs=1e-4)
    expected = float((lengths.amin(0) / lengths.amax(0)).mean())
    assert figures["magnitude_similarity"] == pytest.approx(expected, abs=0.03)  # moves end just behind the line
    assert sum(row["pairs"] for row in found.table) == figures["pairs"]


def test_moves_that_do_not_arrive_are_no_pairs() -> None:
    teacher, student = model([1.0, 0.0]), model([1.0, 0.0])
    short = analysed(student, {"teacher": teacher}, alpha=0.9, steps=3).figures["teacher"]
    assert 0 < short["pairs"] < short["base_samples"]
    assert short["arrived_by_teacher"] == short["arrived_by_student"] == short["pairs"] / short["base_samples"]


def test_a_teacher_without_a_pair_is_left_out_with_the_reason() -> None:
    opposite = model([-1.0, 0.0])
    found = analysed(model([1.0, 0.0]), {"a": model([1.0, 0.0]), "b": opposite})
    assert list(found.figures) == ["a"]
    assert found.warnings == ["the student and b are right together about none of the held-out samples"]
    with pytest.raises(NotComputable, match="right together about none"):
        analysed(model([1.0, 0.0]), {"b": opposite})
    with pytest.raises(NotComputable, match="none of 40 moves"):
        analysed(model([1.0, 0.0]), {"a": model([1.0, 0.0])}, steps=1, alpha=1e-6)


def test_few_pairs_are_warned_of() -> None:
    few = samples().between(0, 5)
    (warning,) = analysed(model([1.0, 0.0]), {"a": model([1.0, 0.0])}, few).warnings
    assert warning == "only 5 pairs of a"


def test_pixels_of_no_known_range_need_bounds() -> None:
    models = {"a": model([1.0, 0.0])}
    wide = samples(-1.0, 2.0)
    with pytest.raises(NotComputable, match="outside of 0 to 1"):
        analysed(model([1.0, 0.0]), models, wide)
    assert analysed(model([1.0, 0.0]), models, wide, clip=[-2.0, 2.0]).figures["a"]["pairs"] == SAMPLES


def test_mode_and_weights_stay_as_they_are() -> None:
    student, teacher = model([1.0, 0.0]).train(), model([1.0, 0.0]).train()
    before = [parameter.detach().clone() for parameter in student.parameters()]
    analysed(student, {"teacher": teacher})
    assert student.training
    assert teacher.training
    assert all(torch.equal(*pair) for pair in zip(before, student.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in (*student.parameters(), *teacher.parameters()))


def test_report_and_card_have_a_column_for_each_teacher(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "teachers": [{"model": "teacher", "name": name} for name in ("a", "b")],
        "data": {"train": "data", "eval_fraction": 0.5},
        "student_image_size": [5, 5],
        "recipe": {"losses": [{"kind": "kd"}], "epochs": 10},
        "evaluation": {"diagnostics": [{"kind": "decision-boundary", "limit": 20, "steps": 200}]},
    }
    word = play(stage(tmp_path, **asked), tmp_path).word
    assert isinstance(word, Finished), word
    found = json.loads((tmp_path / "bundle" / "report.json").read_text())["diagnostics"]["decision-boundary"]
    assert list(found["figures"]) == ["a", "b"]
    assert found["figures"]["a"] == found["figures"]["b"]
    assert found["samples"] == {"fitted": 0, "judged": 20, "training": 0}
    assert found["figures"]["a"]["pairs"] > 0
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "### decision-boundary\n\nOn 20 held-out samples.\n" in card
    assert "| | a | b |" in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [({}, "compares with a teacher"), ({"task": "text-classification"}, "is not for text-classification")],
)
def test_jobs_without_a_teacher_or_images_are_refused(changes: dict[str, Any], message: str) -> None:
    asked = {"evaluation": {"diagnostics": [{"kind": "decision-boundary"}]}, **changes}
    (problem,) = [one for one in find_problems(JobSpec.model_validate(document(**asked))) if "diagnostics" in one.param]
    assert problem.param == "evaluation.diagnostics[0].kind"
    assert message in problem.message
