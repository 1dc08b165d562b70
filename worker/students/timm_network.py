"""Networks of the library timm, by name. The library is loaded when the first one is needed, and fetches nothing.

timm imports torchvision, which refuses a torch that it was not built for; where it can't be imported, a job that needs
it is refused with the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from app.recipe.students.architectures import Timm
from app.recipe.students.hugging_face import refuse_code
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.errors import UserError
from worker.students.faults import InvalidModel

os.environ["HF_HUB_OFFLINE"] = "1"
CONFIG = "config.json"
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SCALE = 1 / 255
DEFAULTS: dict[str, Any] = {
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "input_size": [3, 224, 224],
}
"""What the library takes where a configuration says nothing."""


@cache
def library() -> ModuleType:
    """The library. Raises UserError (`missing_library`) with the reason where it can't be imported."""
    try:
        import timm
    except Exception as error:  # torchvision's of any kind, beside a torch that it was not built for
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        message = f"networks of timm can't be built on this worker (pip install stillhouse[timm]): {reason[0]}"
        raise UserError("missing_library", message, "student.architecture") from error
    module: ModuleType = timm
    return module


def build(network: Timm, image: ImageInput, outputs: int) -> nn.Module:
    """A fresh network: preprocessed pixels (N, C, H, W) to logits or numbers (N, outputs).

    Raises UserError: `missing_library`; `invalid_architecture` when the library can't build it.
    """
    timm = library()
    if not timm.is_model(network.model):
        near = ", ".join(timm.list_models(f"{network.model[:6]}*")[:5]) or "see timm.list_models()"
        message = f"timm {timm.__version__} has no model {network.model!r}; accepted is one of its names: {near}"
        raise UserError("invalid_architecture", message, "student.model")
    arguments = {**network.args, **_size(timm, network.model, image)}
    with blaming_the_arguments(network):
        made: nn.Module = timm.create_model(
            network.model, pretrained=False, num_classes=outputs, in_chans=image.channels, **arguments
        )
    return made


def _size(timm: ModuleType, name: str, image: ImageInput) -> dict[str, Any]:
    """Of a network that is built for one size of images."""
    told = timm.get_pretrained_cfg(name)
    size = (image.height, image.width)
    if told is None or not told.fixed_input_size or tuple(told.input_size[1:]) == size:
        return {}
    return {"img_size": size}


@contextmanager
def blaming_the_arguments(network: Timm) -> Iterator[None]:
    """Make whatever the library raises a UserError (`invalid_architecture`)."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # of whatever kind its hundreds of networks raise
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        message = f"a {network.model} of timm can't be built from these arguments: {reason[0]}"
        raise UserError("invalid_architecture", message, "student.args") from error


def last_layers(network: Any) -> tuple[str, ...]:
    """Begins of the names of the weights that make the answer."""
    told = network.pretrained_cfg["classifier"]
    return tuple(f"{name}." for name in ([told] if isinstance(told, str) else told))


def describe(document: Mapping[str, Any]) -> ModelConfig:
    """Our description of a folder, of its `config.json`. Raises InvalidModel, or ValueError for what it may not say."""
    refuse_code(dict(document))
    told = document.get("pretrained_cfg", document)  # older folders have no such part
    if not isinstance(told, dict):
        raise InvalidModel("config.json: pretrained_cfg is no object")
    given = {key: told.get(key) if told.get(key) is not None else value for key, value in DEFAULTS.items()}
    classes = document.get("num_classes", told.get("num_classes"))
    if not isinstance(classes, int) or classes < 2:
        raise InvalidModel(f"config.json: num_classes is {classes}; accepted is a classifier of two classes or more")
    arguments = {key: value for key, value in (document.get("model_args") or {}).items() if key not in _FOLLOWS}
    try:
        return ModelConfig(
            architecture=Timm(model=str(document["architecture"]).partition(".")[0], args=arguments),
            input=_image(given["input_size"]),
            preprocessing=_preprocessing(given),
            classes=classes,
            class_names=_names(document.get("label_names", told.get("label_names")), classes),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidModel(f"config.json: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


_FOLLOWS = ("num_classes", "in_chans", "img_size")


def _image(size: Any) -> ImageInput:
    if not isinstance(size, list) or len(size) != 3:
        raise InvalidModel(f"config.json: input_size is {size}; accepted is channels, height and width")
    channels, height, width = size
    return ImageInput(channels=channels, height=height, width=width)


def _preprocessing(given: Mapping[str, Any]) -> Preprocessing:
    """Squashing to the whole size is what we do of ourselves."""
    crop, mode = given["crop_pct"], given["crop_mode"]
    if mode not in ("center", "squash") or (mode == "squash" and crop != 1.0):
        raise InvalidModel(
            f"config.json: crop_mode is {mode} with crop_pct {crop}; accepted is center, or squash with 1"
        )
    return Preprocessing(
        scale=SCALE,
        mean=[float(value) for value in given["mean"]],
        std=[float(value) for value in given["std"]],
        interpolation=given["interpolation"],
        crop=None if mode == "squash" else float(crop),
    )


def _names(told: Any, classes: int) -> list[str] | None:
    """By the numbers of the classes; a list, or an object by number."""
    if told is None:
        return None
    if isinstance(told, dict):
        told = [told.get(str(number)) for number in range(classes)]
    if not isinstance(told, list) or len(told) != classes or not all(isinstance(name, str) for name in told):
        raise InvalidModel(f"config.json: label_names must name each of the {classes} classes")
    return told


def write_config(config: ModelConfig, folder: Path) -> None:
    """Write the library's `config.json`, with which it opens the folder (`local-dir:`)."""
    network, image, scaling = config.architecture, config.input, config.preprocessing
    assert isinstance(network, Timm)
    assert isinstance(image, ImageInput)
    assert scaling is not None
    size = _size(library(), network.model, image)
    told: dict[str, Any] = {
        "input_size": [image.channels, image.height, image.width],
        "fixed_input_size": bool(library().get_pretrained_cfg(network.model).fixed_input_size),
        "interpolation": scaling.interpolation,
        "crop_pct": scaling.crop or 1.0,
        "crop_mode": "squash" if scaling.crop is None else "center",
        "mean": [value / scaling.scale / 255 for value in scaling.mean],
        "std": [value / scaling.scale / 255 for value in scaling.std],
        "num_classes": config.outputs,
        "custom_load": False,
    }
    document: dict[str, Any] = {"architecture": network.model, "num_classes": config.outputs}
    document |= {"model_args": {**network.args, **size, "in_chans": image.channels}}
    if config.class_names is not None:
        document["label_names"] = config.class_names
    text = json.dumps({**document, "pretrained_cfg": told}, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
