"""Storing a model and reading untrusted models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.recipe.students.architectures import CifarResNet, Mlp, Student
from app.recipe.students.layers import GroupNorm
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.errors import UserError
from worker.students.model import Model
from worker.students.weights import CONFIG, WEIGHTS, load_model, save_model
from worker.teachers import load_teacher, read_teacher_config

IMAGES = torch.randint(0, 256, (4, 2, 6, 6), dtype=torch.uint8)


def model(student: Student | None = None) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=student or Mlp(hidden=[3]),
        input=ImageInput(channels=2, height=6, width=6),
        preprocessing=Preprocessing(scale=1 / 255, mean=[0.4, 0.5], std=[0.2, 0.1]),
        classes=5,
    )
    return Model(config)


def stored(folder: Path, student: Student | None = None) -> Path:
    save_model(model(student), folder)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_teacher(folder, "teacher.model")
    assert (caught.value.code, caught.value.param) == ("invalid_teacher", "teacher.model")
    return caught.value.message


@pytest.mark.parametrize("student", [Mlp(), CifarResNet(depth=8, width=2)], ids=lambda s: s.architecture)
def test_a_stored_model_gives_the_same_logits(tmp_path: Path, student: Student) -> None:
    original = model(student).eval()
    save_model(original, tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded(IMAGES), original(IMAGES))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_weights_are_those_of_the_bare_network(tmp_path: Path) -> None:
    assert set(load_file(stored(tmp_path) / WEIGHTS)) == set(model().network.state_dict())


def test_raw_pixels_are_normalised_per_channel() -> None:
    found = model().preprocess(IMAGES)
    expected = (IMAGES / 255 - torch.tensor([0.4, 0.5]).view(-1, 1, 1)) / torch.tensor([0.2, 0.1]).view(-1, 1, 1)
    torch.testing.assert_close(found, expected)


def test_half_precision_weights_are_taken(tmp_path: Path) -> None:
    stored(tmp_path)
    save_file({name: t.half() for name, t in load_file(tmp_path / WEIGHTS).items()}, tmp_path / WEIGHTS)
    assert {parameter.dtype for parameter in load_model(tmp_path).parameters()} == {torch.float32}


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = load_file(stored(tmp_path) / WEIGHTS)
    del tensors["1.bias"]
    save_file(tensors, tmp_path / WEIGHTS)
    assert "lacks the tensor '1.bias'" in refusal(tmp_path)


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    save_file(load_file(stored(tmp_path) / WEIGHTS) | {"extra": torch.zeros(1)}, tmp_path / WEIGHTS)
    assert "'extra'" in refusal(tmp_path)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    save_file(load_file(stored(tmp_path) / WEIGHTS) | {"1.bias": torch.zeros(4)}, tmp_path / WEIGHTS)
    assert "'1.bias' has shape (4,), not (3,)" in refusal(tmp_path)


def test_a_tensor_of_another_kind_is_named(tmp_path: Path) -> None:
    save_file(load_file(stored(tmp_path) / WEIGHTS) | {"1.bias": torch.zeros(3).long()}, tmp_path / WEIGHTS)
    assert "'1.bias' has dtype" in refusal(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file(load_file(stored(tmp_path) / WEIGHTS) | {"1.bias": torch.tensor([0, 1, torch.nan])}, tmp_path / WEIGHTS)
    assert "NaN" in refusal(tmp_path)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    stored(tmp_path)
    torch.save(model().network.state_dict(), tmp_path / WEIGHTS)
    assert "not a valid safetensors file" in refusal(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = stored(tmp_path) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])
    assert "not a valid safetensors file" in refusal(tmp_path)


def test_a_description_too_large_for_its_weights_costs_no_memory(tmp_path: Path) -> None:
    stored(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["architecture"] = {"architecture": "mlp", "hidden": [16384] * 16}  # 17 GB of weights
    (tmp_path / CONFIG).write_text(json.dumps(config))
    assert "has shape" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1", '{"task": "image-classification", "code": "import os"}'])
def test_a_bad_description_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / CONFIG).write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        read_teacher_config(tmp_path, "teacher.model")


def test_a_missing_description_is_refused(tmp_path: Path) -> None:
    assert "config.json is missing" in refusal(tmp_path)


def test_a_network_that_can_t_be_built_is_refused(tmp_path: Path) -> None:
    stored(tmp_path, CifarResNet(depth=8, width=6, norm=GroupNorm(groups=3)))
    document = json.loads((tmp_path / CONFIG).read_text())
    document["architecture"]["norm"]["groups"] = 4
    (tmp_path / CONFIG).write_text(json.dumps(document))
    assert "config.json: architecture.norm.groups: 4 does not divide 6, 12, 24" in refusal(tmp_path)


def test_counters_of_a_batch_norm_may_be_missing(tmp_path: Path) -> None:
    stored(tmp_path, CifarResNet(depth=8, width=2))
    kept = {name: tensor for name, tensor in load_file(tmp_path / WEIGHTS).items() if "num_batches" not in name}
    save_file(kept, tmp_path / WEIGHTS)
    expected = model(CifarResNet(depth=8, width=2)).eval()
    torch.testing.assert_close(load_model(tmp_path)(IMAGES), expected(IMAGES))
