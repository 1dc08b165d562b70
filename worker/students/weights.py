"""Reads and writes the two files that make a model: `config.json` and `model.safetensors`."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.recipe.model import ModelConfig
from worker import students
from worker.students.model import Model

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MAX_CONFIG_BYTES = 2**20


class InvalidModel(Exception):
    """The files do not make a model; the text says what is wrong, in words fit for the model's owner."""


def save_model(model: Model, folder: Path) -> None:
    """Write both files into `folder`; the weights are those of the bare network, without preprocessing."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(model.config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> ModelConfig:
    """The description in `config.json`; raises InvalidModel."""
    path = folder / CONFIG
    if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidModel(f"{CONFIG} is missing or larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return ModelConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidModel(f"{CONFIG}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def load_model(folder: Path, config: ModelConfig | None = None) -> Model:
    """The model in `folder`, in evaluation mode on the CPU, in float32; raises InvalidModel.

    The network is first built without memory and held against the header of the file, so that a description which does
    not fit its weights costs nothing.
    """
    config = config or read_config(folder)
    with torch.device("meta"):
        network = students.build(config.architecture, config.input, config.outputs)
    expected = network.state_dict()
    try:
        _check_header(folder / WEIGHTS, expected)
        stored = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise InvalidModel(f"{WEIGHTS} is not a sound safetensors file") from error
    network.load_state_dict({name: _convert(name, stored[name], expected[name]) for name in expected}, assign=True)
    return _ready(Model(config, network))


def _check_header(path: Path, expected: dict[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name, tensor in expected.items():
        if name not in shapes:
            raise InvalidModel(f"{WEIGHTS} lacks the tensor {name!r} of shape {tuple(tensor.shape)}")
        if shapes[name] != tuple(tensor.shape):
            raise InvalidModel(f"{WEIGHTS}: tensor {name!r} has shape {shapes[name]}, not {tuple(tensor.shape)}")
    for name in shapes:
        if name not in expected:
            raise InvalidModel(f"{WEIGHTS} has a tensor {name!r} that the architecture has no place for")


def _convert(name: str, stored: Tensor, expected: Tensor) -> Tensor:
    if stored.is_floating_point() != expected.is_floating_point():
        raise InvalidModel(f"{WEIGHTS}: tensor {name!r} has dtype {stored.dtype}, not {expected.dtype}")
    if stored.is_floating_point() and not bool(stored.isfinite().all()):
        raise InvalidModel(f"{WEIGHTS}: tensor {name!r} holds NaN or infinite values")
    return stored.to(expected.dtype)


def _ready(model: Model) -> Model:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    nn.Module.eval(model)
    return model
