"""Reads and writes the files of a model: its description and `model.safetensors`, or the shards of that.

A folder without this project's description, in the layout of the Transformers library and its hub, can be read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.recipe.students.architectures import DualEncoder, InpFormerNetwork, Timm, Transformers, opens_in_a_library
from app.recipe.students.hugging_face import (
    INDEX,
    MAX_DESCRIPTION_BYTES,
    MAX_INDEX_BYTES,
    WEIGHTS,
    parse_object,
    read_index,
)
from app.recipe.students.model import DESCRIPTIONS, ModelConfig
from app.recipe.students.rules import architecture_problems
from app.recipe.students.timm import is_timm
from worker import students
from worker.errors import UserError
from worker.limits import SECONDS, Subject, memory_limit, reading
from worker.students import hugging_face_folder, hugging_face_weights, timm_network
from worker.students.faults import InvalidModel, Misfit
from worker.students.heads.vq_logits import require_codes
from worker.students.model import Model

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "InvalidModel",
    "load_model",
    "read_config",
    "reading_weights",
    "save_model",
    "stored_weights",
    "weight_files",
]
CONFIG = DESCRIPTIONS[-1]
COUNTER = "num_batches_tracked"
"""Counter of a batch norm; it is not used here, and weights from before 2018 lack it."""
GROWTH = 12
"""Times their size that weights may take in memory while a network is loaded: as stored, and twice in 32 bits."""
SECONDS_PER_GIB = 60


def save_model(model: Model, folder: Path) -> None:
    """Write weights and description into `folder`; the weights are the network's, without preprocessing.

    A network of the libraries Transformers or timm is written in the library's layout.
    """
    if isinstance(model.config.architecture, Transformers):
        hugging_face_weights.save(model.network, model.config, folder)
    if isinstance(model.config.architecture, Transformers) and opens_in_a_library(model.config.architecture):
        hugging_face_folder.write_preprocessing(model.config, folder)
    else:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    if isinstance(model.config.architecture, Timm):
        timm_network.write_config(model.config, folder)
    document = model.config.model_dump_json(indent=2) + "\n"
    (folder / model.config.file_name).write_text(document, encoding="utf-8")


def reading_weights(folder: Path, name: str, code: str, param: str) -> AbstractContextManager[None]:
    """Limits on reading the weights in `folder`, of the model that messages call `name`."""
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return reading(Subject(name, code, param), memory_limit(size, GROWTH), SECONDS + SECONDS_PER_GIB * (size >> 30))


def read_config(folder: Path) -> ModelConfig:
    """The description in `folder`, or one from the files of the Transformers library or timm; raises InvalidModel."""
    path = next((folder / name for name in DESCRIPTIONS if (folder / name).is_file()), folder / CONFIG)
    if not path.is_file() or path.stat().st_size > MAX_DESCRIPTION_BYTES:
        raise InvalidModel(f"{path.name} is missing or larger than {MAX_DESCRIPTION_BYTES} bytes")
    try:
        if "model_type" in (document := parse_object(path.read_bytes(), MAX_DESCRIPTION_BYTES)):
            return hugging_face_folder.describe(document, folder)
        if is_timm(document):
            return timm_network.describe(document)
        return ModelConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidModel(f"{path.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise InvalidModel(f"{path.name}: {error}") from error
    except UserError as error:
        raise InvalidModel(error.message) from error


def load_model(folder: Path, config: ModelConfig | None = None) -> Model:
    """The model in `folder`, in evaluation mode on the CPU, in float32; raises InvalidModel.

    A network of this project is first built without memory and compared with the header of the file, so that a
    description which does not fit its weights costs nothing.
    """
    config = config or read_config(folder)
    files, ignored = weight_files(folder), list[str]()
    try:
        if isinstance(config.architecture, Transformers):
            network, ignored = _of_the_library(config, _finite(_tensors(files)))
        else:
            network = _of_the_zoo(config, files)
    except (SafetensorError, OSError) as error:
        raise InvalidModel(f"{WEIGHTS} is not a valid safetensors file") from error
    except UserError as error:
        raise InvalidModel(error.message) from error
    model = _ready(Model(config, network))
    model.ignored = ignored
    if (layer := model.codebook) is not None:
        try:
            require_codes(layer.codes, len(layer.weight))
        except ValueError as error:
            raise InvalidModel(f"{WEIGHTS}: a tensor of codes {error}") from error
    return model


def _of_the_zoo(config: ModelConfig, files: list[Path]) -> nn.Module:
    if wrong := next(architecture_problems(config.architecture, config.input, "architecture"), None):
        raise InvalidModel(f"{config.file_name}: {wrong.param}: {wrong.message}")
    network = _unfilled(config)
    expected = network.state_dict()
    _check_shapes(_shapes(files), expected)
    stored = _tensors(files)
    network.load_state_dict({name: _stored(name, stored, wanted) for name, wanted in expected.items()}, assign=True)
    return network


def _unfilled(config: ModelConfig) -> nn.Module:
    """The network without memory; that of a library with memory, because it computes tensors that are in no file."""
    network = config.architecture
    inner = network.encoder if isinstance(network, InpFormerNetwork) else network
    if isinstance(inner, Timm | Transformers | DualEncoder):
        with torch.random.fork_rng(devices=[]):
            return students.build(config.architecture, config.input, config.outputs)
    with torch.device("meta"):
        return students.build(config.architecture, config.input, config.outputs)


def _stored(name: str, stored: Mapping[str, Tensor], expected: Tensor) -> Tensor:
    return _convert(name, stored[name], expected) if name in stored else torch.zeros((), dtype=expected.dtype)


def _of_the_library(config: ModelConfig, state: dict[str, Tensor]) -> tuple[nn.Module, list[str]]:
    try:
        return hugging_face_weights.from_state(config, state)
    except Misfit as error:
        raise InvalidModel(f"{WEIGHTS} {error}") from error
    except UserError as error:
        raise InvalidModel(error.message) from error


def stored_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors in `folder`, of their stored shapes and dtypes, by name; raises InvalidModel."""
    try:
        return _finite(_tensors(weight_files(folder)))
    except (SafetensorError, OSError) as error:
        raise InvalidModel(f"{WEIGHTS} is not a valid safetensors file") from error


def _finite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for name, tensor in state.items():
        _require_finite(name, tensor)
    return state


def weight_files(folder: Path) -> list[Path]:
    """One file, or the shards that an index names; raises InvalidModel."""
    path = folder / INDEX
    if (folder / WEIGHTS).is_file() or not path.is_file():
        return [folder / WEIGHTS]
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise ValueError(f"has more than {MAX_INDEX_BYTES} bytes")
        shards = sorted(set(read_index(path.read_bytes()).values()))
    except ValueError as error:
        raise InvalidModel(f"{INDEX} {error}") from error
    return [folder / name for name in shards]


def _shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def _tensors(files: list[Path]) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for path in files:
        stored |= load_file(path)
    return stored


def _check_shapes(stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if name not in stored and not name.endswith(COUNTER):
            raise InvalidModel(f"{WEIGHTS} lacks the tensor {name!r} of shape {tuple(tensor.shape)}")
        if (shape := stored.get(name, ())) != tuple(tensor.shape):
            raise InvalidModel(f"{WEIGHTS}: tensor {name!r} has shape {shape}, not {tuple(tensor.shape)}")
    for name in stored:
        if name not in expected:
            raise InvalidModel(f"{WEIGHTS} has a tensor {name!r} that the architecture does not have")


def _convert(name: str, stored: Tensor, expected: Tensor) -> Tensor:
    if stored.is_floating_point() != expected.is_floating_point():
        raise InvalidModel(f"{WEIGHTS}: tensor {name!r} has dtype {stored.dtype}, not {expected.dtype}")
    _require_finite(name, stored)
    return stored.to(expected.dtype)


def _require_finite(name: str, stored: Tensor) -> None:
    if stored.is_floating_point() and not bool(stored.isfinite().all()):
        raise InvalidModel(f"{WEIGHTS}: tensor {name!r} has NaN or infinite values")


def _ready(model: Model) -> Model:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    nn.Module.eval(model)
    return model
