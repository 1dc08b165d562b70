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
from worker.protocol import Failed, Finished, Log
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


LIBRARY_VIT = {
    "architecture": "transformers",
    "config": {
        **{"model_type": "vit", "patch_size": 3, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        "intermediate_size": 8,
    },
}
RMS = [{"match": "*layernorm*", "with": {"kind": "rms"}}]


def test_a_network_with_replaced_layers_is_exported_and_opens_here_alone(tmp_path: Path) -> None:
    word = finished(tmp_path, student={**LIBRARY_VIT, "replace": RMS}, export=["safetensors", "onnx", "torch-export"])
    names = {artifact.name for artifact in word.artifacts}
    assert {"config.json", "model.onnx", "model.pt2", WEIGHTS} <= names
    assert not {"stillhouse.json", "preprocessor_config.json"} & names
    described = load_model(tmp_path / "bundle").config.architecture
    assert described.model_dump(mode="json")["replace"] == RMS


def test_a_stored_network_starts_with_other_layers_and_names_what_is_lost(tmp_path: Path) -> None:
    finished(tmp_path / "stored", student=LIBRARY_VIT)
    recipe = {"optimizer": {"kind": "sgd", "lr": 1e-30, "momentum": 0.0}, "max_steps": 1}
    student = {"architecture": "pretrained", "model": "stored/bundle", "replace": RMS}
    folder = tmp_path / "started"
    staged = stage(folder, student=student, recipe=recipe)
    staged = staged.model_copy(update={"inputs": {**staged.inputs, "stored/bundle": "../stored/bundle"}})
    played = play(staged, folder)
    assert isinstance(played.word, Finished), played.word
    ours, stored = (load_model(tmp_path / name / "bundle").network.state_dict() for name in ("started", "stored"))
    lost = {name for name in stored if "layernorm" in name and name.endswith("bias")}
    assert set(ours) == set(stored) - lost
    assert all(torch.equal(ours[name], stored[name]) for name in ours)
    warning = next(each.message for each in played.of(Log) if "no place" in each.message)
    assert all(repr(name) in warning for name in sorted(lost)[:3])


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
