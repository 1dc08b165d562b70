"""Accuracy of a student and its teachers under attacks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.recipe.diagnostics import Robustness
from app.recipe.students.architectures import Mlp
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from tests.worker.training.builders import play, stage
from worker.data.batches import whole_split
from worker.diagnostics import split_held_out
from worker.diagnostics.base import DiagnosticInputs, DiagnosticResult, HeldOutPart, NotComputable
from worker.diagnostics.robustness import RobustnessAnalysis
from worker.protocol import Finished
from worker.students.model import Model

IMAGES = 400
"""Of one pixel of 0 to 1, of class 1 where it is above 0.5."""


class Line(nn.Module):
    """Logits (B, 2) whose difference is the pixel's distance from `threshold`."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images: Tensor) -> Tensor:
        distance = images.flatten(1) - self.threshold
        return torch.cat([-distance, distance], dim=1)


def model(network: nn.Module) -> Model:
    config = ModelConfig(
        architecture=Mlp(),
        input=ImageInput(channels=1, height=1, width=1),
        preprocessing=Preprocessing(mean=[0.0], std=[1.0]),
        classes=2,
    )
    return Model(config, network)


def samples(scale: float = 1.0) -> HeldOutPart:
    pixels = torch.rand(IMAGES, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    return HeldOutPart(whole_split({"images": scale * pixels}, (pixels.flatten() > 0.5).long()))


def analysed(
    spec: Robustness, student: Model, part: HeldOutPart, teachers: Mapping[str, Model] = {}
) -> DiagnosticResult:
    def predict(batch: Any) -> Tensor:
        raise AssertionError("the models themselves are asked")

    cpu = torch.device("cpu")
    return RobustnessAnalysis(spec)(DiagnosticInputs(predict, part, None, 0, cpu, student, teachers))


def test_what_lies_nearer_to_the_border_than_the_bound_is_lost() -> None:
    part = samples()
    pixels = part.samples.inputs["images"].flatten()
    student = model(Line(0.5)).train()
    found = analysed(Robustness(bound=0.1, step_size=0.05), student, part, {"robust": model(Line(0.6))})
    kept = float(((pixels - 0.5).abs() > 0.1).double().mean())
    expected = {"accuracy": 1.0, "fgsm_accuracy": kept, "pgd_accuracy": kept}
    assert found.figures["student"] == pytest.approx(expected, abs=1e-12)
    assert found.figures["robust"]["accuracy"] == float(((pixels <= 0.5) | (pixels > 0.6)).double().mean())
    assert student.training
    assert found.warnings == []
    assert found.table[1] == {"model": "student", "attack": "fgsm", "samples": IMAGES, "right": round(kept * IMAGES)}


def test_a_pgd_that_finds_less_than_one_step_is_warned_of() -> None:
    spec = Robustness(bound=0.2, step_size=0.001, steps=1, random_start="none")
    found = analysed(spec, model(Line(0.5)), samples())
    assert found.figures["student"]["pgd_accuracy"] > found.figures["student"]["fgsm_accuracy"]
    (warning,) = found.warnings
    assert warning.startswith("student is right more often under PGD than under FGSM")


def test_a_teacher_s_name_does_not_take_the_student_s_place() -> None:
    found = analysed(Robustness(), model(Line(0.5)), samples(), {"student": model(Line(0.9))})
    assert list(found.figures) == ["student", "teacher student"]
    assert found.figures["student"]["accuracy"] == 1.0


def test_pixels_of_no_known_range_are_not_attacked() -> None:
    with pytest.raises(NotComputable, match="outside of 0 to 1"):
        analysed(Robustness(), model(Line(0.5)), samples(scale=2.0))


def test_the_seed_decides_what_is_attacked() -> None:
    first, again, other = (split_held_out(samples(), Robustness(limit=30), seed)[1] for seed in (1, 1, 2))
    assert len(first.samples) == 30
    assert first.samples.index.tolist() == again.samples.index.tolist() != other.samples.index.tolist()
    assert split_held_out(samples(), Robustness(), 1)[0] is None


def test_report_and_card_have_student_and_teachers(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "teachers": [{"model": "teacher", "name": name} for name in ("a", "b")],
        "data": {"train": "data", "eval_fraction": 0.4},
        "recipe": {"losses": [{"kind": "kd"}]},
        "evaluation": {"diagnostics": [{"kind": "robustness", "limit": 15}]},
    }
    word = play(stage(tmp_path, **asked), tmp_path).word
    assert isinstance(word, Finished), word
    found = json.loads((tmp_path / "bundle" / "report.json").read_text())["diagnostics"]["robustness"]
    assert list(found["figures"]) == ["student", "a", "b"]
    assert found["samples"] == {"fitted": 0, "judged": 15, "training": 0}
    for figures in found["figures"].values():
        assert 0 <= figures["pgd_accuracy"] <= figures["accuracy"] <= 1
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert "### robustness\n\nOn 15 held-out samples.\n" in card
    assert "| | student | a | b |" in card
