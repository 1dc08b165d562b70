"""A teacher with a cache: which outputs are computed or read, and failures of the disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.recipe.teachers.cache import DenseCache, Kept, TopKCache
from tests.servers.output import all_of, first_line
from worker.data.batches import Batch, Batches, whole_split
from worker.errors import UserError
from worker.outputs import TeacherSignal
from worker.protocol import CachePlace
from worker.teachers.cache import CachedTeacher, CacheKey

SAMPLES, CLASSES, COLUMNS = 40, 5, 6
SUBJECT = CacheKey(teacher="t", data="d", samples=SAMPLES, outputs=CLASSES, arithmetic="fp32 on cpu")
ALL_ROWS = torch.arange(SAMPLES)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(COLUMNS, 32), nn.ReLU(), nn.Linear(32, CLASSES)).requires_grad_(False)


class CountingTeacher:
    """Returns its network's outputs for a batch, and records the numbers of its samples."""

    def __init__(self) -> None:
        self.network, self.computed = network(), []

    def __call__(self, batch: Batch) -> TeacherSignal:
        self.computed.append(batch.index.tolist())
        return TeacherSignal(self.network(batch.inputs["samples"]))

    @property
    def rows(self) -> int:
        return sum(map(len, self.computed))


def split(epoch: int = 0) -> Batch:
    """All samples, as they are in one augmentation epoch."""
    inputs = torch.randn(SAMPLES, COLUMNS, generator=torch.Generator().manual_seed(9)) + epoch
    return replace(whole_split({"samples": inputs}, torch.zeros(SAMPLES, dtype=torch.int64)), epoch=epoch)


class CachedJob:
    """One job's cached teacher, and the warnings that it has sent."""

    def __init__(
        self, folder: Path | None, kept: Kept = DenseCache(), subject: CacheKey = SUBJECT, **place: Any
    ) -> None:
        self.teacher, self.warnings = CountingTeacher(), []
        where = CachePlace(folder=str(folder), **place) if folder else None
        self.cached = CachedTeacher(self.teacher, kept, subject, where, self.warnings.append)

    def outputs(self, rows: Tensor, epoch: int = 0) -> Tensor:
        return self.cached(split(epoch).take(rows)).logits

    def exact(self, rows: Tensor, epoch: int = 0) -> Tensor:
        return self.teacher.network(split(epoch).take(rows).inputs["samples"])


def test_a_warm_cache_returns_the_bits_of_a_cold_one_and_of_the_teacher(tmp_path: Path) -> None:
    first = CachedJob(tmp_path)
    rows = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3))
    cold = [first.outputs(part) for part in rows.split(16)]
    bare = [first.exact(part) for part in rows.split(16)]
    first.cached.close()
    second = CachedJob(tmp_path)
    warm = [second.outputs(part) for part in rows.split(16)]
    assert all(map(torch.equal, cold, bare))
    assert all(map(torch.equal, cold, warm))
    assert warm[0].dtype == torch.float32
    second.cached.close()


def test_the_second_job_never_runs_the_teacher(tmp_path: Path) -> None:
    first = CachedJob(tmp_path)
    first.outputs(ALL_ROWS)
    first.cached.close()
    second = CachedJob(tmp_path)
    for part in ALL_ROWS.flip(0).split(7):
        torch.testing.assert_close(second.outputs(part), second.exact(part))
    assert second.teacher.computed == []
    assert second.cached.figures() == {
        "key": first.cached.key,
        "hits": SAMPLES,
        "misses": 0,
        "rows_found": SAMPLES,
        "shared": True,
        "bytes": SAMPLES * (4 * CLASSES + 1),
        "keeps": True,
    }
    second.cached.close()


def test_only_missing_rows_are_computed(tmp_path: Path) -> None:
    one = CachedJob(tmp_path)
    one.outputs(torch.tensor([3, 9, 20]))
    mixed = torch.tensor([9, 30, 3, 11])
    torch.testing.assert_close(one.outputs(mixed), one.exact(mixed))
    assert one.teacher.computed == [[3, 9, 20], [30, 11]]
    assert (one.cached.hits, one.cached.misses) == (2, 5)
    one.cached.close()


def test_rows_of_every_augmentation_epoch_are_cached_and_read_again(tmp_path: Path) -> None:
    one = CachedJob(tmp_path, subject=replace(SUBJECT, epochs=3))
    drawn = [one.outputs(ALL_ROWS, epoch) for epoch in range(3)]
    assert one.teacher.rows == 3 * SAMPLES
    again = [one.cached(replace(split(epoch), epoch=3 + epoch)).logits for epoch in range(3)]
    assert one.teacher.rows == 3 * SAMPLES
    assert all(map(torch.equal, drawn, again))
    assert not torch.equal(drawn[0], drawn[1])
    one.cached.close()


def test_batches_of_training_hit_in_the_second_epoch(tmp_path: Path) -> None:
    one = CachedJob(tmp_path)
    batches = Batches(split(), batch_size=16, seed=4)
    for step in range(2 * batches.steps_per_epoch):
        batch = batches.at(step)
        torch.testing.assert_close(one.cached(batch).logits, one.exact(batch.index))
    assert (one.cached.hits, one.cached.misses) == (SAMPLES, SAMPLES)
    one.cached.close()


def test_different_splits_of_one_set_share_outputs(tmp_path: Path) -> None:
    place = CachePlace(folder=str(tmp_path))
    computed = []
    for numbers in (ALL_ROWS[:30], ALL_ROWS[10:].flip(0)):
        teacher, taken = CountingTeacher(), split().take(numbers)
        part = whole_split(taken.inputs, taken.targets)
        cached = CachedTeacher(teacher, DenseCache(), SUBJECT, place, print, numbers=numbers)
        torch.testing.assert_close(cached(part).logits, teacher.network(part.inputs["samples"]))
        computed.append(teacher.rows)
        cached.close()
    assert computed == [30, 10]


VARIANTS: list[tuple[CacheKey, Kept]] = [
    (SUBJECT, DenseCache()),
    (replace(SUBJECT, teacher="other"), DenseCache()),
    (replace(SUBJECT, data="other"), DenseCache()),
    (replace(SUBJECT, samples=41), DenseCache()),
    (replace(SUBJECT, outputs=6), DenseCache()),
    (replace(SUBJECT, arithmetic="bf16 on cpu"), DenseCache()),
    (replace(SUBJECT, augmentation="other"), DenseCache()),
    (replace(SUBJECT, epochs=2), DenseCache()),
    (SUBJECT, DenseCache(dtype="fp16")),
    (SUBJECT, DenseCache(dtype="bf16")),
    (SUBJECT, TopKCache(k=3)),
    (SUBJECT, TopKCache(k=4)),
    (SUBJECT, TopKCache(k=3, dtype="fp16")),
]


def test_keys_differ_when_anything_that_matters_differs() -> None:
    assert len({subject.key(kept) for subject, kept in VARIANTS}) == len(VARIANTS)


def test_owners_do_not_share() -> None:
    assert SUBJECT.key(DenseCache(), "one") != SUBJECT.key(DenseCache(), "other")


def test_keys_differ_between_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    before = SUBJECT.key(DenseCache())
    monkeypatch.setattr("worker.teachers.cache.FORMAT", 2)
    assert SUBJECT.key(DenseCache()) != before


@pytest.mark.parametrize("kept", [DenseCache(dtype="fp16"), TopKCache(k=2), TopKCache(k=2, dtype="bf16")])
def test_a_lossy_encoding_returns_the_same_whether_computed_read_or_not_cached(tmp_path: Path, kept: Kept) -> None:
    all_jobs = [
        CachedJob(tmp_path, kept),
        CachedJob(tmp_path, kept),
        CachedJob(None, kept),
        CachedJob(tmp_path / "small", kept, max_bytes=10),
    ]
    first, *others = [one.outputs(ALL_ROWS) for one in all_jobs]
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first, all_jobs[0].exact(ALL_ROWS))
    assert [len(one.teacher.computed) for one in all_jobs] == [1, 0, 1, 1]
    for one in all_jobs:
        one.cached.close()


def test_top_k_of_all_classes_equals_dense(tmp_path: Path) -> None:
    dense, sparse = CachedJob(tmp_path), CachedJob(tmp_path, TopKCache(k=CLASSES))
    assert torch.equal(dense.outputs(ALL_ROWS), sparse.outputs(ALL_ROWS))
    assert torch.equal(dense.outputs(ALL_ROWS), sparse.outputs(ALL_ROWS)), "as found"
    dense.cached.close()
    sparse.cached.close()


def test_the_files_can_be_read_without_this_program(tmp_path: Path) -> None:
    one = CachedJob(tmp_path, subject=replace(SUBJECT, epochs=2))
    expected = one.outputs(ALL_ROWS, epoch=1)
    one.cached.close()
    entry = tmp_path / one.cached.key
    record = json.loads((entry / "cache.json").read_text())
    assert record["columns"] == {"logits": {"dtype": "float32", "shape": [2 * SAMPLES, CLASSES]}}
    assert record["subject"]["teacher"] == "t"
    numbers = torch.frombuffer(bytearray((entry / "logits.bin").read_bytes()), dtype=torch.float32)
    assert torch.equal(numbers.view(2, SAMPLES, CLASSES)[1], expected)


def test_a_cache_that_does_not_fit_is_one_warning(tmp_path: Path) -> None:
    one = CachedJob(tmp_path, max_bytes=100)
    for _ in range(2):
        assert torch.equal(one.outputs(ALL_ROWS), one.exact(ALL_ROWS))
    assert one.teacher.rows == 2 * SAMPLES
    assert one.warnings == ["the teacher's outputs are not cached: 840 bytes are needed; the limit is 100"]
    assert one.cached.figures()["bytes"] == 0
    one.cached.close()


def test_a_full_disk_at_the_start_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    one = CachedJob(tmp_path)
    assert torch.equal(one.outputs(ALL_ROWS), one.exact(ALL_ROWS))
    (warning,) = one.warnings
    assert "No space left" in warning
    one.cached.close()


def test_a_disk_that_fails_later_does_not_fail_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = CachedJob(tmp_path)
    one.outputs(torch.tensor([1, 2]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        one.cached.sync()
    rows = torch.tensor([1, 2, 3])
    assert torch.equal(one.outputs(rows), one.exact(rows))
    one.cached.close()
    assert len(one.warnings) == 1
    later = CachedJob(tmp_path)
    later.outputs(rows)
    assert later.teacher.computed == [[1, 2, 3]], "rows that a failed sync may have lost were read"
    later.cached.close()


def test_a_folder_that_can_not_be_created_is_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    one = CachedJob(tmp_path / "file" / "cache")
    assert torch.equal(one.outputs(ALL_ROWS), one.exact(ALL_ROWS))
    assert len(one.warnings) == 1


def test_an_output_that_does_not_fit_the_stored_dtype_is_the_users_fault(tmp_path: Path) -> None:
    one = CachedJob(tmp_path, DenseCache(dtype="fp16"))
    one.teacher.network[2].bias.fill_(1e6)
    with pytest.raises(UserError, match="fp16"):
        one.outputs(ALL_ROWS)
    one.cached.close()


def test_new_rows_reach_the_disk_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    one = CachedJob(tmp_path)
    monkeypatch.setattr(os, "fsync", synced.append)
    one.outputs(torch.tensor([1]))
    assert not synced
    monkeypatch.setattr("worker.teachers.cache.SYNC_SECONDS", -1.0)
    one.outputs(torch.tensor([1]))
    assert not synced, "nothing was new"
    one.outputs(torch.tensor([2]))
    assert synced
    one.cached.close()


def test_the_signal_has_the_head_and_no_gradient(tmp_path: Path) -> None:
    head = torch.ones(CLASSES, 32)
    cached = CachedTeacher(CountingTeacher(), DenseCache(), SUBJECT, CachePlace(folder=str(tmp_path)), print, head)
    for _ in range(2):
        signal = cached(split())
        assert signal.head is head
        assert not signal.logits.requires_grad
        weight = torch.ones((), requires_grad=True)
        (weight * signal.logits).sum().backward()
    cached.close()


JOB = """
import sys
from pathlib import Path
from tests.worker.teachers.test_cache import CachedJob, ALL_ROWS, SAMPLES
import torch

torch.set_num_threads(1)
one = CachedJob(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.readline()
for epoch in range(20):
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(int(sys.argv[2]) + epoch))
    for part in order.split(8):
        torch.testing.assert_close(one.outputs(part), one.exact(part))
one.cached.close()
print(one.cached.hits, one.cached.misses)
"""


def test_jobs_at_the_same_time_share_their_outputs(tmp_path: Path) -> None:
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, str(tmp_path), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        for seed in (0, 100)
    ]
    for job in jobs:
        assert first_line(job.stdout) == "open\n"
    counts = [all_of(job, "go\n")[0].split() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert all(int(hits) + int(misses) == 20 * SAMPLES for hits, misses in counts)
    assert all(int(misses) < 5 * SAMPLES for _, misses in counts)
    later = CachedJob(tmp_path)
    torch.testing.assert_close(later.outputs(ALL_ROWS), later.exact(ALL_ROWS))
    assert later.teacher.computed == []
    later.cached.close()


def full_disk(*_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
