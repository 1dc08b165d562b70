"""Who may use which entry of the shelf, and what must go to make room."""

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
    return tmp_path / "shelf"


def put(shelf: DiskCache, *names: str, layout: RowLayout = LAYOUT) -> None:
    """Open and close entries, one after the other, with a little time between."""
    for name in names:
        shelf.open(key(name), layout).close()
        mark = shelf._folder / key(name) / IN_USE
        os.utime(mark, ns=(0, next(CLOCK)))


def names(shelf: DiskCache, *candidates: str) -> list[str]:
    known = {key(name): name for name in candidates}
    return [known[found] for found in shelf.contents()]


def test_an_entry_is_made_once_and_found_again(folder: Path) -> None:
    shelf = DiskCache(folder, 10 * ENTRY)
    held = shelf.open(key("a"), LAYOUT)
    held.rows.write(torch.tensor([5]), {"logits": torch.ones(1, 10)})
    held.close()
    again = DiskCache(folder, 10 * ENTRY).open(key("a"), LAYOUT)
    assert again.rows.filled(torch.tensor([4, 5])).tolist() == [False, True]
    again.close()
    assert sorted(path.name for path in folder.iterdir()) == sorted([key("a"), LOCK])


def test_the_entry_that_was_not_used_for_longest_makes_room(folder: Path) -> None:
    shelf = DiskCache(folder, 3 * ENTRY)
    put(shelf, "a", "b", "c")
    put(shelf, "a")
    assert names(shelf, "a", "b", "c") == ["b", "c", "a"]
    put(shelf, "d")
    assert names(shelf, "a", "b", "c", "d") == ["c", "a", "d"]


def test_opening_an_entry_counts_as_use(folder: Path) -> None:
    shelf = DiskCache(folder, 3 * ENTRY)
    put(shelf, "a", "b")
    held = shelf.open(key("a"), LAYOUT)
    assert names(shelf, "a", "b") == ["b", "a"]
    held.close()


def test_no_more_is_thrown_away_than_must_be(folder: Path) -> None:
    shelf = DiskCache(folder, 4 * ENTRY)
    put(shelf, "a", "b", "c", "d")
    put(shelf, "large", layout=RowLayout(200, LAYOUT.columns, {}))
    assert names(shelf, "a", "b", "c", "d", "large") == ["c", "d", "large"]


def test_an_entry_in_use_stays(folder: Path) -> None:
    shelf = DiskCache(folder, 2 * ENTRY)
    held = shelf.open(key("a"), LAYOUT)
    put(shelf, "b", "c")
    assert set(names(shelf, "a", "b", "c")) == {"a", "c"}
    held.close()
    put(shelf, "d")
    assert len(shelf.contents()) == 2


def test_nothing_goes_when_room_cannot_be_made(folder: Path) -> None:
    shelf = DiskCache(folder, 2 * ENTRY)
    put(shelf, "idle")
    held = shelf.open(key("used"), LAYOUT)
    with pytest.raises(CacheFull, match="other jobs"):
        shelf.open(key("large"), RowLayout(150, LAYOUT.columns, {}))
    assert set(names(shelf, "idle", "used")) == {"idle", "used"}
    held.close()


def test_what_is_larger_than_the_shelf_has_no_room(folder: Path) -> None:
    shelf = DiskCache(folder, ENTRY)
    put(shelf, "a")
    with pytest.raises(CacheFull, match="the limit is"):
        shelf.open(key("b"), RowLayout(200, LAYOUT.columns, {}))
    assert names(shelf, "a") == ["a"]


def test_an_entry_is_in_use_until_its_last_holder_lets_go(folder: Path) -> None:
    shelf = DiskCache(folder, ENTRY)
    first, second = shelf.open(key("a"), LAYOUT), shelf.open(key("a"), LAYOUT)
    first.close()
    with pytest.raises(CacheFull):
        shelf.open(key("b"), LAYOUT)
    second.close()
    put(shelf, "b")
    assert names(shelf, "a", "b") == ["b"]


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
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        shelf = DiskCache(folder, ENTRY)
        held = shelf.open(key("a"), LAYOUT)
        assert held.rows.count() == 1
        held.close()
        with pytest.raises(CacheFull):
            shelf.open(key("b"), LAYOUT)
        holder.kill()
        holder.wait()
        put(shelf, "b")
    assert names(shelf, "a", "b") == ["b"]


def test_a_damaged_entry_is_made_anew(folder: Path) -> None:
    shelf = DiskCache(folder, 10 * ENTRY)
    held = shelf.open(key("a"), LAYOUT)
    held.rows.write(torch.tensor([5]), {"logits": torch.ones(1, 10)})
    held.close()
    os.truncate(folder / key("a") / "logits.bin", 100)
    again = shelf.open(key("a"), LAYOUT)
    assert again.rows.count() == 0
    again.close()


def test_a_draft_that_nobody_finished_is_swept(folder: Path) -> None:
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


def test_a_shelf_that_another_process_has_locked_for_long_is_an_error(
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


def test_rows_that_are_thrown_away_stay_readable_where_they_are_open(folder: Path) -> None:
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
