"""Networks of the library timm, by name. The library is loaded on first use, and downloads nothing.

timm imports torchvision, which fails with a torch that it was not built for; if it can't be imported, a job that needs
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
"""The library's defaults for a configuration."""


@cache
def library() -> ModuleType:
    """The library. Raises UserError (`missing_library`) with the reason if it can't be imported."""
    try:
        import timm
    except Exception as error:  # torchvision may raise any, with a torch that it was not built for
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        message = f"networks of timm can't be built on this worker (pip install stillhouse[timm]): {reason[0]}"
        raise UserError("missing_library", message, "student.architecture") from error
    module: ModuleType = timm
    return module


def build(network: Timm, image: ImageInput, outputs: int) -> nn.Module:
    """A fresh network: from preprocessed pixels (N, C, H, W) float32 to logits or predictions (N, outputs), floating.

    Raises UserError: `missing_library`; `invalid_architecture` if the library can't build it.
    """
    timm = library()
    if not timm.is_model(network.model):
        near = ", ".join(timm.list_models(f"{network.model[:6]}*")[:5]) or "see timm.list_models()"
        message = f"timm {timm.__version__} has no model {network.model!r}; accepted: one of its names: {near}"
        raise UserError("invalid_architecture", message, "student.model")
    arguments = {**network.args, **_size(timm, network.model, image)}
    with blaming_the_arguments(network):
        made: nn.Module = timm.create_model(
            network.model, pretrained=False, num_classes=outputs, in_chans=image.channels, **arguments
        )
    return made


def _size(timm: ModuleType, name: str, image: ImageInput) -> dict[str, Any]:
    """Argument for the image size, of a network that is built for one size."""
    pretrained = timm.get_pretrained_cfg(name)
    size = (image.height, image.width)
    if pretrained is None or not pretrained.fixed_input_size or tuple(pretrained.input_size[1:]) == size:
        return {}
    return {"img_size": size}


@contextmanager
def blaming_the_arguments(network: Timm) -> Iterator[None]:
    """Turn any error of the library into a UserError (`invalid_architecture`)."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # its networks raise many kinds
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        message = f"a {network.model} of timm can't be built from these arguments: {reason[0]}"
        raise UserError("invalid_architecture", message, "student.args") from error


def last_layers(network: Any) -> tuple[str, ...]:
    """Prefixes of the names of the last layers' weights."""
    names = network.pretrained_cfg["classifier"]
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def describe(document: Mapping[str, Any]) -> ModelConfig:
    """The description of a folder, from its `config.json`. Raises InvalidModel, or ValueError for an invalid one."""
    refuse_code(dict(document))
    pretrained = document.get("pretrained_cfg", document)  # older folders have no such part
    if not isinstance(pretrained, dict):
        raise InvalidModel("config.json: pretrained_cfg is no object")
    settings = {
        key: pretrained.get(key) if pretrained.get(key) is not None else value for key, value in DEFAULTS.items()
    }
    classes = document.get("num_classes", pretrained.get("num_classes"))
    if not isinstance(classes, int) or classes < 2:
        raise InvalidModel(f"config.json: num_classes is {classes}; accepted: a classifier of two classes or more")
    arguments = {key: value for key, value in (document.get("model_args") or {}).items() if key not in _FOLLOWS}
    try:
        return ModelConfig(
            architecture=Timm(model=str(document["architecture"]).partition(".")[0], args=arguments),
            input=_image(settings["input_size"]),
            preprocessing=_preprocessing(settings),
            classes=classes,
            class_names=_names(document.get("label_names", pretrained.get("label_names")), classes),
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidModel(f"config.json: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


_FOLLOWS = ("num_classes", "in_chans", "img_size")


def _image(size: Any) -> ImageInput:
    if not isinstance(size, list) or len(size) != 3:
        raise InvalidModel(f"config.json: input_size is {size}; accepted: channels, height and width")
    channels, height, width = size
    return ImageInput(channels=channels, height=height, width=width)


def _preprocessing(settings: Mapping[str, Any]) -> Preprocessing:
    """Preprocessing from the configuration; squash means resizing the whole image, as without a crop."""
    crop, mode = settings["crop_pct"], settings["crop_mode"]
    if mode not in ("center", "squash") or (mode == "squash" and crop != 1.0):
        raise InvalidModel(f"config.json: crop_mode is {mode} with crop_pct {crop}; accepted: center, or squash with 1")
    return Preprocessing(
        scale=SCALE,
        mean=[float(value) for value in settings["mean"]],
        std=[float(value) for value in settings["std"]],
        interpolation=settings["interpolation"],
        crop=None if mode == "squash" else float(crop),
    )


def _names(names: Any, classes: int) -> list[str] | None:
    """Names of the classes, from a list, or from an object by number."""
    if names is None:
        return None
    if isinstance(names, dict):
        names = [names.get(str(number)) for number in range(classes)]
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        raise InvalidModel(f"config.json: label_names is invalid; accepted: a name for each of the {classes} classes")
    return names


def write_config(config: ModelConfig, folder: Path) -> None:
    """Write the library's `config.json`, with which it opens the folder (`local-dir:`)."""
    network, image, scaling = config.architecture, config.input, config.preprocessing
    assert isinstance(network, Timm)
    assert isinstance(image, ImageInput)
    assert scaling is not None
    size = _size(library(), network.model, image)
    pretrained: dict[str, Any] = {
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
    text = json.dumps({**document, "pretrained_cfg": pretrained}, indent=2) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
