"""HTTP of models."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.core.downloads import DOWNLOAD_RESPONSES, Content, download
from app.core.errors import NotFound
from app.core.http import errors
from app.core.json_body import JsonRoute
from app.core.paging import Page, Paging, page
from app.core.services import ServicesDep
from app.core.views import DeletedView
from app.models import extraction, repository, service
from app.models.modules import modules_of
from app.models.schemas import ExtractRequest, ModelDetailView, ModelRequest, ModelView, ModulesView
from app.models.tables import ModelRow
from app.projects.auth import Caller, require

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=JsonRoute)
Reader = Annotated[Caller, Depends(require("read"))]
Writer = Annotated[Caller, Depends(require("write"))]


@router.post("", status_code=201, responses=errors(400, 413, 415))
async def create_model(wanted: ModelRequest, caller: Writer, services: ServicesDep) -> ModelView:
    """Create a model from uploaded weights, for use as a teacher."""
    return ModelView.of(await service.register(services, caller.project_id, wanted))


@router.get("")
async def list_models(caller: Reader, services: ServicesDep, paging: Paging) -> Page[ModelView]:
    """The project's models, newest first."""
    async with services.database.read() as session:
        found = await page(
            session, repository.models(caller.project_id), ModelRow.id, paging, ModelRow.project_id == caller.project_id
        )
    return found.map(ModelView.of)


@router.get("/{model_id}", responses=errors(404))
async def get_model(model_id: str, caller: Reader, services: ServicesDep) -> ModelDetailView:
    """One model, with its evaluation, its origin and the models distilled from it."""
    async with services.database.read() as session:
        row = await service.get_model(session, caller.project_id, model_id)
        children = await repository.children(session, caller.project_id, model_id)
    return ModelDetailView.with_children(row, children)


@router.get("/{model_id}/modules", responses=errors(404))
async def get_model_modules(model_id: str, caller: Reader, services: ServicesDep) -> ModulesView:
    """Paths of the modules in a model's network, as used by losses on features."""
    async with services.database.read() as session:
        row = await service.get_model(session, caller.project_id, model_id)
    return await modules_of(row, services.store)


@router.post("/{model_id}/extract", status_code=201, responses=errors(404, 409))
async def extract_model(model_id: str, wanted: ExtractRequest, caller: Writer, services: ServicesDep) -> ModelView:
    """Extract a sub-network of a student that was searched with the method `supernet`, as a model of its own. A
    repeated request returns the same model."""
    return ModelView.of(await extraction.extract(services, caller.project_id, model_id, wanted))


@router.get("/{model_id}/files/{name:path}", responses=DOWNLOAD_RESPONSES, response_class=Response)
async def get_model_file(model_id: str, name: str, request: Request, caller: Reader, services: ServicesDep) -> Response:
    """A file of the model's bundle, or one range of it."""
    async with services.database.read() as session:
        row = await service.get_model(session, caller.project_id, model_id)
    for file in row.files:
        if file["name"] == name:
            return await download(request, services.store, Content(**file))
    raise NotFound("file", name)


@router.delete("/{model_id}", responses=errors(404, 409))
async def delete_model(model_id: str, caller: Writer, services: ServicesDep) -> DeletedView:
    """Delete a model that no unfinished job uses, and the files of its bundle."""
    async with services.database.write() as session:
        await service.delete_model(session, caller.project_id, model_id)
    return DeletedView(id=model_id, object="model")
