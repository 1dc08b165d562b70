"""The API as an ASGI application: `create_app()`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from importlib.metadata import version
from typing import Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.routing import BaseRoute

from app.catalog import endpoints as catalog
from app.core.addresses import known_query
from app.core.database import Database
from app.core.dispatch import make_dispatcher
from app.core.health import Health, HealthCheck, HealthCheckDep
from app.core.http import BodyLimit, HeadAsGet, RequestFrame, RequestLimits, add_error_handlers, errors
from app.core.services import Services
from app.core.settings import Settings
from app.core.slots import Slots
from app.core.store import Store
from app.core.views import View
from app.files import endpoints as files
from app.jobs import diagnosis
from app.jobs import endpoints as jobs
from app.jobs.loops import running_loops
from app.jobs.reader import JobReader
from app.jobs.stream import StreamReader
from app.models import endpoints as models
from app.projects import endpoints as projects
from app.projects.auth import Authentication, KeyRing
from app.projects.service import ensure_first_key
from app.recommendations import endpoints as recommendations
from app.web import pages
from app.web.openapi import document

VERSION = version("stillhouse")
DESCRIPTION = """Stillhouse distils models: post a job that names a teacher, a student and a recipe; watch it; download
the verified student. Every request under `/v1/` but `/v1/version` carries an API key as a bearer token."""
COMMON_ERRORS = errors(400, 401, 403, 414, 422, 431, 503)
UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "A part can't be used"}}
OPEN = frozenset({"/v1/version"})
"""Addresses of the API that need no key."""


class Alive(View):
    """This process answers."""

    status: Literal["ok"] = "ok"
    """Always `ok`: a process that is not alive does not answer."""


class Version(View):
    """What runs here."""

    object: Literal["version"] = "version"
    version: str
    """Version of the service."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; it opens the database and the store when it is started."""
    settings = settings or Settings()
    app = FastAPI(
        title="Stillhouse",
        version=VERSION,
        description=DESCRIPTION,
        lifespan=_lifespan,
        generate_unique_id_function=_operation_id,
        middleware=[
            Middleware(RequestFrame),
            Middleware(Authentication, open=OPEN),
            Middleware(RequestLimits),
            Middleware(HeadAsGet),
            Middleware(BodyLimit, limit=settings.max_body_bytes),
        ],
        redirect_slashes=False,
        routes=_routes(),
        openapi_url=None,  # the document and its readers are pages of our own
    )
    app.state.settings = settings
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    add_error_handlers(app)
    return app


@cache
def _routes() -> list[BaseRoute]:
    """Those of every application of this process: to build them takes as long as some hundred requests."""
    router = APIRouter(generate_unique_id_function=_operation_id)
    # The most asked first, and none within another: FastAPI looks for a route once more on every level.
    for resource in (jobs, files, models, diagnosis, catalog, projects, recommendations):
        router.include_router(resource.router, responses=COMMON_ERRORS, dependencies=[Depends(known_query)])
    router.include_router(_open_routes())
    router.include_router(pages.router)
    return router.routes


def _operation_id(route: APIRoute) -> str:
    return route.name


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    database = Database.from_settings(settings)
    uploads = Slots(settings.max_uploads_per_key, "too_many_uploads", "bodies on their way into the store")
    services = Services(settings, database, Store.from_settings(settings), make_dispatcher(settings), uploads)
    app.state.services = services
    app.openapi()  # made now, because it takes half a second, and error messages are read off it
    app.state.health = HealthCheck(services)
    app.state.job_reader = JobReader(database)
    app.state.key_ring = KeyRing(database, settings.secret_bytes)
    # Of its own: however many streams there are, requests find the pool as it was.
    apart = Database.from_settings(settings, pool_size=1)
    app.state.stream_reader = streams = StreamReader(
        apart, app.state.key_ring, settings.max_streams, settings.max_streams_per_key
    )
    try:
        await ensure_first_key(database, settings)
        async with running_loops(services), streams.running():
            yield
        await app.state.key_ring.close()
    finally:
        await services.dispatcher.close()
        await database.close()


def _open_routes() -> APIRouter:
    """What needs no key."""
    router = APIRouter(tags=["service"])

    @router.get("/livez")
    async def get_liveness() -> Alive:
        """Whether this process answers; no more, since a restart of it does not bring a lost database back."""
        return Alive()

    @router.get("/readyz", responses=UNAVAILABLE, response_model_exclude_unset=True)
    async def get_readiness(check: HealthCheckDep, response: Response) -> Health:
        """Whether requests can be served now: the same as `/healthz`."""
        return await get_health(check, response)

    @router.get("/healthz", responses=UNAVAILABLE, response_model_exclude_unset=True)
    async def get_health(check: HealthCheckDep, response: Response) -> Health:
        """Whether the database, the store and the broker can be used."""
        health = await check()
        if health.status != "ok":
            response.status_code, response.headers["Retry-After"] = 503, "5"
        return health

    @router.get("/v1/version")
    async def get_version() -> Version:
        """The version of the service."""
        return Version(version=VERSION)

    return router
