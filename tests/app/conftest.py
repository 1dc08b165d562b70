"""The API in this process, with a real database and a real store, as its clients see it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from app.core.clock import now
from app.core.ids import new_id
from app.core.services import Services
from app.core.settings import Settings
from app.main import create_app
from app.projects import keys
from app.projects.auth import Scope
from app.projects.schemas import KeyRequest
from app.projects.service import create_key
from app.projects.tables import Project

ALL_SCOPES: tuple[Scope, ...] = ("read", "write", "admin")


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """Address of a migrated SQLite database without rows."""
    path = tmp_path / "service.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a migrated database without rows."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
    else:
        template = request.getfixturevalue("postgres_template")
        with request.getfixturevalue("postgres_server").database(template) as url:
            yield url


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Small limits, so that tests reach them with little data."""
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        bootstrap_key=keys.new_key(),
        max_body_bytes=64 << 10,
        max_part_bytes=256 << 10,
        max_file_bytes=1 << 20,
    )


@dataclass(frozen=True)
class Api:
    """A running application and ways to talk to it. `client` carries the first project's key with all scopes."""

    app: FastAPI
    client: httpx.AsyncClient
    project_id: str
    _opened: AsyncExitStack

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    async def anonymous(self, key: str | None = None) -> httpx.AsyncClient:
        """A client with the given key, or with none."""
        return await self._opened.enter_async_context(_client(self.app, key))

    async def with_scopes(self, *scopes: Scope, project_id: str | None = None) -> httpx.AsyncClient:
        """A client with a new key of the first project, or of the given one."""
        plain = keys.new_key()
        wanted = KeyRequest(name="test", scopes=list(scopes))
        secret = self.services.settings.secret_bytes
        async with self.services.database.write() as session:
            await create_key(session, project_id or self.project_id, wanted, plain, secret)
        return await self.anonymous(plain)

    async def foreigner(self) -> httpx.AsyncClient:
        """A client of another project, with all scopes."""
        other = new_id("proj")
        async with self.services.database.write() as session:
            session.add(Project(id=other, name=other, created_at=now()))
        return await self.with_scopes(*ALL_SCOPES, project_id=other)


def _client(app: FastAPI, key: str | None) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://stillhouse", headers=headers)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Api]:
    """Start the application on a migrated database."""
    app = create_app(settings)
    assert settings.bootstrap_key is not None
    async with AsyncExitStack() as opened:
        await opened.enter_async_context(app.router.lifespan_context(app))
        client = await opened.enter_async_context(_client(app, settings.bootstrap_key.get_secret_value()))
        projects = (await client.get("/v1/projects")).json()["data"]
        yield Api(app, client, projects[0]["id"], opened)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    """The application, running."""
    async with running(settings) as started:
        yield started
