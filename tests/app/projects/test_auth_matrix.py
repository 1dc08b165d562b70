"""Every route against every kind of caller. The routes are those of the OpenAPI document, so none is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi import FastAPI

from app.core.settings import Settings
from app.main import create_app
from app.projects import keys
from app.projects.auth import Scope
from tests.app.conftest import ALL_SCOPES, Api
from tests.app.files.uploads import DATA
from tests.app.models.test_endpoints import CONFIG, weights

OPEN = {("GET", "/livez"), ("GET", "/readyz"), ("GET", "/healthz"), ("GET", "/v1/version")}
READING_POSTS = {"/v1/jobs/validate", "/v1/recommendations"}
BODIES: dict[tuple[str, str], Any] = {
    ("PATCH", "/v1/jobs/{job_id}"): {"priority": 1},
    ("POST", "/v1/models/{model_id}/extract"): {"row": 0},
    ("POST", "/v1/models/{model_id}/diagnostics"): {"data": {"train": "file_a"}, "evaluation": {}},
}
"""Bodies without which a request is refused before anybody looks for the thing that it is about."""


class Route(NamedTuple):
    method: str
    path: str

    @property
    def scope(self) -> Scope:
        """What a key must have: `admin` for keys, else `read` to look and `write` to change."""
        if self.path.startswith("/v1/keys"):
            return "admin"
        return "read" if self.method == "GET" or self.path in READING_POSTS else "write"


def routes_of(app: FastAPI) -> Iterator[Route]:
    for path, operations in app.openapi()["paths"].items():
        yield from (Route(method.upper(), path) for method in operations if (method.upper(), path) not in OPEN)


ROUTES = list(routes_of(create_app(Settings())))
NOWHERE = {
    "job_id": "job_none",
    "file_id": "file_none",
    "upload_id": "upload_none",
    "model_id": "model_none",
    "key_id": "key_none",
    "project_id": "proj_none",
    "number": "1",
    "name": "none",
    "group": "losses",
}


async def call(client: httpx.AsyncClient, route: Route, ids: dict[str, str]) -> httpx.Response:
    path = route.path.format(**{**NOWHERE, **ids})
    return await client.request(route.method, path, json=BODIES.get(tuple(route)), timeout=10)


def test_the_table_of_routes_is_not_empty() -> None:
    assert len(ROUTES) > 30
    assert {route.scope for route in ROUTES} == set(ALL_SCOPES)


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """One kind of database: who may call what is decided before it is asked."""
    return sqlite_url


async def test_without_a_key_everything_is_401(api: Api) -> None:
    nobody = await api.anonymous()
    for route in ROUTES:
        answer = await call(nobody, route, {})
        assert (answer.status_code, answer.headers.get("www-authenticate")) == (401, "Bearer"), route


@pytest.mark.parametrize(
    "key", ["still_wrong", "", "x" * 5000, keys.new_key()], ids=["short", "none", "long", "unknown"]
)
async def test_with_a_wrong_key_everything_is_401(api: Api, key: str) -> None:
    for header in (f"Bearer {key}", f"Basic {key}", key):
        client = await api.anonymous()
        client.headers["Authorization"] = header.strip() or "x"
        for route in ROUTES:
            answer = await call(client, route, {})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_key"), route


async def test_a_key_in_another_form_of_the_header_is_still_a_key(api: Api) -> None:
    client = await api.anonymous()
    client.headers["Authorization"] = f"bearer {api.services.settings.bootstrap_key.get_secret_value()}"  # type: ignore[union-attr]
    assert (await client.get("/v1/files")).status_code == 200


@pytest.mark.parametrize("missing", ALL_SCOPES)
async def test_without_the_scope_it_is_403_and_with_it_alone_it_is_not(api: Api, missing: Scope) -> None:
    without = await api.with_scopes(*(scope for scope in ALL_SCOPES if scope != missing))
    alone = await api.with_scopes(missing)
    for route in ROUTES:
        if route.scope != missing:
            continue
        answer = await call(without, route, {})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope"), route
        assert (await call(alone, route, {})).status_code not in (401, 403), route


async def things_of(client: httpx.AsyncClient) -> dict[str, str]:
    """One thing of every kind in the client's project."""
    file = (await client.post("/v1/files?name=a", content=DATA)).json()["id"]
    tensors = (await client.post("/v1/files?name=b", content=weights())).json()["id"]
    spec = {
        "data": {"train": file},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
    }
    made = {
        "job_id": await client.post("/v1/jobs", json=spec),
        "upload_id": await client.post("/v1/uploads", json={"name": "a"}),
        "model_id": await client.post("/v1/models", json={"file": tensors, "config": CONFIG}),
        "key_id": await client.post("/v1/keys", json={"name": "a"}),
    }
    ids = {name: answer.json()["id"] for name, answer in made.items()}
    project = (await client.get("/v1/projects")).json()["data"][0]["id"]
    return {**ids, "file_id": file, "project_id": project}


async def test_what_belongs_to_another_project_is_404_and_untouched(api: Api) -> None:
    stranger = await api.foreigner()
    theirs = await things_of(stranger)
    views = {
        "job_id": "/v1/jobs/{}",
        "file_id": "/v1/files/{}",
        "upload_id": "/v1/uploads/{}",
        "model_id": "/v1/models/{}",
        "key_id": "/v1/keys/{}",
        "project_id": "/v1/projects/{}",
    }
    before = {name: (await stranger.get(path.format(theirs[name]))).json() for name, path in views.items()}
    tried = [route for route in ROUTES if any(f"{{{name}}}" in route.path for name in theirs)]
    assert len(tried) > 20
    for route in tried:
        answer = await call(api.client, route, theirs)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found"), (route, answer.text)
    after = {name: (await stranger.get(path.format(theirs[name]))).json() for name, path in views.items()}
    assert after == before


async def test_lists_show_nothing_of_another_project(api: Api) -> None:
    stranger = await api.foreigner()
    theirs = await things_of(stranger)
    for path in ("/v1/jobs", "/v1/files", "/v1/models", "/v1/keys", "/v1/projects"):
        assert not set(theirs.values()) & {thing["id"] for thing in (await api.client.get(path)).json()["data"]}, path


async def test_what_does_not_exist_is_404(api: Api) -> None:
    for route in ROUTES:
        if "_id}" in route.path:
            answer = await call(api.client, route, {})
            assert answer.status_code == 404, (route, answer.text)
