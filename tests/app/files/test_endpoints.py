"""Files and uploads over HTTP."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import AsyncIterator

import pytest

from tests.app.conftest import Api
from tests.app.files.uploads import (
    DATA,
    PARTS,
    begin,
    code_of,
    complete,
    content_digest,
    keys_in_store,
    send,
    send_part,
    send_parts,
    settle,
)

SHA256 = hashlib.sha256(DATA).hexdigest()


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
