"""Networks of timm: opened, described, trained and written where the library is installed, refused elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file

from app.recipe.students.architectures import Network, Timm
from app.recipe.students.model import ImageInput, Preprocessing
from tests.worker.bundle.test_card import run_all
from tests.worker.training.builders import document, finished, play, stage
from worker import students
from worker.errors import UserError
from worker.protocol import Assignment, Failed
from worker.students import timm_network
from worker.students.faults import InvalidModel
from worker.students.model import Resize
from worker.students.weights import load_model, read_config

NETWORK: TypeAdapter[Any] = TypeAdapter(Network)
TINY = {"architecture": "timm", "model": "resnet10t", "args": {"channels": [8, 8, 16, 16], "stem_width": 8}}
IMAGES = ImageInput(channels=1, height=32, width=32)


def _timm() -> tuple[ModuleType | None, str]:
    try:
        return timm_network.library(), ""
    except UserError as error:
        return None, error.message


THERE, WHY = _timm()
with_timm = pytest.mark.skipif(THERE is None, reason=WHY)


def write_folder(folder: Path, name: str = "resnet10t", classes: int = 4, **settings: Any) -> torch.nn.Module:
    """A folder as timm's hub keeps it, with random weights; the network in it."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=classes, pretrained_cfg_overlay=settings or None)
    names = [f"name {n}" for n in range(classes)]
    save_for_hf(network, str(folder), model_config={"label_names": names}, safe_serialization=True)
    return network.eval()


# ---- without the library


def test_only_plain_names_and_settings_make_a_network() -> None:
    assert Timm.model_validate({"architecture": "timm", "model": "convnext_atto"}).args == {}
    for wrong in (
        {"model": "hf-hub:someone/network"},
        {"model": "local-dir:/etc"},
        {"model": "resnet18.a1_in1k"},
        {"model": "resnet18", "args": {"pretrained": True}},
        {"model": "resnet18", "args": {"checkpoint_path": "/etc/passwd"}},
        {"model": "resnet18", "args": {"pretrained_cfg": {"url": "http://localhost"}}},
        {"model": "resnet18", "args": {"num_classes": 3}},
        {"model": "resnet18", "args": {"features_only": True}},
        {"model": "vit_tiny_patch16_224", "args": {"depth": 10**6}},
    ):
        with pytest.raises(ValidationError):
            Timm.model_validate({"architecture": "timm", **wrong})


@pytest.mark.skipif(THERE is not None, reason="timm can be imported here")
def test_without_the_library_a_job_is_refused_with_the_reason(tmp_path: Path) -> None:
    word = play(stage(tmp_path, student=TINY), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("user", "missing_library", "student.architecture")
    assert "pip install stillhouse[timm]" in word.message
    assert WHY.rpartition(": ")[2] in word.message


def test_a_folder_describes_itself_without_the_library(tmp_path: Path) -> None:
    told = {"input_size": [3, 64, 64], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "interpolation": "bicubic"}
    config = {
        "architecture": "resnet18",
        "num_classes": 3,
        "label_names": ["ant", "bee", "cat"],
        "model_args": {"stem_width": 8, "in_chans": 3},
        "pretrained_cfg": {**told, "crop_pct": 0.95, "crop_mode": "center", "url": "https://elsewhere/weights"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = read_config(tmp_path)
    assert found.architecture == Timm(model="resnet18", args={"stem_width": 8})
    assert found.input == ImageInput(channels=3, height=64, width=64)
    assert found.class_names == ["ant", "bee", "cat"]
    assert found.preprocessing == Preprocessing(
        scale=1 / 255, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.2], interpolation="bicubic", crop=0.95
    )
    (tmp_path / "config.json").write_text(json.dumps(config | {"label_names": {"0": "ant", "1": "bee", "2": "cat"}}))
    assert read_config(tmp_path).class_names == ["ant", "bee", "cat"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"label_names": ["one"]}, "label_names is invalid; accepted: a name for each of the 3 classes"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode is border"),
        ({"pretrained_cfg": {"input_size": [3, 64]}}, "input_size"),
        ({"pretrained_cfg": 3}, "pretrained_cfg is no object"),
        ({"architecture": "hf-hub:x/y"}, "model"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "checkpoint_path would load files"),
    ],
)
def test_an_unsupported_folder_is_refused_by_name(tmp_path: Path, change: Any, said: str) -> None:
    config = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {}} | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModel, match=said):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("sides", "scaled", "corner"),
    [((40, 40), (36, 36), (2, 2)), ((30, 60), (36, 72), (2, 20)), ((100, 50), (72, 36), (20, 2))],
)
def test_the_middle_of_an_image_is_cut_out_in_proportion(
    sides: tuple[int, int], scaled: tuple[int, int], corner: tuple[int, int]
) -> None:
    told = Preprocessing(mean=[0.0], std=[1.0], crop=32 / 36)
    images = torch.rand(2, 1, *sides)
    whole = torch.nn.functional.interpolate(images, scaled, mode="bilinear", antialias=True, align_corners=False)
    top, left = corner
    torch.testing.assert_close(Resize(IMAGES, told)(images), whole[..., top : top + 32, left : left + 32])
    same = torch.rand(2, 1, 32, 32)
    assert Resize(IMAGES, told)(same) is same


# ---- with the library


@with_timm
def test_a_name_that_the_library_lacks_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="has no model 'resnet18x'") as caught:
        students.build(Timm(model="resnet18x"), IMAGES, 4)
    assert caught.value.param == "student.model"
    with pytest.raises(UserError, match="can't be built from these arguments"):
        students.build(Timm(model="resnet18", args={"no_such_setting": 1}), IMAGES, 4)


@with_timm
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_a_folder_of_timm_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    network = write_folder(tmp_path, name)
    model = load_model(tmp_path)
    size = network.pretrained_cfg["input_size"][1:]  # type: ignore[index]  # timm's
    pixels = torch.randint(0, 256, (2, 3, *size))
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))  # type: ignore[index]
    with torch.no_grad():
        expected = network((pixels / 255 - mean) / std)
    torch.testing.assert_close(model(pixels), expected, rtol=1e-5, atol=1e-5)
    assert model.config.class_names == [f"name {n}" for n in range(4)]


@with_timm
@pytest.mark.parametrize(("width", "height"), [(300, 300), (500, 320), (250, 400)])
def test_images_are_prepared_as_timms_own_transforms_do(tmp_path: Path, width: int, height: int) -> None:
    from timm.data import create_transform, resolve_model_data_config

    network = write_folder(tmp_path)
    model = load_model(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    expected = create_transform(**resolve_model_data_config(network), is_training=False)(picture)
    pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None]
    found = model.preprocess(model.fit(pixels))[0]
    assert found.shape == expected.shape
    assert (
        float((found - expected).abs().max()) < 1.5 / 255 / 0.224
    )  # one and a half of 255 levels: pictures are rounded


@with_timm
def test_a_student_of_timm_is_trained_and_opens_there(tmp_path: Path) -> None:
    formats = ["safetensors", "onnx", "torch-export"]
    bundle = finished(tmp_path / "job", stage(tmp_path / "job", student=TINY, teacher=True, export=formats))
    import timm

    theirs, ours = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval(), load_model(bundle)
    images = torch.randint(0, 256, (3, 1, 6, 6))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ours.preprocess(images)), ours(images))
    said = run_all(tmp_path / "job", tmp_path / "away")
    assert said["model.safetensors"] == said["model.onnx"] == said["model.pt2"]


@with_timm
def test_a_folder_of_timm_teaches_and_goes_on_learning(tmp_path: Path) -> None:
    assignment = stage(tmp_path / "job", teacher=True)
    data = {"train": "data"}
    colours = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "job" / "data.npz", x=colours, y=np.arange(40) % 4)
    write_folder(tmp_path / "job" / "timm")
    student = {"architecture": "pretrained", "model": "timm"}
    spec = document(student=student, teacher=True, data=data) | {"teacher": {"model": "timm"}}
    kind = type(assignment.spec)
    made = Assignment(spec=kind.model_validate(spec), inputs={"data": "data.npz", "timm": "timm"})
    bundle = finished(tmp_path / "job", made)
    report = json.loads((bundle / "report.json").read_text())
    assert report["teacher"]["parameters"] == report["student"]["parameters"]
    found = read_config(bundle).architecture
    assert isinstance(found, Timm)
    assert found.model == "resnet10t"


@with_timm
def test_a_student_with_other_classes_keeps_all_but_the_last_layer(tmp_path: Path) -> None:
    network = write_folder(tmp_path / "timm", classes=7)
    assignment = stage(tmp_path / "job")
    colours = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "job" / "data.npz", x=colours, y=np.arange(40) % 4)
    recipe = {"optimizer": {"kind": "sgd", "lr": 1e-30, "momentum": 0.0}, "epochs": 1, "max_steps": 1}
    spec = document(student={"architecture": "pretrained", "model": "timm"}, recipe=recipe)
    kind = type(assignment.spec)
    bundle = finished(
        tmp_path / "job",
        Assignment(spec=kind.model_validate(spec), inputs={"data": "data.npz", "timm": str(tmp_path / "timm")}),
    )
    found = load_model(bundle).network.state_dict()
    assert torch.equal(found["conv1.0.weight"], network.state_dict()["conv1.0.weight"])
    assert found["fc.weight"].shape[0] == 4


@with_timm
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    network = write_folder(tmp_path)
    state = network.state_dict()
    del state["fc.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(InvalidModel, match=r"lacks the tensor 'fc.bias'"):
        load_model(tmp_path)
