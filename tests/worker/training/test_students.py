"""Jobs whose student is a network of the Transformers library, or a smaller copy of its teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from app.recipe.students.architectures import Vit
from tests.worker.training.builders import play, stage, weights, write_teacher
from worker.protocol import Failed, Finished
from worker.students.weights import WEIGHTS, load_model

LIBRARY = {
    "architecture": "transformers",
    "config": {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]},
}
SHRINK = {"architecture": "shrink", "layers": [0, 2]}
TEACHER = Vit(patch_size=3, width=8, depth=3, heads=2)


def finished(folder: Path, **changes: Any) -> Finished:
    staged = stage(folder, **changes)
    write_teacher(folder / "teacher", TEACHER)
    word = play(staged, folder).word
    assert isinstance(word, Finished), word
    return word


def test_a_network_of_the_library_is_trained_and_opens_there(tmp_path: Path) -> None:
    word = finished(tmp_path, teacher=True, student=LIBRARY, export=["safetensors", "onnx"])
    names = {artifact.name for artifact in word.artifacts}
    assert {"config.json", "stillhouse.json", "preprocessor_config.json", "model.onnx", WEIGHTS} <= names
    bundle = tmp_path / "bundle"
    ours, theirs = load_model(bundle), AutoModelForImageClassification.from_pretrained(bundle)
    images = torch.randint(0, 256, (3, 1, 6, 6), dtype=torch.uint8)
    torch.testing.assert_close(theirs(pixel_values=ours.preprocess(images)).logits, ours(images))
    report = json.loads((bundle / "report.json").read_text())
    assert report["student"]["parameters"] == sum(parameter.numel() for parameter in ours.parameters())


def test_a_resumed_network_of_the_library_ends_as_if_never_interrupted(tmp_path: Path) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    finished(whole, student=LIBRARY)
    staged = stage(halved, student=LIBRARY)
    play(staged, halved, steps=4)
    newest = max((halved / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
    resumed = staged.model_copy(update={"resume": str(newest.relative_to(halved))})
    assert isinstance(play(resumed, halved).word, Finished)
    assert weights(halved) == weights(whole)


def test_a_smaller_copy_starts_from_its_teacher(tmp_path: Path) -> None:
    recipe = {"optimizer": {"kind": "sgd", "lr": 1e-30, "momentum": 0.0}, "max_steps": 1}
    finished(tmp_path, teacher=True, student=SHRINK, recipe=recipe)
    ours, theirs = (load_file(tmp_path / folder / WEIGHTS) for folder in ("bundle", "teacher"))
    assert torch.equal(ours["blocks.1.norm1.weight"], theirs["blocks.2.norm1.weight"])
    assert torch.equal(ours["blocks.1.attention.qkv.weight"], theirs["blocks.2.attention.qkv.weight"])
    assert torch.equal(ours["head.weight"], theirs["head.weight"])
    student, teacher = (load_model(tmp_path / folder).config for folder in ("bundle", "teacher"))
    assert student.preprocessing == teacher.preprocessing
    assert student.architecture == TEACHER.model_copy(update={"depth": 2})


@pytest.mark.parametrize(
    ("config", "param"),
    [
        ({"model_type": "resnet", "layer_type": "nonsense"}, "student.config"),
        ({"model_type": "resnet", "num_channels": 3}, "student.config.num_channels"),
        ({"model_type": "vit", "image_size": 224}, "student.config.image_size"),
        ({"model_type": "bert"}, "student.config.model_type"),
    ],
)
def test_a_network_that_can_t_be_had_is_the_user_s_fault(tmp_path: Path, config: dict[str, Any], param: str) -> None:
    staged = stage(tmp_path, student={"architecture": "transformers", "config": config})
    word = play(staged, tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", param)
