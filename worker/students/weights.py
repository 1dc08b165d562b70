"""Reads and writes the files that make a model: its description and `model.safetensors`, or the shards of that.

A folder without a description of ours, as the Transformers library and its hub keep models, is read as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from app.recipe.hugging_face import parse_object
from app.recipe.key_map import KeyMap
from app.recipe.model import DESCRIPTIONS, ModelConfig
from app.recipe.students import Transformers
from worker import students
from worker.errors import UserError
from worker.students import hugging_face, hugging_face_folder
from worker.students.faults import InvalidModel
from worker.students.model import Model

__all__ = ["CONFIG", "WEIGHTS", "InvalidModel", "load_model", "read_config", "save_model", "weight_files"]
CONFIG = DESCRIPTIONS[-1]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NAMED = 5
"""Tensors without a place that a message names."""
COUNTER = "num_batches_tracked"
"""Of a batch norm; nothing reads it here, and weights from before 2018 lack it."""
MAX_CONFIG_BYTES = 2**20
MAX_INDEX_BYTES = 2**26


def save_model(model: Model, folder: Path) -> None:
    """Write weights and description into `folder`; the weights are those of the bare network, without preprocessing.

    A network of the Transformers library is written so that the library opens the folder, too.
    """
    if isinstance(model.config.architecture, Transformers):
        hugging_face.save(model.network, model.config, folder)
        hugging_face_folder.write_preprocessing(model.config, folder)
    else:
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.network.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    document = model.config.model_dump_json(indent=2) + "\n"
    (folder / model.config.file_name).write_text(document, encoding="utf-8")


def read_config(folder: Path) -> ModelConfig:
    """The description in `folder`, or one made of what the Transformers library keeps; raises InvalidModel."""
    path = next((folder / name for name in DESCRIPTIONS if (folder / name).is_file()), folder / CONFIG)
    if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        raise InvalidModel(f"{path.name} is missing or larger than {MAX_CONFIG_BYTES} bytes")
    try:
        if "model_type" in (document := parse_object(path.read_bytes(), MAX_CONFIG_BYTES)):
            return hugging_face_folder.describe(document, folder)
        return ModelConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InvalidModel(f"{path.name}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise InvalidModel(f"{path.name}: {error}") from error
    except UserError as error:
        raise InvalidModel(error.message) from error


def load_model(folder: Path, config: ModelConfig | None = None, key_map: KeyMap | None = None) -> Model:
    """The model in `folder`, in evaluation mode on the CPU, in float32; raises InvalidModel.

    `key_map` turns the names of the stored weights into the network's. A network of the zoo is first built without
    memory and held against the header of the file, so that a description which does not fit its weights costs nothing.
    """
    config = config or read_config(folder)
    files = weight_files(folder)
    try:
        names = _names(_shapes(files), key_map)
        if isinstance(config.architecture, Transformers):
            network = _of_the_library(config, _tensors(files, names))
        else:
            network = _of_the_zoo(config, files, names)
    except (SafetensorError, OSError) as error:
        raise InvalidModel(f"{WEIGHTS} is not a sound safetensors file") from error
    return _ready(Model(config, network))


def _of_the_zoo(config: ModelConfig, files: list[Path], names: Mapping[str, str]) -> nn.Module:
    with torch.device("meta"):
        network = students.build(config.architecture, config.input, config.outputs)
    expected = network.state_dict()
    _check_shapes(_shapes(files), names, expected)
    stored = _tensors(files, names)
    network.load_state_dict({name: _stored(name, stored, wanted) for name, wanted in expected.items()}, assign=True)
    return network


def _stored(name: str, stored: Mapping[str, Tensor], expected: Tensor) -> Tensor:
    return _convert(name, stored[name], expected) if name in stored else torch.zeros((), dtype=expected.dtype)


def _of_the_library(config: ModelConfig, state: dict[str, Tensor]) -> nn.Module:
    for name, tensor in state.items():
        _require_finite(name, tensor)
    try:
        return hugging_face.from_state(config, state)
    except hugging_face.Misfit as error:
        raise InvalidModel(f"{WEIGHTS} {error}") from error
    except UserError as error:
        raise InvalidModel(error.message) from error


def weight_files(folder: Path) -> list[Path]:
    """One file, or the shards that an index names; raises InvalidModel."""
    path = folder / INDEX
    if (folder / WEIGHTS).is_file() or not path.is_file():
        return [folder / WEIGHTS]
    try:
        shards = sorted(set(parse_object(path.read_bytes(), MAX_INDEX_BYTES)["weight_map"].values()))
        if not all(shards) or any(Path(name).name != name for name in shards):
            raise ValueError("names no files, or files elsewhere")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InvalidModel(f"{INDEX} does not map tensors to files") from error
    return [folder / name for name in shards]


def _shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def _names(stored: Mapping[str, object], key_map: KeyMap | None) -> dict[str, str]:
    """The stored name of each tensor of the network; raises InvalidModel."""
    try:
        return {name: name for name in stored} if key_map is None else key_map.apply(stored)
    except ValueError as error:
        raise InvalidModel(f"the key map does not fit {WEIGHTS}: {error}") from error


def _tensors(files: list[Path], names: Mapping[str, str]) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for path in files:
        stored |= load_file(path)
    return {name: stored[old] for name, old in names.items()}


def _check_shapes(
    stored: Mapping[str, tuple[int, ...]], names: Mapping[str, str], expected: Mapping[str, Tensor]
) -> None:
    spare = [_called(name, old) for name, old in names.items() if name not in expected]
    for name, tensor in expected.items():
        if name in names:
            if (shape := stored[names[name]]) != tuple(tensor.shape):
                raise InvalidModel(f"{WEIGHTS}: tensor {names[name]!r} has shape {shape}, not {tuple(tensor.shape)}")
        elif not name.endswith(COUNTER):
            has = f"; it has {', '.join(spare[:NAMED])} instead" if spare else ""
            raise InvalidModel(f"{WEIGHTS} lacks the tensor {name!r} of shape {tuple(tensor.shape)}{has}")
    if spare:
        found = ", ".join(spare[:NAMED])
        raise InvalidModel(f"{WEIGHTS} has a tensor {found} that the architecture has no place for")


def _called(name: str, old: str) -> str:
    return repr(old) if name == old else f"{old!r} (mapped to {name!r})"


def _convert(name: str, stored: Tensor, expected: Tensor) -> Tensor:
    if stored.is_floating_point() != expected.is_floating_point():
        raise InvalidModel(f"{WEIGHTS}: tensor {name!r} has dtype {stored.dtype}, not {expected.dtype}")
    _require_finite(name, stored)
    return stored.to(expected.dtype)


def _require_finite(name: str, stored: Tensor) -> None:
    if stored.is_floating_point() and not bool(stored.isfinite().all()):
        raise InvalidModel(f"{WEIGHTS}: tensor {name!r} holds NaN or infinite values")


def _ready(model: Model) -> Model:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    nn.Module.eval(model)
    return model
