"""How stored objects are sent."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from obstore.store import MemoryStore

from app.core.chunks import CHUNK
from app.core.downloads import DOWNLOAD_RESPONSES, Content, download
from app.core.http import BodyLimit, RequestFrame, add_error_handlers
from app.core.settings import Settings
from app.core.store import Store
from tests.servers import S3

BODY = os.urandom(1000)
LARGE = os.urandom(2 * CHUNK + 17)


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


@asynccontextmanager
async def serving(store: Store, body: bytes, name: str = "model.onnx") -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with one route, `/`, that sends `body` from the store."""
    stored = await store.write(f"files/{uuid4().hex}", once(body), len(body))
    app = FastAPI()
    add_error_handlers(app)

    @app.get("/", responses=DOWNLOAD_RESPONSES)
    async def get(request: Request) -> Response:
        return await download(request, store, Content(name, stored.key, stored.size, stored.sha256))

    framed = RequestFrame(BodyLimit(app, 1000))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(framed), base_url="http://stillhouse") as client:
        yield client
        await store.delete([stored.key])


@pytest.mark.parametrize("body", [BODY, LARGE, b""], ids=["small", "large", "empty"])
async def test_the_whole_comes_with_its_length_digest_and_tag(body: bytes) -> None:
    async with serving(Store(MemoryStore()), body) as client:
        answer = await client.get("/")
    digest = hashlib.sha256(body)
    assert (answer.status_code, answer.content) == (200, body)
    assert answer.headers["content-length"] == str(len(body))
    assert answer.headers["etag"] == f'"{digest.hexdigest()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert answer.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize(
    ("given", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=990-", 990, 1000),
        ("bytes=990-5000", 990, 1000),
        ("bytes=-5", 995, 1000),
        ("bytes=-5000", 0, 1000),
        ("bytes= 1-2", 1, 3),
    ],
)
async def test_a_range_is_sent(given: str, start: int, end: int) -> None:
    async with serving(Store(MemoryStore()), BODY) as client:
        answer = await client.get("/", headers={"Range": given})
    assert (answer.status_code, answer.content) == (206, BODY[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/1000"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "given",
    [
        "bytes=1000-",
        "bytes=5-4",
        "bytes=-0",
        "bytes=-",
        "bytes=",
        "bytes=a-b",
        "bytes=0-1,5-6",
        "bytes=" + "0-1," * 999,
        "bytes=" + "9" * 40 + "-",
    ],
)
async def test_a_range_outside_or_of_several_pieces_is_416(given: str) -> None:
    async with serving(Store(MemoryStore()), BODY) as client:
        answer = await client.get("/", headers={"Range": given})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */1000")
    assert answer.json()["error"]["code"] == "range_not_satisfiable"


async def test_no_range_of_nothing() -> None:
    async with serving(Store(MemoryStore()), b"") as client:
        assert (await client.get("/", headers={"Range": "bytes=0-"})).status_code == 416


@pytest.mark.parametrize("given", ["lines=1-2", "furlongs"])
async def test_a_range_in_other_units_is_ignored(given: str) -> None:
    async with serving(Store(MemoryStore()), BODY) as client:
        assert (await client.get("/", headers={"Range": given})).status_code == 200


async def test_a_range_of_a_version_that_the_client_has_not_is_the_whole() -> None:
    async with serving(Store(MemoryStore()), BODY) as client:
        etag = (await client.get("/")).headers["etag"]
        same = await client.get("/", headers={"Range": "bytes=0-9", "If-Range": etag})
        other = await client.get("/", headers={"Range": "bytes=0-9", "If-Range": '"other"'})
    assert (same.status_code, other.status_code) == (206, 200)


@pytest.mark.parametrize("given", ["{}", "*", 'W/{}, "other"', '"other",{}'])
async def test_what_the_client_has_is_not_sent_again(given: str) -> None:
    async with serving(Store(MemoryStore()), BODY) as client:
        etag = (await client.get("/")).headers["etag"]
        answer = await client.get("/", headers={"If-None-Match": given.replace("{}", etag)})
        changed = await client.get("/", headers={"If-None-Match": '"other"'})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert changed.status_code == 200


async def test_a_name_can_not_break_the_header() -> None:
    async with serving(Store(MemoryStore()), BODY, 'a"; filename="evil.exe\r\nX: ü.npz') as client:
        answer = await client.get("/")
    assert answer.headers["content-disposition"] == (
        "attachment; filename*=UTF-8''a%22%3B%20filename%3D%22evil.exe%0D%0AX%3A%20%C3%BC.npz"
    )


async def test_content_that_was_deleted_is_410() -> None:
    store = Store(MemoryStore())
    async with serving(store, BODY) as client:
        await store.delete([key["path"] for key in await store._backend.list().collect_async()])
        answer = await client.get("/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "content_gone")


async def test_an_unreachable_store_is_503_and_not_half_an_answer() -> None:
    values = {"store_url": "s3://b", "store_endpoint": "http://127.0.0.1:1"}
    keys = {"store_access_key": "a", "store_secret_key": "b"}
    working, broken = Store(MemoryStore()), Store.from_settings(Settings.model_validate({**values, **keys}))
    async with serving(working, BODY) as client:
        working._backend = broken._backend
        answer = await client.get("/")
        working._backend = Store(MemoryStore())._backend
    assert answer.status_code == 503
    assert answer.headers["retry-after"]


async def test_a_store_that_clients_can_reach_sends_itself(s3_rclone: S3) -> None:
    values = {name.removeprefix("STILLHOUSE_").lower(): value for name, value in s3_rclone.settings("links").items()}
    store = Store.from_settings(Settings.model_validate({**values, "store_public_endpoint": s3_rclone.endpoint}))
    async with serving(store, BODY) as client:
        answer = await client.get("/")
        assert answer.status_code == 307
        assert answer.headers["repr-digest"]
        async with httpx.AsyncClient() as outside:
            assert (await outside.get(answer.headers["location"])).content == BODY
        unchanged = await client.get("/", headers={"If-None-Match": answer.headers["etag"]})
    assert unchanged.status_code == 304
