"""What every answer has in common."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from app.core.settings import Settings
from app.main import create_app
from app.projects import keys
from tests.app.conftest import Api, running
from tests.servers import PostgreSQL

JSON = {"content-type": "application/json"}


def error_of(answer: httpx.Response) -> dict[str, object]:
    """The error, whose envelope must be complete."""
    error: dict[str, object] = answer.json()["error"]
    assert set(error) == {"type", "code", "message", "param", "errors", "more_errors", "request_id"}
    assert error["request_id"] == answer.headers["x-request-id"]
    return error


async def test_a_sane_request_id_is_kept_and_any_other_replaced(api: Api) -> None:
    kept = await api.client.get("/v1/version", headers={"X-Request-Id": "trace-0123.abc"})
    assert kept.headers["x-request-id"] == "trace-0123.abc"
    for given in ("short", "x" * 65, "with space 123", "ä".encode() * 8):
        answer = await api.client.get("/v1/version", headers={"X-Request-Id": given})
        assert answer.headers["x-request-id"].startswith("req_")


async def test_an_unknown_address_is_404(api: Api) -> None:
    answer = await api.client.get("/v1/nothing")
    assert (answer.status_code, error_of(answer)["code"]) == (404, "route_not_found")


async def test_a_wrong_method_is_405_and_names_the_right_ones(api: Api) -> None:
    answer = await api.client.patch("/v1/files")
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"


@pytest.mark.parametrize("body", [b"{", b'{"a": }', b"\xff\xfe", b"1" * 5000, b'"\\ud800', b"[" * 30_000])
async def test_a_body_that_is_not_json_is_400(api: Api, body: bytes) -> None:
    answer = await api.client.post("/v1/keys", content=body, headers=JSON)
    assert answer.status_code == 400
    error_of(answer)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "json", "", None])
async def test_a_body_of_another_type_or_of_none_is_415_and_names_the_right_one(api: Api, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = await api.client.post("/v1/keys", content=b'{"name": "x"}', headers=headers)
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (415, "Content-Type")
    assert "application/json" in str(error["message"])


async def test_json_may_come_with_a_charset_or_under_a_name_of_its_own(api: Api) -> None:
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/merge-patch+json"):
        answer = await api.client.post("/v1/keys", content=b'{"name": "x"}', headers={"content-type": kind})
        assert answer.status_code == 201


async def test_no_body_needs_no_type(api: Api) -> None:
    answer = await api.client.post("/v1/keys")
    assert (answer.status_code, error_of(answer)["param"]) == (422, "body")
    assert (await api.client.post("/v1/uploads/upload_x/complete")).status_code == 404


async def test_lone_surrogates_and_nul_are_refused_before_the_database(api: Api) -> None:
    for name in ('"\\ud800"', '"a\\u0000b"'):
        answer = await api.client.post("/v1/keys", content=f'{{"name": {name}}}', headers=JSON)
        assert (answer.status_code, error_of(answer)["param"]) == (422, "name")


async def test_text_that_the_database_can_not_hold_is_422(api: Api) -> None:
    document = {
        "data": {"train": "file\x00"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
    }
    answer = await api.client.post("/v1/jobs", json=document)
    assert answer.status_code == 422
    error_of(answer)


@pytest.mark.parametrize("path", ["/v1/files/%00", "/v1/files?after=%00", "/v1/jobs?name=a%00"])
async def test_a_nul_in_the_address_is_400(api: Api, path: str) -> None:
    answer = await api.client.get(path)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "invalid_address")


async def test_an_unknown_query_parameter_is_422(api: Api) -> None:
    answer = await api.client.get("/v1/jobs?statsu=failed")
    error = error_of(answer)
    assert (answer.status_code, error["param"]) == (422, "statsu")
    assert "did you mean 'status'" in str(error["message"])


async def test_wrong_query_parameters_are_told_together_with_their_bounds(api: Api) -> None:
    answer = await api.client.get("/v1/files?limit=0&after=!")
    found = {error["param"]: error["accepted"] for error in error_of(answer)["errors"]}  # type: ignore[attr-defined]
    assert found["limit"] == "an integer >= 1, <= 100"
    assert "matching ^[a-z]+_" in found["after"]


async def test_a_wrong_path_parameter_is_named(api: Api) -> None:
    answer = await api.client.put("/v1/uploads/upload_x/parts/zero", content=b"x")
    assert (answer.status_code, error_of(answer)["param"]) == (422, "number")


async def test_a_large_body_is_413_by_its_announced_length_and_by_its_real_one(api: Api) -> None:
    limit = api.services.settings.max_body_bytes

    async def endless() -> AsyncIterator[bytes]:
        yield b'{"name": "'
        for _ in range(4):
            yield b"x" * limit

    announced = await api.client.post("/v1/keys", content=b"x" * (limit + 1), headers=JSON)
    streamed = await api.client.post("/v1/keys", content=endless(), headers=JSON)
    for answer in (announced, streamed):
        assert (answer.status_code, error_of(answer)["code"]) == (413, "body_too_large")


async def test_a_body_just_within_the_limit_is_read(api: Api) -> None:
    body = json.dumps({"name": "x"}).encode()
    padded = body + b" " * (api.services.settings.max_body_bytes - len(body))
    assert (await api.client.post("/v1/keys", content=padded, headers=JSON)).status_code == 201


def break_on(app: FastAPI, path: str, error: Exception) -> None:
    @app.get(path)
    async def broken() -> None:
        raise error


async def test_an_unexpected_error_tells_nothing_internal(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    break_on(api.app, "/broken", RuntimeError("password=hunter2"))
    answer = await api.client.get("/broken", headers={"X-Request-Id": "find-me-1"})
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
    assert "hunter2" not in answer.text
    assert "find-me-1" in caplog.text
    assert "hunter2" in caplog.text


async def test_a_statement_that_the_database_refuses_is_500_without_its_text(api: Api) -> None:
    @api.app.get("/sql")
    async def sql() -> None:
        async with api.services.database.read() as session:
            await session.execute(text("SELECT 'secret' || x FROM (SELECT 1 AS y) AS t WHERE y = :y"), {"y": 1})

    answer = await api.client.get("/sql")
    assert answer.status_code in (500, 503)  # SQLite counts a missing column among its operational errors
    assert "secret" not in answer.text


async def test_a_lost_database_is_503_with_a_time_to_retry_and_comes_back(
    postgres_server: PostgreSQL, postgres_template: str, tmp_path: Path
) -> None:
    with postgres_server.database(postgres_template) as url:
        name = url.rpartition("/")[2]
        settings = Settings(data_dir=tmp_path, database_url=url, bootstrap_key=keys.new_key())
        async with running(settings) as api:
            postgres_server.execute("alter database {} with allow_connections false", name)
            terminate(postgres_server, name)
            lost = await api.client.get("/v1/files")
            assert (lost.status_code, error_of(lost)["code"]) == (503, "database_unavailable")
            assert int(lost.headers["retry-after"]) > 0
            for path in ("/readyz", "/healthz"):
                health = await api.client.get(path)
                assert (health.status_code, list(health.json()["reasons"])) == (503, ["database"])
            assert (await api.client.get("/livez")).json() == {"status": "ok"}
            postgres_server.execute("alter database {} with allow_connections true", name)
            assert (await api.client.get("/v1/files")).status_code == 200


def terminate(server: PostgreSQL, database: str) -> None:
    """Cut all connections to a database."""
    import psycopg

    with psycopg.connect(server.url("postgres").replace("+psycopg", ""), autocommit=True) as connection:
        statement = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
        connection.execute(statement, [database])


async def test_health_names_what_is_broken_and_nothing_more(settings: Settings) -> None:
    async with running(settings) as api:
        assert (await api.client.get("/healthz")).json() == {"status": "ok", "reasons": {}}
        folder = settings.data_dir / "store"
        folder.rename(settings.data_dir / "elsewhere")
        folder.write_text("in the way")
        api.app.state.health._until = 0.0
        answer = await api.client.get("/healthz")
    assert answer.status_code == 503
    assert list(answer.json()["reasons"]) == ["store"]
    assert str(settings.data_dir) not in answer.text


async def test_health_and_version_need_no_key(api: Api) -> None:
    nobody = await api.anonymous()
    assert (await nobody.get("/healthz")).status_code == 200
    assert (await nobody.get("/v1/version")).json()["version"]
    assert (await nobody.get("/docs")).status_code == 200


async def test_a_client_that_leaves_while_it_sends_is_no_error(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    assert api.services.settings.bootstrap_key is not None
    key = api.services.settings.bootstrap_key.get_secret_value()
    messages = iter([{"type": "http.request", "body": b"abc", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[object] = []

    async def receive() -> object:
        return next(messages)

    async def send(message: object) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/files",
        "raw_path": b"/v1/files",
        "query_string": b"name=a",
        "headers": [(b"authorization", f"Bearer {key}".encode())],
        "scheme": "http",
        "server": ("stillhouse", 80),
        "root_path": "",
        "http_version": "1.1",
        "app": api.app,
    }
    await api.app(scope, receive, send)  # type: ignore[arg-type]
    assert sent == []
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


def test_settings_reach_the_application() -> None:
    first, second = (create_app(Settings(max_body_bytes=size)) for size in (2048, 4096))
    assert (first.state.settings.max_body_bytes, second.state.settings.max_body_bytes) == (2048, 4096)


READABLE = ["/", "/docs", "/openapi.json", "/assets/page.css", "/healthz", "/v1/version", "/v1/jobs", "/v1/catalog"]


@pytest.mark.parametrize("path", [*READABLE, "/v1/files/file_x", "/v1/nothing", "/v1/jobs?limit=0"])
async def test_head_is_answered_as_get_without_the_body(api: Api, path: str) -> None:
    told, shown = await api.client.head(path), await api.client.get(path)
    varying = ("date", "x-request-id")
    assert told.status_code == shown.status_code
    for name in set(shown.headers) - set(varying):
        if name == "content-length" and shown.status_code >= 400:
            continue  # the envelope has the request's id in it
        assert told.headers[name] == shown.headers[name]
    assert told.content == b""


async def test_head_of_a_download_tells_its_size_and_digest_and_reads_nothing(api: Api) -> None:
    file = (await api.client.post("/v1/files?name=a.txt", content=b"some text\n" * 100)).json()
    path = f"/v1/files/{file['id']}/content"
    whole = await api.client.head(path)
    assert (whole.status_code, whole.headers["content-length"], whole.content) == (200, "1000", b"")
    assert whole.headers["etag"] == f'"{file["sha256"]}"'
    part = await api.client.head(path, headers={"range": "bytes=0-9"})
    assert (part.status_code, part.headers["content-range"]) == (206, "bytes 0-9/1000")
    assert (await api.client.head(path, headers={"if-none-match": whole.headers["etag"]})).status_code == 304


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/", "GET, HEAD, OPTIONS"),
        ("POST", "/docs", "GET, HEAD, OPTIONS"),
        ("DELETE", "/openapi.json", "GET, HEAD, OPTIONS"),
        ("POST", "/healthz", "GET, HEAD, OPTIONS"),
        ("PUT", "/v1/jobs", "GET, HEAD, OPTIONS, POST"),
        ("PUT", "/v1/jobs/validate", "OPTIONS, POST"),
        ("DELETE", "/v1/jobs/job_x/artifacts/a/b.json", "GET, HEAD, OPTIONS"),
        ("HEAD", "/v1/uploads", "OPTIONS, POST"),
        ("TRACE", "/v1/models/model_x", "DELETE, GET, HEAD, OPTIONS"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(api: Api, method: str, path: str, allowed: str) -> None:
    wrong = await api.client.request(method, path)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, allowed)
    asked = await api.client.options(path)
    assert (asked.status_code, asked.headers["allow"], asked.content) == (204, allowed, b"")


@pytest.mark.parametrize("path", ["/v1/jobs/", "/v1/files/", "/healthz/", "/docs/", "/v1//jobs", "//v1/jobs"])
async def test_nothing_is_redirected_to_another_address(api: Api, path: str) -> None:
    answer = await api.client.get(path, headers={"host": "elsewhere"})
    assert answer.status_code == 404
    assert "location" not in answer.headers
    error_of(answer)
