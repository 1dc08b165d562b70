"""HTTP of projects and keys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from app.core.http import errors
from app.core.json_body import JsonRoute
from app.core.paging import Page, Paging, page
from app.core.services import ServicesDep
from app.projects import keys, repository, service
from app.projects.auth import Caller, Ring, require
from app.projects.schemas import KeyRequest, KeyView, NewKeyView, ProjectView
from app.projects.tables import ApiKey, Project

router = APIRouter(prefix="/v1", route_class=JsonRoute)
Reader = Annotated[Caller, Depends(require("read"))]
Admin = Annotated[Caller, Depends(require("admin"))]


@router.post("/keys", status_code=201, tags=["keys"], responses=errors(400, 413, 415))
async def create_key(wanted: KeyRequest, caller: Admin, services: ServicesDep) -> NewKeyView:
    """Create a key in the caller's project, with scopes of the caller's own key only. The key is shown only in this
    response."""
    service.require_scopes(wanted, caller.scopes)
    plain = keys.new_key()
    async with services.database.write() as session:
        row = await service.create_key(session, caller.project_id, wanted, plain, services.settings.secret_bytes)
    return NewKeyView(**KeyView.of(row).model_dump(), key=plain)


@router.get("/keys", tags=["keys"])
async def list_keys(caller: Admin, services: ServicesDep, paging: Paging) -> Page[KeyView]:
    """The project's keys, newest first, revoked ones included."""
    async with services.database.read() as session:
        found = await page(
            session, repository.keys_of(caller.project_id), ApiKey.id, paging, ApiKey.project_id == caller.project_id
        )
    return found.map(KeyView.of)


@router.get("/keys/{key_id}", tags=["keys"], responses=errors(404))
async def get_key(key_id: str, caller: Admin, services: ServicesDep) -> KeyView:
    """One key, without its secret."""
    async with services.database.read() as session:
        return KeyView.of(await service.get_key(session, caller.project_id, key_id))


@router.delete("/keys/{key_id}", tags=["keys"], responses=errors(404))
async def revoke_key(key_id: str, caller: Admin, services: ServicesDep, ring: Ring) -> KeyView:
    """Revoke a key. Other processes of the service may accept it for five more seconds."""
    async with services.database.write() as session:
        row = await service.revoke_key(session, caller.project_id, key_id)
    ring.forget(key_id)
    return KeyView.of(row)


@router.get("/projects", tags=["projects"])
async def list_projects(caller: Reader, services: ServicesDep, paging: Paging) -> Page[ProjectView]:
    """The projects that the key may see: its own."""
    async with services.database.read() as session:
        found = await page(
            session, repository.projects(caller.project_id), Project.id, paging, Project.id == caller.project_id
        )
    return found.map(ProjectView.of)


@router.get("/projects/{project_id}", tags=["projects"], responses=errors(404))
async def get_project(project_id: str, caller: Reader, services: ServicesDep) -> ProjectView:
    """The key's own project."""
    async with services.database.read() as session:
        return ProjectView.of(await service.get_project(session, caller.project_id, project_id))
