"""Fetches models from outside: from a hub, a mirror of it, or an object store.

Only the files of a model are fetched, never one that could contain code, and all of them are checked before a trainer
reads them. Immutable content (a commit of a hub, a converted upload) is cached for the next job.
"""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from app.core.settings import Settings
from app.recipe.students.hugging_face import DOCUMENTS, INDEX, MAX_INDEX_BYTES, check_document, chosen, read_index
from app.recipe.teachers.teacher import Origin
from worker.errors import UserError, unusable_model
from worker.fetch import hub, objects
from worker.fetch.model_cache import FetchCache, files_in
from worker.fetch.refusal import Refused


async def fetch(origin: Origin, param: str, settings: Settings, cache: FetchCache, target: Path) -> None:
    """Write the files of a model from outside into the folder `target`.

    Raises: `UserError` with `param`, the field that names it; `Unavailable`; `OSError` if the disk is full.
    """
    if wrong := list(settings.outside.wrong(origin)):
        raise UserError("teacher_not_accepted", wrong[0][1], param)
    try:
        if origin.uri is not None:
            await objects.fetch(origin.uri, settings, target)
            await asyncio.to_thread(check, target)
        else:
            await cache.place(_digest(origin.reference), target, lambda folder: _from_hub(origin, settings, folder))
    except Refused as error:
        raise unusable_model(f"can't be fetched: {error}", param) from error


async def _from_hub(origin: Origin, settings: Settings, folder: Path) -> None:
    assert origin.hub is not None
    assert origin.revision is not None
    await hub.fetch(origin.hub, origin.revision, settings, folder)
    await asyncio.to_thread(check, folder)


def check(folder: Path) -> None:
    """Check a fetched folder against the rules for models; raises `Refused`, naming the file."""
    names = {path.relative_to(folder).as_posix() for path in files_in(folder)}
    for name in sorted(names):
        try:
            if name in DOCUMENTS:
                check_document(name, _read(folder / name, DOCUMENTS[name]))
            if name == INDEX and (missing := set(read_index(_read(folder / name, MAX_INDEX_BYTES)).values()) - names):
                raise ValueError(f"names {min(missing)}, which is missing")
        except ValueError as error:
            raise Refused(f"{name} {error}") from error
    try:
        chosen(names)
    except ValueError as error:
        raise Refused(str(error)) from error


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit + 1)


def _digest(reference: str) -> str:
    return hashlib.sha256(reference.encode()).hexdigest()
