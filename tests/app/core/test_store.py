"""The object store on local disk, in memory, and on an S3 server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from obstore.store import MemoryStore

from app.core import store as module
from app.core.errors import TooLarge, Unavailable
from app.core.settings import Settings
from app.core.store import Damaged, KeyTaken, MissingObject, Store, StoredObject
from tests.servers import S3

SMALL = b"a few bytes"
LARGE = os.urandom(module.PART) + b"and some more"


def settings_of(server: S3) -> Settings:
    values = server.settings(uuid4().hex)
    names = {name.removeprefix("STILLHOUSE_").lower(): value for name, value in values.items()}
    return Settings.model_validate(names)


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return Store(MemoryStore())
    if request.param == "local":
        return Store.from_settings(Settings(data_dir=tmp_path))
    return Store.from_settings(settings_of(request.getfixturevalue("s3_moto")))


async def pieces(content: bytes, size: int = 1 << 20) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def put(store: Store, key: str, content: bytes) -> StoredObject:
    return await store.write(key, pieces(content), len(content))


async def content_of(store: Store, key: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([chunk async for chunk in store.stream(key, start, end)])


@pytest.mark.parametrize("content", [b"", SMALL, LARGE], ids=["empty", "small", "multi-part"])
async def test_what_is_uploaded_comes_back_with_its_digest(store: Store, tmp_path: Path, content: bytes) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(content)
    stored = await store.upload(source, "files/one")
    assert stored == StoredObject("files/one", len(content), hashlib.sha256(content).hexdigest())
    await store.download("files/one", target, stored.sha256, stored.size)
    assert target.read_bytes() == content
    assert await content_of(store, "files/one") == content


async def test_a_stream_over_the_limit_is_refused_and_not_kept(store: Store) -> None:
    for content in (SMALL, LARGE):
        with pytest.raises(TooLarge):
            await store.write("files/big", pieces(content), len(content) - 1)
        with pytest.raises(MissingObject):
            await content_of(store, "files/big")


async def test_a_stream_that_breaks_off_leaves_nothing(store: Store) -> None:
    async def broken() -> AsyncIterator[bytes]:
        async for chunk in pieces(LARGE):
            yield chunk
        raise RuntimeError("the client left")

    with pytest.raises(RuntimeError, match="the client left"):
        await store.write("files/broken", broken(), 1 << 30)
    with pytest.raises(MissingObject):
        await content_of(store, "files/broken")


async def test_a_writer_that_is_cancelled_lets_its_thread_go(store: Store) -> None:
    waiting = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield SMALL
        waiting.set()
        await asyncio.Event().wait()

    for _ in range(2):
        task = asyncio.create_task(store.write("files/stuck", stuck(), 1 << 30))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        waiting.clear()
    await asyncio.to_thread(store._writers.shutdown)  # comes back only when no thread waits any more
    with pytest.raises(MissingObject):
        await content_of(store, "files/stuck")


@pytest.mark.parametrize("kind", ["write", "read"])
def test_an_interpreter_that_ends_right_after_a_transfer_ends_well(kind: str) -> None:
    program = f"""
        import asyncio
        from obstore.store import MemoryStore
        from app.core.store import PART, Store

        async def main():
            async def chunks():
                for _ in range(64):
                    yield bytes(PART // 16)
            store = Store(MemoryStore())
            await store.write("files/one", chunks(), 1 << 30)
            if {kind!r} == "read":
                async for chunk in store.stream("files/one"):
                    pass

        asyncio.run(main())
    """
    for _ in range(3):
        subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


async def test_parts_are_joined_in_order(store: Store) -> None:
    parts = [LARGE, SMALL, b"", LARGE[:100]]
    for index, part in enumerate(parts):
        await put(store, f"parts/{index}", part)
    joined = await store.concatenate([f"parts/{index}" for index in range(4)], "files/joined")
    whole = b"".join(parts)
    assert (joined.size, joined.sha256) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert await content_of(store, "files/joined") == whole


async def test_a_small_object_is_never_overwritten(store: Store) -> None:
    await put(store, "files/one", SMALL)
    with pytest.raises(KeyTaken):
        await put(store, "files/one", b"something else")
    assert await content_of(store, "files/one") == SMALL


async def test_writing_the_same_again_is_taken_for_a_retry(store: Store) -> None:
    assert await put(store, "files/one", SMALL) == await put(store, "files/one", SMALL)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (3, 7), (5, None), (0, 10_000), (4, 4)])
async def test_a_range_is_read(store: Store, start: int, end: int | None) -> None:
    await put(store, "files/one", SMALL)
    assert await content_of(store, "files/one", start, end) == SMALL[start:end]


async def test_a_reader_seeks(store: Store, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("first", LARGE)
        file.writestr("second", SMALL)
    await store.upload(archive, "files/zip")
    with zipfile.ZipFile(store.reader("files/zip")) as file:
        assert file.read("second") == SMALL


@pytest.mark.parametrize("wrong", ["size", "digest"])
async def test_a_damaged_object_is_not_handed_out(store: Store, tmp_path: Path, wrong: str) -> None:
    stored = await put(store, "files/one", SMALL)
    sha256, size = ("0" * 64, stored.size) if wrong == "digest" else (stored.sha256, stored.size + 1)
    with pytest.raises(Damaged):
        await store.download("files/one", tmp_path / "target", sha256, size)
    assert os.listdir(tmp_path) in ([], ["store"])


async def test_deleting_is_repeatable(store: Store) -> None:
    await put(store, "files/one", SMALL)
    for _ in range(2):
        await store.delete(["files/one", "files/never-there"])
    with pytest.raises(MissingObject):
        store.reader("files/one")


async def test_a_sound_store_passes_its_check_again_and_again(store: Store) -> None:
    await store.check()
    await store.check()


async def test_a_store_without_a_public_address_gives_no_links(store: Store) -> None:
    await put(store, "files/one", SMALL)
    assert await store.presign("files/one", 60.0) is None


async def test_a_link_is_signed_for_the_public_address(s3_rclone: S3) -> None:
    settings = settings_of(s3_rclone).model_copy(update={"store_public_endpoint": s3_rclone.endpoint})
    store = Store.from_settings(settings)
    await put(store, "files/one", SMALL)
    link = await store.presign("files/one", 60.0)
    assert link is not None
    async with httpx.AsyncClient() as client:
        assert (await client.get(link)).content == SMALL
        assert (await client.get(link.replace("files/one", "files/two"))).status_code == 403
        assert (await client.get(link.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"))).status_code == 403


async def test_an_unreachable_store_is_unavailable() -> None:
    values = {"store_url": "s3://bucket", "store_endpoint": "http://127.0.0.1:1", "store_access_key": "a"}
    store = Store.from_settings(Settings.model_validate({**values, "store_secret_key": "b"}))
    for attempt in (store.check(), content_of(store, "x"), put(store, "x", SMALL), store.delete(["x"])):
        with pytest.raises(Unavailable) as caught:
            await attempt
        assert "127.0.0.1" not in caught.value.message


async def test_a_folder_that_is_no_folder_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = Store.from_settings(Settings(data_dir=tmp_path))
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(Unavailable):
        await store.check()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are Unix's")
def test_a_disk_that_takes_no_more_is_unavailable_and_keeps_no_half_object(tmp_path: Path) -> None:
    program = f"""
        import asyncio, resource
        from pathlib import Path
        from app.core.errors import Unavailable
        from app.core.settings import Settings
        from app.core.store import PART, Store

        async def main():
            store = Store.from_settings(Settings(data_dir=Path({str(tmp_path)!r})))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            for size in (2 << 20, 2 * PART):
                async def chunks():
                    yield bytes(size)
                try:
                    await store.write("files/one", chunks(), size)
                except Unavailable:
                    print("unavailable")

        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["unavailable"] * 2
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
