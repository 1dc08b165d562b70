"""Rows in memory-mapped files: reading, writing by several processes, and recovery after crashes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.servers.output import all_of, first_line
from worker.teachers import cached_rows
from worker.teachers.cached_rows import EMPTY, SYNCED, WRITTEN, CachedRows, RowLayout, create, fits, recover
from worker.teachers.encoding import StoredColumn

WIDTH = 3
LAYOUT = RowLayout(20, {"logits": StoredColumn(torch.float32, WIDTH)}, {"format": 1})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create(tmp_path, LAYOUT)
    return tmp_path


@pytest.fixture
def rows(folder: Path) -> Iterator[CachedRows]:
    opened = CachedRows(folder, LAYOUT)
    yield opened
    opened.close()


def numbers(*rows: int) -> Tensor:
    return torch.tensor(rows)


def row_values(*rows: int, plus: float = 0.0) -> dict[str, Tensor]:
    return {"logits": torch.tensor([[10.0 * row + column + plus for column in range(WIDTH)] for row in rows])}


def states(folder: Path) -> list[int]:
    return list((folder / cached_rows.STATES).read_bytes())


def test_a_row_is_read_as_it_was_written(rows: CachedRows) -> None:
    rows.write(numbers(7, 2), row_values(7, 2))
    assert rows.filled(numbers(1, 2, 7)).tolist() == [False, True, True]
    assert torch.equal(rows.read(numbers(2, 7, 2))["logits"], row_values(2, 7, 2)["logits"])
    assert rows.count() == 2


def test_a_copy_that_was_read_does_not_change_with_the_file(rows: CachedRows) -> None:
    rows.write(numbers(3), row_values(3))
    read = rows.read(numbers(3))["logits"]
    read.zero_()
    assert torch.equal(rows.read(numbers(3))["logits"], row_values(3)["logits"])


def test_columns_may_have_several_types(tmp_path: Path) -> None:
    columns = {
        "values": StoredColumn(torch.bfloat16, 2),
        "indices": StoredColumn(torch.int16, 2),
        "tail": StoredColumn(torch.float32, 1),
    }
    layout = RowLayout(4, columns, {})
    create(tmp_path, layout)
    opened = CachedRows(tmp_path, layout)
    made = {name: torch.ones(2, column.width, dtype=column.dtype) for name, column in columns.items()}
    opened.write(numbers(0, 3), made)
    assert all(torch.equal(column, made[name]) for name, column in opened.read(numbers(3, 0)).items())
    assert sum((tmp_path / f"{name}.bin").stat().st_size for name in columns) == layout.bytes - layout.rows
    opened.close()


def test_the_first_writer_of_a_row_wins(rows: CachedRows, folder: Path) -> None:
    other = CachedRows(folder, LAYOUT)
    rows.write(numbers(4, 5), row_values(4, 5))
    other.write(numbers(5, 6), row_values(5, 6, plus=0.5))
    assert torch.equal(rows.read(numbers(4, 5))["logits"], row_values(4, 5)["logits"])
    assert torch.equal(rows.read(numbers(6))["logits"], row_values(6, plus=0.5)["logits"])
    other.close()


def test_nothing_is_written_while_another_process_writes(rows: CachedRows, folder: Path) -> None:
    with (folder / cached_rows.WRITER).open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        rows.write(numbers(1), row_values(1))
        assert not rows.filled(numbers(1)).any()
    rows.write(numbers(1), row_values(1))
    assert rows.filled(numbers(1)).all()


def test_a_sync_marks_written_rows_after_the_columns_reached_the_disk(
    rows: CachedRows, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write(numbers(0, 1), row_values(0, 1))
    assert states(folder)[:3] == [WRITTEN, WRITTEN, EMPTY]
    seen: list[tuple[str, list[int]]] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        seen.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, states(folder)[:2]))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    rows.sync()
    assert seen == [("logits.bin", [WRITTEN, WRITTEN]), (cached_rows.STATES, [SYNCED, SYNCED])]
    rows.sync()
    assert len(seen) == 2, "nothing was new"


def test_a_failed_sync_empties_rows_that_may_be_lost(
    rows: CachedRows, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write(numbers(0), row_values(0))
    rows.sync()
    rows.write(numbers(1), row_values(1))

    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk failed")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="the disk failed"):
        rows.sync()
    assert states(folder)[:2] == [SYNCED, EMPTY]


def test_within_a_boot_no_row_is_emptied(rows: CachedRows, folder: Path) -> None:
    rows.write(numbers(2), row_values(2))
    recover(folder)
    assert rows.filled(numbers(2)).all()


def test_after_a_boot_only_synced_rows_are_valid(
    rows: CachedRows, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.write(numbers(1), row_values(1))
    rows.sync()
    rows.write(numbers(2), row_values(2))
    boot = tmp_path / "another-boot"
    boot.write_text("another boot\n")
    monkeypatch.setattr(cached_rows, "BOOT_ID", boot)
    recover(folder)
    assert rows.filled(numbers(1, 2)).tolist() == [True, False]
    rows.write(numbers(2), row_values(2))
    recover(folder)
    assert rows.filled(numbers(1, 2)).all(), "the new boot was not recorded"


def test_without_boot_ids_every_first_opening_counts_as_a_boot(
    rows: CachedRows, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cached_rows, "BOOT_ID", folder / "missing")
    rows.write(numbers(1), row_values(1))
    recover(folder)
    assert not rows.filled(numbers(1)).any()


def test_files_of_another_layout_or_cut_short_do_not_fit(folder: Path) -> None:
    assert fits(folder, LAYOUT)
    assert not fits(folder, RowLayout(21, LAYOUT.columns, LAYOUT.about))
    assert not fits(folder, RowLayout(20, LAYOUT.columns, {"format": 2}))
    os.truncate(folder / "logits.bin", 8)
    assert not fits(folder, LAYOUT)


def test_all_bytes_are_reserved_on_the_disk(folder: Path) -> None:
    for name in LAYOUT.sizes:
        status = (folder / name).stat()
        assert status.st_blocks * 512 >= status.st_size, "a write through the mapping could meet a full disk"


def test_a_full_disk_is_an_error_when_the_files_are_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        create(tmp_path, LAYOUT)


WRITER = """
import sys
from pathlib import Path
import torch
from worker.teachers.encoding import StoredColumn
from worker.teachers.cached_rows import CachedRows, RowLayout

torch.set_num_threads(1)
folder, rows, width = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
opened = CachedRows(folder, RowLayout(rows, {"logits": StoredColumn(torch.float32, width)}, {}))
order = torch.randperm(rows, generator=torch.Generator().manual_seed(int(sys.argv[4])))
for chosen in order.split(16):
    opened.write(chosen, {"logits": chosen.float().unsqueeze(1).expand(-1, width).contiguous()})
    print(int(chosen[0]), flush=True)
"""


def start_writer(folder: Path, layout: RowLayout, seed: int) -> subprocess.Popen[bytes]:
    width = layout.columns["logits"].width
    command = [sys.executable, "-c", WRITER, str(folder), str(layout.rows), str(width), str(seed)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def whole(opened: CachedRows, layout: RowLayout) -> Tensor:
    """Numbers of the filled rows, after a check that each of them contains its number."""
    everything = torch.arange(layout.rows)
    filled = everything[opened.filled(everything)]
    found = opened.read(filled)["logits"]
    assert torch.equal(found, filled.float().unsqueeze(1).expand_as(found))
    return filled


def test_a_writer_that_is_killed_leaves_only_whole_rows(tmp_path: Path) -> None:
    layout = RowLayout(2_000_000, {"logits": StoredColumn(torch.float32, 8)}, {})
    create(tmp_path, layout)
    writer = start_writer(tmp_path, layout, seed=0)
    for _ in range(5):
        first_line(writer.stdout)
    writer.send_signal(signal.SIGKILL)
    printed = {int(line) for line in all_of(writer)[0].split()}
    assert writer.returncode == -signal.SIGKILL
    recover(tmp_path)
    opened = CachedRows(tmp_path, layout)
    filled = whole(opened, layout)
    assert 5 * 16 <= len(filled) < layout.rows
    assert printed <= set(filled.tolist())
    missing = torch.ones(layout.rows, dtype=torch.bool)
    missing[filled] = False
    rest = missing.nonzero().squeeze(1)[:100]
    opened.write(rest, {"logits": rest.float().unsqueeze(1).expand(-1, 8).contiguous()})
    assert len(whole(opened, layout)) == len(filled) + 100
    opened.close()


def test_several_processes_fill_the_same_rows(tmp_path: Path) -> None:
    layout = RowLayout(4000, {"logits": StoredColumn(torch.float32, 8)}, {})
    create(tmp_path, layout)
    writers = [start_writer(tmp_path, layout, seed) for seed in range(2)]
    for writer in writers:
        all_of(writer)
        assert writer.returncode == 0
    opened = CachedRows(tmp_path, layout)
    filled = whole(opened, layout)
    assert len(filled) > layout.rows // 2, "rows are missing only where the other process had the lock both times"
    everything = torch.arange(layout.rows)
    opened.write(everything, {"logits": everything.float().unsqueeze(1).expand(-1, 8).contiguous()})
    assert len(whole(opened, layout)) == layout.rows
    opened.close()
