"""Keys and projects over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, update

from app.core.clock import now
from app.core.database import Database
from app.core.settings import Settings
from app.projects import auth, keys
from app.projects.service import ensure_first_key
from app.projects.tables import ApiKey, Project
from tests.app.conftest import Api


async def make_key(api: Api, **fields: object) -> dict[str, object]:
    answer = await api.client.post("/v1/keys", json={"name": "mine", **fields})
    assert answer.status_code == 201
    made: dict[str, object] = answer.json()
    return made


async def status_with(api: Api, key: object, path: str = "/v1/jobs") -> int:
    client = await api.anonymous(str(key))
    return (await client.get(path)).status_code


async def test_a_new_key_is_shown_once_and_works_at_once(api: Api) -> None:
    made = await make_key(api, scopes=["read"])
    assert await status_with(api, made["key"]) == 200
    again = (await api.client.get(f"/v1/keys/{made['id']}")).json()
    assert "key" not in again
    assert str(made["key"]).startswith(again["hint"])
    assert again["scopes"] == ["read"]


async def test_the_plain_key_is_not_in_the_database(api: Api) -> None:
    made = await make_key(api)
    async with api.services.database.read() as session:
        row = await session.scalar(select(ApiKey).where(ApiKey.id == made["id"]))
    assert row is not None
    stored = {column.name: getattr(row, column.name) for column in ApiKey.__table__.columns}
    assert str(made["key"]) not in str(stored)


async def test_a_revoked_key_is_refused_at_once_by_the_process_that_revoked_it(api: Api) -> None:
    made = await make_key(api, scopes=["read"])
    assert await status_with(api, made["key"]) == 200
    revoked = (await api.client.delete(f"/v1/keys/{made['id']}")).json()
    assert revoked["revoked_at"]
    assert await status_with(api, made["key"]) == 401
    assert (await api.client.delete(f"/v1/keys/{made['id']}")).json()["revoked_at"] == revoked["revoked_at"]


async def test_another_process_forgets_a_revoked_key_when_its_memory_runs_out(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHE_SECONDS", -1.0)
    made = await make_key(api, scopes=["read"])
    assert await status_with(api, made["key"]) == 200
    async with api.services.database.write() as session:
        await session.execute(update(ApiKey).where(ApiKey.id == made["id"]).values(revoked_at=now()))
    assert await status_with(api, made["key"]) == 401


async def test_an_expired_key_is_refused(api: Api) -> None:
    made = await make_key(api, expires_in_seconds=3600.0)
    async with api.services.database.write() as session:
        await session.execute(update(ApiKey).where(ApiKey.id == made["id"]).values(expires_at=now() - 1.0))
    assert await status_with(api, made["key"]) == 401


async def test_the_use_of_a_key_is_noted(api: Api) -> None:
    made = await make_key(api)
    assert await status_with(api, made["key"]) == 200
    await api.app.state.key_ring.close()
    assert (await api.client.get(f"/v1/keys/{made['id']}")).json()["last_used_at"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "x", "scopes": []}, "scopes"),
        ({"name": "x", "scopes": ["root"]}, "scopes[0]"),
        ({"name": "x", "expires_in_seconds": 0}, "expires_in_seconds"),
        ({"name": "x", "scope": ["read"]}, "scope"),
    ],
)
async def test_a_key_that_makes_no_sense_is_refused(api: Api, fields: dict[str, object], param: str) -> None:
    answer = await api.client.post("/v1/keys", json=fields)
    assert answer.status_code == 422
    assert [error["param"] for error in answer.json()["error"]["errors"]] == [param]


async def test_keys_are_listed_page_by_page_newest_first(api: Api) -> None:
    made = [(await make_key(api, name=f"key {index}"))["id"] for index in range(4)]
    seen: list[str] = []
    page: dict[str, object] = {"has_more": True, "last_id": None}
    while page["has_more"]:
        query = {"limit": 2} | ({"after": page["last_id"]} if page["last_id"] else {})
        page = (await api.client.get("/v1/keys", params=query)).json()
        seen += [key["id"] for key in page["data"]]
    assert seen[:4] == made[::-1]
    assert len(seen) == 5  # and the first one of all


async def test_a_project_sees_itself_alone(api: Api) -> None:
    stranger = await api.foreigner()
    listed = (await stranger.get("/v1/projects")).json()["data"]
    assert len(listed) == 1
    assert listed[0]["id"] != api.project_id
    assert (await stranger.get(f"/v1/projects/{api.project_id}")).status_code == 404
    assert (await api.client.get(f"/v1/projects/{api.project_id}")).json()["name"] == "default"


@pytest.fixture
def unkeyed(database_url: str, tmp_path: Path) -> Settings:
    return Settings(database_url=database_url, data_dir=tmp_path / "fresh")


async def test_the_first_start_makes_one_project_and_one_key(unkeyed: Settings) -> None:
    database = Database(unkeyed.resolved_database_url)
    made = await ensure_first_key(database, unkeyed)
    assert made is not None
    kept = unkeyed.data_dir / "key"
    assert kept.read_text().strip() == made
    assert kept.stat().st_mode & 0o777 == 0o600
    assert await ensure_first_key(database, unkeyed) is None
    caller = await auth.KeyRing(database, unkeyed.secret_bytes).caller(made)
    assert caller is not None
    assert caller.scopes == {"read", "write", "admin"}
    await database.close()


async def test_processes_that_start_together_make_one_key(unkeyed: Settings) -> None:
    databases = [Database(unkeyed.resolved_database_url) for _ in range(4)]
    made = await asyncio.gather(*(ensure_first_key(database, unkeyed) for database in databases))
    assert sum(key is not None for key in made) == 1
    async with databases[0].read() as session:
        assert await session.scalar(select(func.count()).select_from(Project)) == 1
        assert await session.scalar(select(func.count()).select_from(ApiKey)) == 1
    for database in databases:
        await database.close()


async def test_a_bootstrap_key_that_is_no_key_stops_the_start(unkeyed: Settings) -> None:
    database = Database(unkeyed.resolved_database_url)
    with pytest.raises(ValueError, match="bootstrap_key"):
        await ensure_first_key(database, unkeyed.model_copy(update={"bootstrap_key": SecretStr("letmein")}))
    await database.close()


async def test_a_mistyped_key_costs_no_query() -> None:
    ring = auth.KeyRing(Database("postgresql+psycopg://nobody@127.0.0.1:1/none"), b"secret")
    mistyped = keys.new_key()[:-1] + "!"
    assert await ring.caller(mistyped) is None
    with pytest.raises(Exception, match=r"refused|failed"):
        await ring.caller(keys.new_key())


@pytest.mark.parametrize(
    ("held", "wanted", "status"),
    [
        (["admin"], ["read"], 403),
        (["admin"], ["read", "write", "admin"], 403),
        (["admin", "read"], ["read", "write"], 403),
        (["admin", "read"], ["read", "admin"], 201),
        (["admin", "read", "write"], ["write"], 201),
    ],
)
async def test_a_key_makes_no_key_that_can_do_more_than_itself(
    api: Api, held: list[Any], wanted: list[str], status: int
) -> None:
    maker = await api.with_scopes(*held)
    answer = await maker.post("/v1/keys", json={"name": "x", "scopes": wanted})
    assert answer.status_code == status
    if status == 403:
        assert answer.json()["error"]["param"] == "scopes"
    assert (await maker.post("/v1/keys", json={"name": "x"})).status_code == (201 if "write" in held else 403)
