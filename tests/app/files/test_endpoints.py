"""Files and uploads over HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import pickle
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import select, update

from app.core.clock import now
from app.core.outbox import OutboxMessage
from app.core.store import MissingObject, Store, StoredObject
from app.files import service
from app.files.service import expire_uploads
from app.files.tables import FileRow, UploadPart, UploadRow
from tests.app.conftest import Api


def archive(samples: int = 30) -> bytes:
    buffer = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 255, (samples, 8, 8), np.uint8)
    np.savez(buffer, x=images, y=np.arange(samples) % 10)
    return buffer.getvalue()


DATA = archive()
SHA256 = hashlib.sha256(DATA).hexdigest()
PARTS = [DATA[start : start + 1000] for start in range(0, len(DATA), 1000)]


async def send(api: Api, content: bytes = DATA, name: str = "digits.npz") -> dict[str, Any]:
    answer = await api.client.post("/v1/files", params={"name": name}, content=content)
    assert answer.status_code == 201, answer.text
    sent: dict[str, Any] = answer.json()
    return sent


async def begin(api: Api, **fields: Any) -> str:
    answer = await api.client.post("/v1/uploads", json={"name": "digits.npz", **fields})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def send_part(api: Api, upload: str, number: int, content: bytes, **headers: str) -> httpx.Response:
    return await api.client.put(f"/v1/uploads/{upload}/parts/{number}", content=content, headers=headers)


async def send_parts(api: Api, upload: str) -> None:
    for number, part in enumerate(PARTS, 1):
        assert (await send_part(api, upload, number, part)).status_code == 200


async def complete(api: Api, upload: str, **body: Any) -> httpx.Response:
    return await api.client.post(f"/v1/uploads/{upload}/complete", json=body)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def keys_in_store(api: Api) -> set[str]:
    listed = await api.services.store._backend.list().collect_async()
    return {entry["path"] for entry in listed} - {"healthz"}


async def settle(api: Api) -> None:
    """Wait until the relay has sent everything, so that given-up objects are gone."""
    while True:
        async with api.services.database.read() as session:
            if await session.scalar(select(OutboxMessage.id).limit(1)) is None:
                return
        await asyncio.sleep(0.02)


# --- small files ---


async def test_a_small_file_goes_in_one_go_and_comes_back_unchanged(api: Api) -> None:
    sent = await send(api)
    assert (sent["format"], sent["size"], sent["sha256"]) == ("npz", len(DATA), SHA256)
    assert sent["arrays"]["x"] == {"shape": [30, 8, 8], "dtype": "u1"}
    assert (await api.client.get(f"/v1/files/{sent['id']}")).json() == sent
    content = await api.client.get(f"/v1/files/{sent['id']}/content")
    assert (content.content, content.headers["etag"]) == (DATA, f'"{SHA256}"')
    part = await api.client.get(f"/v1/files/{sent['id']}/content", headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, DATA[5:10])


async def test_the_list_shows_files_newest_first_without_their_arrays(api: Api) -> None:
    ids = [(await send(api, name=f"{index}.npz"))["id"] for index in range(3)]
    page = (await api.client.get("/v1/files?limit=2")).json()
    assert [file["id"] for file in page["data"]] == ids[:0:-1]
    assert page["has_more"]
    assert "arrays" not in page["data"][0]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty_body"),
        (bytes(20), "unknown_format"),
        (pickle.dumps([1, 2, 3]), "unsafe_file"),
        (DATA[:-40], "malformed_file"),
    ],
)
async def test_a_file_that_is_refused_leaves_nothing(api: Api, content: bytes, code: str) -> None:
    answer = await api.client.post("/v1/files?name=a", content=content)
    assert code_of(answer) == (422, code)
    assert await keys_in_store(api) == set()
    assert (await api.client.get("/v1/files")).json()["data"] == []


async def test_a_file_over_the_limit_is_413_however_it_is_sent(api: Api) -> None:
    limit = api.services.settings.max_part_bytes

    async def streamed() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield bytes(limit // 4)

    assert code_of(await api.client.post("/v1/files?name=a", content=bytes(limit + 1))) == (413, "body_too_large")
    assert code_of(await api.client.post("/v1/files?name=a", content=streamed())) == (413, "body_too_large")
    assert await keys_in_store(api) == set()


@pytest.mark.parametrize("name", ["", "x" * 256, "a\x1fb"])
async def test_a_name_that_can_not_be_is_refused(api: Api, name: str) -> None:
    answer = await api.client.post("/v1/files", params={"name": name}, content=DATA)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "name")


async def test_user_text_never_reaches_the_object_keys(api: Api) -> None:
    await send(api, name="../../etc/passwd")
    assert all(key.startswith("files/") and ".." not in key for key in await keys_in_store(api))


async def test_a_deleted_file_is_gone_with_its_object(api: Api) -> None:
    file = await send(api)
    answer = await api.client.delete(f"/v1/files/{file['id']}")
    assert answer.json() == {"id": file["id"], "object": "file", "deleted": True}
    for path in ("", "/content"):
        assert code_of(await api.client.get(f"/v1/files/{file['id']}{path}")) == (404, "file_not_found")
    assert (await api.client.delete(f"/v1/files/{file['id']}")).status_code == 404
    assert (await api.client.get("/v1/files")).json()["data"] == []
    await settle(api)
    assert await keys_in_store(api) == set()


async def test_a_file_that_a_job_waits_for_can_not_be_deleted(api: Api) -> None:
    file = (await send(api))["id"]
    spec = {
        "data": {"train": file},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
    }
    job = (await api.client.post("/v1/jobs", json=spec)).json()["id"]
    answer = await api.client.delete(f"/v1/files/{file}")
    assert code_of(answer) == (409, "file_in_use")
    assert job in answer.json()["error"]["message"]
    await api.client.post(f"/v1/jobs/{job}/cancel")
    assert (await api.client.delete(f"/v1/files/{file}")).status_code == 200


# --- uploads ---


async def test_parts_in_any_order_become_a_verified_file(api: Api) -> None:
    upload = await begin(api, size=len(DATA), sha256=SHA256)
    for number in (2, 3, 1):
        answer = await send_part(api, upload, number, PARTS[number - 1])
        assert answer.json()["sha256"] == hashlib.sha256(PARTS[number - 1]).hexdigest()
    file = (await complete(api, upload)).json()
    assert (file["size"], file["sha256"], file["name"]) == (len(DATA), SHA256, "digits.npz")
    assert (await api.client.get(f"/v1/files/{file['id']}/content")).content == DATA
    shown = (await api.client.get(f"/v1/uploads/{upload}")).json()
    assert (shown["status"], shown["file_id"], shown["parts"]) == ("completed", file["id"], [])
    await settle(api)
    assert len(await keys_in_store(api)) == 1


async def test_a_single_part_is_not_copied(api: Api) -> None:
    upload = await begin(api)
    await send_part(api, upload, 1, DATA)
    before = await keys_in_store(api)
    assert (await complete(api, upload)).status_code == 201
    await settle(api)
    assert await keys_in_store(api) == before


async def test_a_client_that_was_cut_off_sees_what_is_missing(api: Api) -> None:
    upload = await begin(api)
    await send_part(api, upload, 1, PARTS[0])
    await send_part(api, upload, 3, PARTS[2])
    shown = (await api.client.get(f"/v1/uploads/{upload}")).json()
    assert [part["number"] for part in shown["parts"]] == [1, 3]
    answer = await complete(api, upload)
    assert code_of(answer) == (422, "missing_parts")
    assert "missing: 2" in answer.json()["error"]["message"]
    await send_part(api, upload, 2, PARTS[1])
    assert (await complete(api, upload)).status_code == 201


async def test_an_upload_without_parts_can_not_be_completed(api: Api) -> None:
    assert code_of(await complete(api, await begin(api))) == (422, "missing_parts")


async def test_a_part_sent_again_replaces_the_first(api: Api) -> None:
    upload = await begin(api)
    await send_part(api, upload, 1, b"wrong")
    await send_parts(api, upload)
    assert (await complete(api, upload)).json()["sha256"] == SHA256
    await settle(api)
    assert len(await keys_in_store(api)) == 1


def content_digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


async def test_the_digest_of_a_part_is_checked(api: Api) -> None:
    upload = await begin(api)
    right, wrong = PARTS[0], b"something else"
    for headers in ({"Content-Digest": content_digest(wrong)}, {"X-Part-SHA256": hashlib.sha256(wrong).hexdigest()}):
        assert code_of(await send_part(api, upload, 1, right, **headers)) == (422, "digest_mismatch")
    assert (await api.client.get(f"/v1/uploads/{upload}")).json()["parts"] == []
    assert await keys_in_store(api) == set()
    several = f"sha-512=:{'A' * 86}==:, {content_digest(right)}"
    for headers in ({"Content-Digest": several}, {"X-Part-SHA256": hashlib.sha256(right).hexdigest()}):
        assert (await send_part(api, upload, 1, right, **headers)).status_code == 200


@pytest.mark.parametrize("given", ["sha-256=abc", "sha-256=:short:", "sha-256=:" + "=" * 44 + ":"])
async def test_a_digest_that_can_not_be_read_is_refused(api: Api, given: str) -> None:
    answer = await send_part(api, await begin(api), 1, b"x", **{"Content-Digest": given})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "content-digest")


async def test_a_digest_by_another_function_is_passed_over(api: Api) -> None:
    answer = await send_part(api, await begin(api), 1, b"x", **{"Content-Digest": "md5=:1B2M2Y8AsgTpgAmY7PhCfg==:"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("announced", "completion", "code"),
    [
        ({"sha256": "0" * 64}, {}, "digest_mismatch"),
        ({}, {"sha256": "0" * 64}, "digest_mismatch"),
        ({"size": len(DATA) + 1}, {}, "size_mismatch"),
    ],
)
async def test_a_whole_that_is_not_what_was_announced_is_refused_and_can_be_mended(
    api: Api, announced: dict[str, Any], completion: dict[str, Any], code: str
) -> None:
    upload = await begin(api, **announced)
    await send_parts(api, upload)
    before = await keys_in_store(api)
    assert code_of(await complete(api, upload, **completion)) == (422, code)
    assert (await api.client.get(f"/v1/uploads/{upload}")).json()["status"] == "pending"
    assert await keys_in_store(api) == before


async def test_an_upload_is_inspected_too(api: Api) -> None:
    upload = await begin(api)
    content = pickle.dumps(list(range(1000)))
    await send_part(api, upload, 1, content[:100])
    await send_part(api, upload, 2, content[100:])
    assert code_of(await complete(api, upload)) == (422, "unsafe_file")


async def test_an_upload_that_grows_too_large_is_413(api: Api) -> None:
    limit = api.services.settings.max_file_bytes
    assert code_of(await api.client.post("/v1/uploads", json={"name": "a", "size": limit + 1})) == (
        413,
        "file_too_large",
    )
    small = await begin(api, size=1500)
    assert (await send_part(api, small, 1, bytes(1000))).status_code == 200
    assert code_of(await send_part(api, small, 2, bytes(501))) == (413, "file_too_large")
    assert (await send_part(api, small, 1, bytes(1500))).status_code == 200
    part = api.services.settings.max_part_bytes
    unbounded = await begin(api)
    for number in range(1, limit // part + 1):
        assert (await send_part(api, unbounded, number, bytes(part))).status_code == 200
    assert code_of(await send_part(api, unbounded, limit // part + 1, b"x")) == (413, "file_too_large")


@pytest.mark.parametrize("number", [0, -1, 10_001])
async def test_a_part_number_out_of_range_is_refused(api: Api, number: int) -> None:
    answer = await send_part(api, await begin(api), number, b"x")
    assert (answer.status_code, answer.json()["error"]["errors"][0]["param"]) == (422, "number")


async def test_an_empty_part_is_refused(api: Api) -> None:
    assert code_of(await send_part(api, await begin(api), 1, b"")) == (422, "empty_body")
    assert await keys_in_store(api) == set()


async def test_completing_again_gives_the_same_file(api: Api) -> None:
    upload = await begin(api)
    await send_parts(api, upload)
    first, *others = [
        answer.json()["id"] for answer in await asyncio.gather(*(complete(api, upload) for _ in range(4)))
    ]
    assert others == [first] * 3
    assert (await complete(api, upload)).json()["id"] == first
    assert len((await api.client.get("/v1/files")).json()["data"]) == 1
    await settle(api)
    assert len(await keys_in_store(api)) == 1


async def test_a_request_that_completes_while_another_does_gives_the_same_file(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begin(api)
    await send_parts(api, upload)
    join, others = service._join, []

    async def join_late(store: Store, parts: list[UploadPart]) -> StoredObject:
        monkeypatch.setattr(service, "_join", join)
        others.append((await complete(api, upload)).json()["id"])
        await settle(api)
        return await join(store, parts)

    monkeypatch.setattr(service, "_join", join_late)
    assert [(await complete(api, upload)).json()["id"]] == others
    assert len(await keys_in_store(api)) == 1


async def test_a_completed_upload_takes_no_more(api: Api) -> None:
    upload = await begin(api)
    await send_parts(api, upload)
    await complete(api, upload)
    assert code_of(await send_part(api, upload, 1, b"x")) == (409, "wrong_state")
    assert code_of(await api.client.post(f"/v1/uploads/{upload}/cancel")) == (409, "wrong_state")


async def test_a_cancelled_upload_is_gone_with_its_parts(api: Api) -> None:
    upload = await begin(api)
    await send_parts(api, upload)
    for _ in range(2):
        answer = await api.client.post(f"/v1/uploads/{upload}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert code_of(await send_part(api, upload, 1, b"x")) == (409, "wrong_state")
    assert code_of(await complete(api, upload)) == (409, "wrong_state")
    await settle(api)
    assert await keys_in_store(api) == set()


async def test_an_upload_whose_time_is_over_is_refused_and_then_removed(api: Api) -> None:
    upload, open_one = await begin(api), await begin(api)
    await send_parts(api, upload)
    await send_part(api, open_one, 1, b"x")
    async with api.services.database.write() as session:
        await session.execute(update(UploadRow).where(UploadRow.id == upload).values(expires_at=now() - 1.0))
    assert code_of(await send_part(api, upload, 1, b"x")) == (409, "wrong_state")
    assert code_of(await complete(api, upload)) == (409, "wrong_state")
    await expire_uploads(api.services.database)
    assert (await api.client.get(f"/v1/uploads/{upload}")).json()["status"] == "expired"
    assert (await api.client.get(f"/v1/uploads/{open_one}")).json()["status"] == "pending"
    await settle(api)
    assert len(await keys_in_store(api)) == 1


async def test_a_part_that_is_replaced_while_the_whole_is_joined_is_noticed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await begin(api)
    await send_parts(api, upload)
    join = api.services.store.concatenate

    async def join_slowly(keys: list[str], target: str) -> StoredObject:
        stored = await join(keys, target)
        await send_part(api, upload, 1, b"other content")
        return stored

    monkeypatch.setattr(api.services.store, "concatenate", join_slowly)
    assert code_of(await complete(api, upload)) == (409, "upload_changed")
    await settle(api)
    assert len(await keys_in_store(api)) == len(PARTS)


async def test_a_part_whose_object_is_gone_is_a_conflict_not_a_crash(api: Api) -> None:
    upload = await begin(api)
    await send_parts(api, upload)
    async with api.services.database.read() as session:
        keys = list(await session.scalars(select(UploadPart.key)))
    await api.services.store.delete(keys[:1])
    assert code_of(await complete(api, upload)) == (409, "upload_changed")


async def test_the_rows_tell_where_the_bytes_are(api: Api) -> None:
    file = await send(api)
    async with api.services.database.read() as session:
        row = (await session.scalars(select(FileRow))).one()
    chunks = [chunk async for chunk in api.services.store.stream(row.key)]
    assert hashlib.sha256(b"".join(chunks)).hexdigest() == file["sha256"]
    await api.services.store.delete([row.key])
    with pytest.raises(MissingObject):
        api.services.store.reader(row.key)
    assert code_of(await api.client.get(f"/v1/files/{file['id']}/content")) == (410, "content_gone")
