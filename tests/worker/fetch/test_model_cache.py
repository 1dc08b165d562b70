"""Folders that outlive attempts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from worker.fetch.model_cache import LEAVING, FetchCache


class Maker:
    """Makes a folder with one file, and counts how often."""

    def __init__(self, content: bytes = b"x" * 10) -> None:
        self.content, self.made = content, 0

    async def __call__(self, folder: Path) -> None:
        self.made += 1
        (folder / "weights").write_bytes(self.content)


def only_file(folder: Path) -> bytes:
    assert [path.name for path in folder.iterdir()] == ["weights"]
    return (folder / "weights").read_bytes()


async def placed(cache: FetchCache, digest: str, target: Path, maker: Maker) -> bytes:
    await cache.place(digest, target, maker)
    return only_file(target)


async def test_what_was_made_once_is_there_for_the_next(tmp_path: Path) -> None:
    maker = Maker()
    for number in range(3):  # a new cache each time, as another process has
        cache = FetchCache(tmp_path / "cache", 100)
        assert await placed(cache, "a", tmp_path / f"attempt{number}", maker) == maker.content
    assert maker.made == 1


async def test_a_folder_that_is_filled_again_is_made_whole(tmp_path: Path) -> None:
    cache, maker = FetchCache(tmp_path / "cache", 100), Maker()
    await placed(cache, "a", tmp_path / "attempt", maker)
    assert await placed(cache, "a", tmp_path / "attempt", maker) == maker.content
    assert maker.made == 1


async def test_those_not_used_for_longest_go_first(tmp_path: Path) -> None:
    cache, maker = FetchCache(tmp_path / "cache", 25), Maker()
    for number, digest in enumerate(["a", "b"]):
        await placed(cache, digest, tmp_path / digest, maker)
        os.utime(tmp_path / "cache" / digest, (number, number))
    await placed(cache, "a", tmp_path / "again", maker)
    await placed(cache, "c", tmp_path / "c", maker)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"a", "c"}
    assert (tmp_path / "b" / "weights").read_bytes() == maker.content  # who has it keeps it


async def test_what_is_larger_than_the_cache_is_used_and_not_kept(tmp_path: Path) -> None:
    cache, maker = FetchCache(tmp_path / "cache", 5), Maker()
    assert await placed(cache, "a", tmp_path / "attempt", maker) == maker.content
    assert list((tmp_path / "cache").iterdir()) == []


async def test_what_a_killed_worker_left_is_swept_in_time(tmp_path: Path) -> None:
    cache = FetchCache(tmp_path / "cache", 100)
    old, new = (tmp_path / "cache" / f"{LEAVING}{name}" for name in ("old", "new"))
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (0, 0))
    await placed(cache, "a", tmp_path / "attempt", Maker())
    assert (old.exists(), new.exists()) == (False, True)


async def test_many_at_once_all_get_it(tmp_path: Path) -> None:
    maker = Maker()
    caches = [FetchCache(tmp_path / "cache", 15) for _ in range(8)]
    found = await asyncio.gather(
        *(placed(cache, "ab"[number % 2], tmp_path / f"{number}", maker) for number, cache in enumerate(caches))
    )
    assert found == [maker.content] * 8
