"""Module paths of a stored model, derived without building it."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from app.core.store import Store
from app.files.inspect import inspect
from app.models.schemas import ModulesView
from app.models.tables import ModelRow
from app.recipe.students.hugging_face import is_weights
from app.recipe.students.model import ModelConfig
from app.recipe.students.module_paths import module_paths, paths_of_tensors


async def modules_of(model: ModelRow, store: Store) -> ModulesView:
    """The known module paths of the network. Raises `Unavailable`."""
    known = module_paths(ModelConfig.model_validate(model.config).architecture) if model.config else None
    if known is not None:
        return _view(model, "architecture", known)
    weights = [file for file in model.files if is_weights(file["name"])]
    if not weights:
        return _view(model, "none", [])
    found = await asyncio.gather(*(asyncio.to_thread(_tensors, store, file) for file in weights))
    return _view(model, "tensors", paths_of_tensors(name for names in found for name in names))


def _tensors(store: Store, file: dict[str, Any]) -> list[str]:
    """Names in the header of a file of weights."""
    return list(inspect(store.reader(file["key"]), file["size"]).summary["arrays"])


def _view(model: ModelRow, source: Literal["architecture", "tensors", "none"], paths: list[str]) -> ModulesView:
    return ModulesView(model_id=model.id, source=source, complete=source == "architecture", paths=paths)
