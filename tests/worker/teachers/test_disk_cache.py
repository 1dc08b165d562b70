"""Locking and eviction of the entries of the disk cache."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path

import pytest
import torch

from tests.servers.output import first_line
from worker.teachers import disk_cache as cache_module
from worker.teachers.cached_rows import RowLayout
from worker.teachers.disk_cache import DRAFT, IN_USE, LOCK, CacheFull, DiskCache, OpenEntry
from worker.teachers.encoding import StoredColumn

LAYOUT = RowLayout(100, {"logits": StoredColumn(torch.float32, 10)}, {})
ENTRY = 4800
"""Bytes of one entry of `LAYOUT`, with its small files; at most."""
CLOCK = count(10**18)
"""Times of use: two uses within one tick of the file system's clock have an order too."""


def key(name: str) -> str:
    return sha256(name.encode()).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def put(cache: DiskCache, *names: str, layout: RowLayout = LAYOUT) -> None:
    """Open and close entries, one after the other, with a little time between."""
    for name in names:
        cache.open(key(name), layout).close()
        mark = cache._folder / key(name) / IN_USE
        os.utime(mark, ns=(0, next(CLOCK)))


def names(cache: DiskCache, *candidates: str) -> list[str]:
    known = {key(name): name for name in candidates}
    return [known[found.name] for found in cache._entries()]


def test_an_entry_is_created_once_and_found_again(folder: Path) -> None:
    cache = DiskCache(folder, 10 * ENTRY)
    held = cache.open(key("a"), LAYOUT)
    held.rows.write(torch.tensor([5]), {"logits": torch.ones(1, 10)})
    held.close()
    again = DiskCache(folder, 10 * ENTRY).open(key("a"), LAYOUT)
    assert again.rows.filled(torch.tensor([4, 5])).tolist() == [False, True]
    again.close()
    assert sorted(path.name for path in folder.iterdir()) == sorted([key("a"), LOCK])


def test_the_least_recently_used_entry_is_evicted(folder: Path) -> None:
    cache = DiskCache(folder, 3 * ENTRY)
    put(cache, "a", "b", "c")
    put(cache, "a")
    assert names(cache, "a", "b", "c") == ["b", "c", "a"]
    put(cache, "d")
    assert names(cache, "a", "b", "c", "d") == ["c", "a", "d"]


def test_opening_an_entry_counts_as_use(folder: Path) -> None:
    cache = DiskCache(folder, 3 * ENTRY)
    put(cache, "a", "b")
    held = cache.open(key("a"), LAYOUT)
    assert names(cache, "a", "b") == ["b", "a"]
    held.close()


def test_no_more_is_evicted_than_necessary(folder: Path) -> None:
    cache = DiskCache(folder, 4 * ENTRY)
    put(cache, "a", "b", "c", "d")
    put(cache, "large", layout=RowLayout(200, LAYOUT.columns, {}))
    assert names(cache, "a", "b", "c", "d", "large") == ["c", "d", "large"]


def test_an_entry_in_use_stays(folder: Path) -> None:
    cache = DiskCache(folder, 2 * ENTRY)
    held = cache.open(key("a"), LAYOUT)
    put(cache, "b", "c")
    assert set(names(cache, "a", "b", "c")) == {"a", "c"}
    held.close()
    put(cache, "d")
    assert len(cache._entries()) == 2


def test_nothing_is_evicted_if_it_would_not_suffice(folder: Path) -> None:
    cache = DiskCache(folder, 2 * ENTRY)
    put(cache, "idle")
    held = cache.open(key("used"), LAYOUT)
    with pytest.raises(CacheFull, match="other jobs"):
        cache.open(key("large"), RowLayout(150, LAYOUT.columns, {}))
    assert set(names(cache, "idle", "used")) == {"idle", "used"}
    held.close()


def test_an_entry_larger_than_the_cache_is_refused(folder: Path) -> None:
    cache = DiskCache(folder, ENTRY)
    put(cache, "a")
    with pytest.raises(CacheFull, match="the limit is"):
        cache.open(key("b"), RowLayout(200, LAYOUT.columns, {}))
    assert names(cache, "a") == ["a"]


def test_an_entry_is_in_use_until_its_last_holder_closes_it(folder: Path) -> None:
    cache = DiskCache(folder, ENTRY)
    first, second = cache.open(key("a"), LAYOUT), cache.open(key("a"), LAYOUT)
    first.close()
    with pytest.raises(CacheFull):
        cache.open(key("b"), LAYOUT)
    second.close()
    put(cache, "b")
    assert names(cache, "a", "b") == ["b"]


HOLDER = """
import sys
from pathlib import Path
import torch
from worker.teachers.encoding import StoredColumn
from worker.teachers.cached_rows import RowLayout
from worker.teachers.disk_cache import DiskCache

layout = RowLayout(100, {"logits": StoredColumn(torch.float32, 10)}, {})
held = DiskCache(Path(sys.argv[1]), 10**6).open(sys.argv[2], layout)
held.rows.write(torch.tensor([1]), {"logits": torch.ones(1, 10)})
print("held", flush=True)
sys.stdin.read()
"""


def test_another_process_holds_an_entry_until_it_dies(folder: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(folder), key("a")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert first_line(holder.stdout) == b"held\n"
        cache = DiskCache(folder, ENTRY)
        held = cache.open(key("a"), LAYOUT)
        assert held.rows.count() == 1
        held.close()
        with pytest.raises(CacheFull):
            cache.open(key("b"), LAYOUT)
        holder.kill()
        holder.wait()
        put(cache, "b")
    assert names(cache, "a", "b") == ["b"]


def test_a_damaged_entry_is_created_again(folder: Path) -> None:
    cache = DiskCache(folder, 10 * ENTRY)
    held = cache.open(key("a"), LAYOUT)
    held.rows.write(torch.tensor([5]), {"logits": torch.ones(1, 10)})
    held.close()
    os.truncate(folder / key("a") / "logits.bin", 100)
    again = cache.open(key("a"), LAYOUT)
    assert again.rows.count() == 0
    again.close()


def test_an_unfinished_draft_is_removed(folder: Path) -> None:
    draft = folder / f"{DRAFT}{key('a')}"
    draft.mkdir(parents=True)
    (draft / "logits.bin").write_bytes(b"half")
    put(DiskCache(folder, ENTRY), "a")
    assert not draft.exists()


def test_a_full_disk_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk(monkeypatch), pytest.raises(OSError, match="No space left"):
        DiskCache(folder, ENTRY).open(key("a"), LAYOUT)
    assert [path.name for path in folder.iterdir()] == [LOCK]
    put(DiskCache(folder, ENTRY), "a")


def test_a_cache_that_another_process_has_locked_for_long_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "LOCK_SECONDS", 0.05)
    folder.mkdir()
    with (folder / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError):
            DiskCache(folder, ENTRY).open(key("a"), LAYOUT)


def test_other_files_in_the_folder_are_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "notes").write_text("mine")
    (folder / "photographs").mkdir()
    put(DiskCache(folder, ENTRY), "a", "b")
    assert (folder / "notes").read_text() == "mine"
    assert (folder / "photographs").is_dir()


def test_evicted_rows_stay_readable_where_they_are_open(folder: Path) -> None:
    held: OpenEntry = DiskCache(folder, ENTRY).open(key("a"), LAYOUT)
    held.rows.write(torch.tensor([5]), {"logits": torch.ones(1, 10)})
    cache_module._remove(folder / key("a"))
    assert torch.equal(held.rows.read(torch.tensor([5]))["logits"], torch.ones(1, 10))
    held.close()


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        yield
