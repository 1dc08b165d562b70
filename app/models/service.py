"""Rules of models: what may be registered as one, and when one may go."""

from __future__ import annotations

import math
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.errors import FieldError, Invalid, NotFound, WrongState
from app.core.field_errors import of_problems
from app.core.ids import new_id
from app.core.services import Services
from app.core.store import StoredObject
from app.files import repository as file_repository
from app.files.service import discard
from app.files.tables import File
from app.jobs.repository import jobs_using
from app.models import repository
from app.models.schemas import ModelRequest
from app.models.tables import Model
from app.recipe.checks import architecture_problems
from app.recipe.cost import student_cost
from app.recipe.model import ImageInput, Input, ModelConfig

WEIGHTS = "model.safetensors"
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Tensors of a normalisation layer that are measured, not trained."""


async def get_model(session: AsyncSession, project_id: str, model_id: str, *, lock: bool = False) -> Model:
    row = await repository.model(session, project_id, model_id, lock=lock)
    if row is None:
        raise NotFound("model", model_id)
    return row


async def register(services: Services, project_id: str, wanted: ModelRequest) -> Model:
    """Make a model of an uploaded file. Raises `Invalid` with everything that does not fit."""
    async with services.database.read() as session:
        file = await _weights(session, project_id, wanted.file)
    if problems := list(_problems(file, wanted.config)):
        raise Invalid.fields(problems)
    document = wanted.config.model_dump_json(indent=2).encode()
    config = await services.store.write(
        f"models/{secrets.token_hex(16)}/{wanted.config.file_name}", _once(document), len(document)
    )
    async with services.database.write() as session:
        file = await _weights(session, project_id, wanted.file, lock=True)
        return await _insert(session, wanted, file, config)


async def _weights(session: AsyncSession, project_id: str, file_id: str, *, lock: bool = False) -> File:
    file = await file_repository.file(session, project_id, file_id, lock=lock)
    if file is None:
        wrong = FieldError(param="file", message=f"there is no file {file_id!r}", accepted="the id of an uploaded file")
        raise Invalid.fields([wrong])
    return file


def _preprocessed(sample: Input) -> int:
    """Channels or columns, which have a mean and a deviation each."""
    return sample.channels if isinstance(sample, ImageInput) else getattr(sample, "columns", 0)


def _problems(file: File, config: ModelConfig) -> Iterator[FieldError]:
    needed = _preprocessed(config.input)
    for field in ("mean", "std") if config.preprocessing else ():
        if (count := len(getattr(config.preprocessing, field))) != needed:
            message = f"has {count} values for {needed} channels or columns"
            yield FieldError(param=f"config.preprocessing.{field}", message=message, accepted="one value for each")
    yield from of_problems(architecture_problems(config.architecture, config.input, "config.architecture"))
    if file.format != "safetensors":
        yield FieldError(param="file", message=f"file {file.id!r} is {file.format}", accepted="a safetensors file")
        return
    found = _trained_weights(file.summary["arrays"])
    cost = student_cost(config.architecture, config.input, config.outputs)
    if cost is not None and found != cost.parameters:
        message = (
            f"file {file.id!r} holds {found} trained weights, the architecture of the config has {cost.parameters}"
        )
        yield FieldError(
            param="config.architecture", message=message, accepted="the network that the file was saved from"
        )


def _trained_weights(arrays: dict[str, Any]) -> int:
    trained = [array for name, array in arrays.items() if name.rpartition(".")[2] not in _STATISTICS]
    return sum(math.prod(array["shape"]) for array in trained)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _insert(session: AsyncSession, wanted: ModelRequest, file: File, config: StoredObject) -> Model:
    row = Model(
        id=new_id("model"),
        project_id=file.project_id,
        name=wanted.name,
        file_id=file.id,
        config=wanted.config.model_dump(mode="json"),
        parameters=_trained_weights(file.summary["arrays"]),
        files=[
            {"name": wanted.config.file_name, "media_type": "application/json", **asdict(config)},
            {
                "name": WEIGHTS,
                "media_type": "application/octet-stream",
                "key": file.key,
                "size": file.size,
                "sha256": file.sha256,
            },
        ],
        created_at=now(),
    )
    session.add(row)
    await session.flush()
    await session.refresh(row)
    return row


async def delete_model(session: AsyncSession, project_id: str, model_id: str) -> None:
    """Delete a model, unless a job that is not final learns from it.

    What a job published as its artifacts is the same files, and gone with them; an uploaded file stays.
    """
    model = await get_model(session, project_id, model_id, lock=True)
    if users := await jobs_using(session, project_id, model_id):
        raise WrongState("model_in_use", f"the model is used by {', '.join(users)}")
    await repository.mark_deleted(session, model_id)
    shared = WEIGHTS if model.file_id else None
    discard(session, [file["key"] for file in model.files if file["name"] != shared])
