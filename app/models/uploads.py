"""Composition of an uploaded model: checks against the headers of its files and its documents, without torch."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from app.core.errors import FieldError, Invalid
from app.core.field_errors import of_problems, of_validation
from app.core.settings import Settings
from app.core.store import Store
from app.files.tables import FileRow
from app.models.schemas import ModelRequest
from app.recipe.cost import student_cost
from app.recipe.students.hugging_face import (
    CONFIG,
    DOCUMENTS,
    INDEX,
    MAX_INDEX_BYTES,
    WEIGHTS,
    check_document,
    chosen,
    is_weights,
    parse_object,
    read_index,
)
from app.recipe.students.layers import NORMS
from app.recipe.students.model import ModelConfig
from app.recipe.students.rules import architecture_problems
from app.recipe.students.timm import is_timm
from app.recipe.teachers.key_map import Conversion

DESCRIPTION, ORDER = "stillhouse.json", "convert.json"
"""Our description if `config.json` is the Hugging Face one; instructions for converting weights (`Conversion`)."""
UNCONVERTED = {"torch": "weights.pt", "safetensors": "weights.safetensors"}
"""Names of weights that a worker must convert, by the format of their file."""
ARRAYS = ("npz", "safetensors", "torch", "parquet")
"""Binary formats."""
READ_WHOLE = {**DOCUMENTS, INDEX: MAX_INDEX_BYTES}
"""Files that are read here, and the largest size of each in bytes."""
MAX_RENAMINGS = 1_000_000
"""Most comparisons of names with renames while a client waits; each takes a microsecond."""
_STATISTICS = tuple({name for kind in NORMS for name in kind.statistics})
"""Tensors of a normalisation layer that are statistics, not trained."""


@dataclass(frozen=True)
class Bundle:
    """Files and description of a model to be created."""

    files: dict[str, FileRow]
    """Uploaded files by their name in the model."""
    documents: dict[str, bytes]
    """Files that the service writes, by name."""
    config: ModelConfig | None
    """None for a folder with only a description in the Hugging Face layout: a worker reads that."""
    parameters: int
    """Trained weights; 0: unknown, as files written by torch.save are not read here."""


async def bundle_of(wanted: ModelRequest, files: Mapping[str, FileRow], store: Store, settings: Settings) -> Bundle:
    """Compose a model from files by the field that names them. Raises `Invalid` with every problem."""
    if wanted.file is None:
        return await _of_folder(
            wanted, {field.removeprefix("files."): file for field, file in files.items()}, store, settings
        )
    assert wanted.config is not None
    return await asyncio.to_thread(_of_file, files["file"], wanted, wanted.config)


# ---- one file, and a description of its architecture


def _of_file(file: FileRow, wanted: ModelRequest, config: ModelConfig) -> Bundle:
    if problems := [*_config_problems(config), *_file_problems(file, wanted, config)]:
        raise Invalid.fields(problems)
    documents = {config.file_name: _document(config)}
    cost = student_cost(config.architecture, config.input, config.outputs)
    parameters = cost.parameters if cost else trained_weights(file.summary["arrays"])
    if file.format == "safetensors" and wanted.key_map is None:
        return Bundle({WEIGHTS: file}, documents, config, parameters)
    documents[ORDER] = _document(wanted.conversion)
    return Bundle({UNCONVERTED[file.format]: file}, documents, config, parameters)


def _document(content: ModelConfig | Conversion) -> bytes:
    return content.model_dump_json(indent=2).encode()


def _config_problems(config: ModelConfig) -> Iterator[FieldError]:
    for field in ("mean", "std") if config.preprocessing else ():
        count, needed = len(getattr(config.preprocessing, field)), config.input.statistics
        if count != needed:
            message = f"has {count} values for {needed} channels or columns"
            yield FieldError(param=f"config.preprocessing.{field}", message=message, accepted="one value for each")
    yield from of_problems(architecture_problems(config.architecture, config.input, "config.architecture"))


def _file_problems(file: FileRow, wanted: ModelRequest, config: ModelConfig) -> Iterator[FieldError]:
    if file.format not in UNCONVERTED:
        accepted = "a file in safetensors, or one that torch.save wrote"
        yield FieldError(param="file", message=f"file {file.id!r} is {file.format}", accepted=accepted)
    elif file.format == "safetensors":
        yield from _weight_problems(file, wanted, config)


def _weight_problems(file: FileRow, wanted: ModelRequest, config: ModelConfig) -> Iterator[FieldError]:
    if wanted.checkpoint_key is not None:
        message = "is given, but a safetensors file holds only weights"
        yield FieldError(param="checkpoint_key", message=message, accepted="null")
    arrays = file.summary["arrays"]
    renames = wanted.conversion.key_map.rename
    if len(renames) * len(arrays) > MAX_RENAMINGS:
        message = f"has {len(renames)} renames, for {len(arrays)} tensors in file {file.id!r}"
        accepted = f"at most {MAX_RENAMINGS // len(arrays)} renames"
        yield FieldError(param="key_map.rename", message=message, accepted=accepted)
        return
    try:
        names = wanted.conversion.key_map.apply(arrays)
    except ValueError as error:
        yield FieldError(param="key_map", message=f"does not fit the names in file {file.id!r}: {error}")
        return
    found = trained_weights({name: arrays[old] for name, old in names.items()})
    expected = student_cost(config.architecture, config.input, config.outputs)
    if expected is not None and found != expected.parameters:
        needed = f"the architecture of the config has {expected.parameters}"
        message = f"file {file.id!r} holds {found} trained weights, {needed}"
        accepted = "the network that the file was saved from"
        yield FieldError(param="config.architecture", message=message, accepted=accepted)


def trained_weights(arrays: Mapping[str, Any]) -> int:
    """Number of trained weights in the headers of a file."""
    trained = [array for name, array in arrays.items() if name.rpartition(".")[2] not in _STATISTICS]
    return sum(math.prod(array["shape"]) for array in trained)


# ---- a folder in the Hugging Face layout


async def _of_folder(wanted: ModelRequest, files: dict[str, FileRow], store: Store, settings: Settings) -> Bundle:
    problems = [*_folder_problems(files, settings.max_teacher_bytes), *_format_problems(files)]
    if problems:
        raise Invalid.fields(problems)
    texts = {name: await _text(store, file) for name, file in files.items() if name in DOCUMENTS or name == INDEX}
    return await asyncio.to_thread(_described, wanted, files, texts)


def _described(wanted: ModelRequest, files: dict[str, FileRow], texts: Mapping[str, bytes]) -> Bundle:
    """The bundle of a folder with the files of a model, after checking its documents."""
    if problems := list(_document_problems(texts)):
        raise Invalid.fields(problems)
    if problems := list(_shard_problems(files, texts)):
        raise Invalid.fields(problems)
    own = _own_description(texts)
    if own is not None and wanted.config is not None:
        message = "is given, but the folder already has a description of this service"
        raise Invalid.fields([FieldError(param="config", message=message, accepted="null")])
    if problems := list(_config_problems(wanted.config) if wanted.config else ()):
        raise Invalid.fields(problems)
    parameters = sum(trained_weights(file.summary["arrays"]) for name, file in files.items() if is_weights(name))
    documents = {DESCRIPTION: _document(wanted.config)} if wanted.config else {}
    return Bundle(files, documents, wanted.config or own, parameters)


def _folder_problems(files: Mapping[str, FileRow], max_bytes: int) -> Iterator[FieldError]:
    try:
        used = chosen(files)
    except ValueError as error:
        yield FieldError(param="files", message=str(error), accepted=f"{CONFIG} and weights in safetensors")
        return
    for name in sorted(files.keys() - set(used)):
        yield FieldError(param=f"files.{name}", message=f"is given beside {WEIGHTS}", accepted=f"{WEIGHTS} or shards")
    if (size := sum(file.size for file in files.values())) > max_bytes:
        yield FieldError(param="files", message=f"have {size} bytes in total", accepted=f"at most {max_bytes} bytes")


def _format_problems(files: Mapping[str, FileRow]) -> Iterator[FieldError]:
    for name, file in files.items():
        if is_weights(name) != (file.format == "safetensors") or (not is_weights(name) and file.format in ARRAYS):
            accepted = "a safetensors file" if is_weights(name) else "a text file"
            yield FieldError(param=f"files.{name}", message=f"file {file.id!r} is {file.format}", accepted=accepted)
        elif file.size > (most := READ_WHOLE.get(name, file.size)):
            message = f"file {file.id!r} has {file.size} bytes"
            yield FieldError(param=f"files.{name}", message=message, accepted=f"at most {most} bytes")


async def _text(store: Store, file: FileRow) -> bytes:
    return b"".join([chunk async for chunk in store.stream(file.key)])


def _document_problems(texts: Mapping[str, bytes]) -> Iterator[FieldError]:
    for name, raw in texts.items():
        try:
            read_index(raw) if name == INDEX else check_document(name, raw)
        except ValueError as error:
            yield FieldError(param=f"files.{name}", message=str(error))


def _shard_problems(files: Mapping[str, FileRow], texts: Mapping[str, bytes]) -> Iterator[FieldError]:
    """Check that an index and its shards have the same tensors."""
    if INDEX not in texts:
        return
    placed: dict[str, set[str]] = {name: set() for name in files if is_weights(name)}
    for tensor, shard in read_index(texts[INDEX]).items():
        placed.setdefault(shard, set()).add(tensor)
    for shard, tensors in sorted(placed.items()):
        if shard not in files:
            yield FieldError(param=f"files.{shard}", message="is missing, and the index names it", accepted="its file")
            continue
        held = set(files[shard].summary["arrays"])
        if missing := tensors - held:
            message = f"lacks tensor {min(missing)!r}, which the index places there"
            yield FieldError(param=f"files.{shard}", message=message)
        elif beyond := held - tensors:
            message = f"holds tensor {min(beyond)!r}, which the index does not place there"
            yield FieldError(param=f"files.{shard}", message=message)


def _own_description(texts: Mapping[str, bytes]) -> ModelConfig | None:
    """This service's description of the model, for a folder that it has exported. Raises `Invalid`."""
    for name in (DESCRIPTION, CONFIG):
        if name not in texts:
            continue
        document = parse_object(texts[name], DOCUMENTS[name])
        if "architecture" in document and not is_timm(document):
            try:
                return ModelConfig.model_validate_json(texts[name])
            except ValidationError as error:
                first = of_validation(error, ModelConfig)[0]
                raise Invalid.fields([first.model_copy(update={"param": f"files.{name}"})]) from error
    return None


async def once(content: bytes) -> AsyncIterator[bytes]:
    """A stream of one chunk."""
    yield content
