"""Uploads in parts that fail, end, or are tampered with."""

from __future__ import annotations

import asyncio
import hashlib
import pickle
from typing import Any

import pytest
from sqlalchemy import select, update

from app.core.clock import now
from app.core.store import MissingObject, Store, StoredObject
from app.files import service
from app.files.service import expire_uploads
from app.files.tables import FileRow, UploadPart, UploadRow
from tests.app.conftest import Api
from tests.app.files.uploads import (
    DATA,
    PARTS,
    begin,
    code_of,
    complete,
    keys_in_store,
    send,
    send_part,
    send_parts,
    settle,
)


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
