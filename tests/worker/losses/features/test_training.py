"""Every loss on features trains a network of the zoo, and adds nothing to the exported model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from app.recipe.losses import Hint
from app.recipe.losses.taps import Pair, Tap
from app.recipe.students.architectures import CifarResNet, Mlp, Student, Vit
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.teachers.teacher import Teacher
from tests.worker.training.builders import play, stage, weights, write_teacher
from worker.losses.builder import LossBuilder, TeacherSide
from worker.losses.objective import BatchOutputs, Objective
from worker.outputs import TeacherSignal
from worker.protocol import Assignment, CheckpointSaved, Finished, Metrics, Stopped
from worker.students.model import Model
from worker.students.weights import load_model

RESNET: dict[str, Any] = {"architecture": "cifar-resnet", "depth": 8, "width": 4}
VIT: dict[str, Any] = {"architecture": "vit", "patch_size": 3, "width": 12, "depth": 1, "heads": 2}
STAGES = ["stages.0", "stages.1", "stages.2"]
PAIRS = [{"teacher": path, "student": path} for path in STAGES]
NORMS = [{"teacher": f"{path}.0.norm2", "student": f"{path}.0.norm2"} for path in STAGES]
LAST = PAIRS[-1]
TOKENS = {"teacher": "blocks.1", "student": "blocks.0"}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "hint": (RESNET, {"kind": "hint", "pairs": PAIRS}),
    "hint of tokens": (VIT, {"kind": "hint", "pairs": [TOKENS]}),
    "rkd of outputs": (RESNET, {"kind": "rkd"}),
    "rkd": (VIT, {"kind": "rkd", "pair": TOKENS}),
    "attention-relation": (
        VIT,
        {
            "kind": "attention-relation",
            "layer": {
                "teacher": {"qkv": "blocks.1.attention.qkv"},
                "student": {"qkv": "blocks.0.attention.qkv"},
            },
            "relation_heads": 2,
        },
    ),
    "overhaul": (RESNET, {"kind": "overhaul", "pairs": NORMS}),
    "activation-boundary": (RESNET, {"kind": "activation-boundary", "pairs": NORMS}),
    "lipschitz": (RESNET, {"kind": "lipschitz", "pairs": NORMS}),
    "mi-alpha": (RESNET, {"kind": "mi-alpha", "pair": LAST, "hidden": 8, "embedding": 4}),
    "mi-alpha of tokens": (VIT, {"kind": "mi-alpha", "pair": TOKENS, "bound": "infonce"}),
    "inheritance-exploration": (RESNET, {"kind": "inheritance-exploration", "pair": LAST}),
}
AUTOENCODER = {"kind": "feature-autoencoder", "tap": LAST["teacher"]}


def teacher_for(student: dict[str, Any]) -> Student:
    if student is VIT:
        return Vit(patch_size=3, width=16, depth=2, heads=2)
    return CifarResNet(depth=8, width=6)


def job(name: str, **recipe: Any) -> dict[str, Any]:
    student, term = CASES[name]
    stages = [{"losses": [AUTOENCODER], "epochs": 1, "trains": "terms"}] if name == "inheritance-exploration" else []
    losses = [{"kind": "cross-entropy"}, term]
    return {"student": student, "teacher": True, "recipe": {"losses": losses, "stages": stages, "epochs": 2, **recipe}}


def staged(name: str, folder: Path) -> Assignment:
    """The job of this name with its inputs in `folder`."""
    assignment = stage(folder, **job(name))
    write_teacher(folder / "teacher", teacher_for(CASES[name][0]))
    return assignment


@pytest.mark.parametrize("name", CASES)
def test_a_student_trains_and_is_exported_alone(name: str, tmp_path: Path) -> None:
    _, term = CASES[name]
    played = play(staged(name, tmp_path), tmp_path)
    assert isinstance(played.word, Finished), played.word
    reported = [metrics.values.get(f"train/loss/{term['kind']}") for metrics in played.of(Metrics)]
    values = [value for value in reported if value is not None]
    assert values
    assert all(math.isfinite(value) for value in values)
    load_model(tmp_path / "bundle")  # refuses tensors that are not the network's


@pytest.mark.parametrize("name", ["overhaul", "mi-alpha", "inheritance-exploration"])
@pytest.mark.parametrize("steps", [2, 5])
def test_a_run_continues_with_its_parts_as_they_were(name: str, steps: int, tmp_path: Path) -> None:
    """Stopped in the stage that trains the autoencoder, where there is one, and behind it."""
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    assert isinstance(play(staged(name, straight), straight).word, Finished)
    stopped = play(staged(name, halting), halting, steps)
    assert stopped.word == Stopped(step=steps)
    resumed = staged(name, halting).model_copy(update={"resume": stopped.of(CheckpointSaved)[-1].path})
    assert isinstance(play(resumed, halting).word, Finished)
    assert weights(halting) == weights(straight)


def test_padding_reaches_the_losses_of_both_sides() -> None:
    own, taught = torch.tensor([[True, False]]), torch.tensor([[True, True, False]])
    features = {Tap(path="tokens"): torch.randn(1, 2, 3)}
    signal = TeacherSignal(torch.zeros(1, 3), None, {Tap(path="tokens"): torch.randn(1, 3, 3)}, taught)
    shapes = [{tap: seen.shape for tap, seen in side.items()} for side in (features, signal.features)]
    builder = LossBuilder(shapes[0], {"teacher": TeacherSide(nn.Module(), shapes[1])}, 3)
    spec = Hint(pairs=[Pair(teacher=Tap(path="tokens"), student=Tap(path="tokens"))], reduction="mean")
    objective = Objective([spec], builder, [Teacher(model="m")])
    seen = BatchOutputs(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64), {"teacher": signal}, features, own)
    found = objective(seen, torch.tensor(1))["loss"]
    (student,), (teacher,) = features[Tap(path="tokens")], signal.features[Tap(path="tokens")]
    torch.testing.assert_close(found, (student[0] - teacher[:2].mean(0)).square().mean())


def test_a_model_of_texts_masks_its_padding() -> None:
    config = ModelConfig(
        task="text-classification",
        architecture=Mlp(hidden=[2]),
        input=TextInput(length=4, vocabulary=9, pad=3),
        classes=2,
    )
    ids = torch.tensor([[5, 0, 3, 3]])
    assert Model(config, nn.Identity()).tokens(ids).tolist() == [[True, True, False, False]]
