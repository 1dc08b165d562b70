"""A teacher that remembers: who is asked, what is given, and what happens when the disk does not play along."""

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
from worker.data.batches import Batch, Batches, whole_split
from worker.errors import UserError
from worker.outputs import TeacherSignal
from worker.protocol import CachePlace
from worker.teachers.cache import CachedTeacher, CacheKey

SAMPLES, CLASSES, COLUMNS = 40, 5, 6
SUBJECT = CacheKey(teacher="t", data="d", samples=SAMPLES, outputs=CLASSES, arithmetic="fp32 on cpu")
EVERYTHING = torch.arange(SAMPLES)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(COLUMNS, 32), nn.ReLU(), nn.Linear(32, CLASSES)).requires_grad_(False)


class CountingTeacher:
    """Says what its network says of a batch, and writes down of which samples."""

    def __init__(self) -> None:
        self.network, self.asked = network(), []

    def __call__(self, batch: Batch) -> TeacherSignal:
        self.asked.append(batch.index.tolist())
        return TeacherSignal(self.network(batch.inputs["samples"]))

    @property
    def rows(self) -> int:
        return sum(map(len, self.asked))


def split(epoch: int = 0) -> Batch:
    """All samples, as they are in one augmentation epoch."""
    inputs = torch.randn(SAMPLES, COLUMNS, generator=torch.Generator().manual_seed(9)) + epoch
    return replace(whole_split({"samples": inputs}, torch.zeros(SAMPLES, dtype=torch.int64)), epoch=epoch)


class Desk:
    """One job's teacher, and what it was told."""

    def __init__(
        self, folder: Path | None, kept: Kept = DenseCache(), subject: CacheKey = SUBJECT, **place: Any
    ) -> None:
        self.teacher, self.warnings = CountingTeacher(), []
        where = CachePlace(folder=str(folder), **place) if folder else None
        self.cached = CachedTeacher(self.teacher, kept, subject, where, self.warnings.append)

    def say(self, rows: Tensor, epoch: int = 0) -> Tensor:
        return self.cached(split(epoch).take(rows)).logits

    def exact(self, rows: Tensor, epoch: int = 0) -> Tensor:
        return self.teacher.network(split(epoch).take(rows).inputs["samples"])


def test_a_warm_cache_gives_the_bits_that_a_cold_one_and_the_teacher_gave(tmp_path: Path) -> None:
    first = Desk(tmp_path)
    rows = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3))
    cold = [first.say(part) for part in rows.split(16)]
    bare = [first.exact(part) for part in rows.split(16)]
    first.cached.close()
    second = Desk(tmp_path)
    warm = [second.say(part) for part in rows.split(16)]
    assert all(map(torch.equal, cold, bare))
    assert all(map(torch.equal, cold, warm))
    assert warm[0].dtype == torch.float32
    second.cached.close()


def test_the_second_job_never_runs_the_teacher(tmp_path: Path) -> None:
    first = Desk(tmp_path)
    first.say(EVERYTHING)
    first.cached.close()
    second = Desk(tmp_path)
    for part in EVERYTHING.flip(0).split(7):
        torch.testing.assert_close(second.say(part), second.exact(part))
    assert second.teacher.asked == []
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


def test_only_rows_that_are_missing_are_asked_for(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.say(torch.tensor([3, 9, 20]))
    mixed = torch.tensor([9, 30, 3, 11])
    torch.testing.assert_close(desk.say(mixed), desk.exact(mixed))
    assert desk.teacher.asked == [[3, 9, 20], [30, 11]]
    assert (desk.cached.hits, desk.cached.misses) == (2, 5)
    desk.cached.close()


def test_rows_of_every_augmentation_epoch_are_kept_and_come_again(tmp_path: Path) -> None:
    desk = Desk(tmp_path, subject=replace(SUBJECT, epochs=3))
    drawn = [desk.say(EVERYTHING, epoch) for epoch in range(3)]
    assert desk.teacher.rows == 3 * SAMPLES
    again = [desk.cached(replace(split(epoch), epoch=3 + epoch)).logits for epoch in range(3)]
    assert desk.teacher.rows == 3 * SAMPLES
    assert all(map(torch.equal, drawn, again))
    assert not torch.equal(drawn[0], drawn[1])
    desk.cached.close()


def test_batches_of_training_hit_in_the_second_epoch(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    batches = Batches(split(), batch_size=16, seed=4)
    for step in range(2 * batches.steps_per_epoch):
        batch = batches.at(step)
        torch.testing.assert_close(desk.cached(batch).logits, desk.exact(batch.index))
    assert (desk.cached.hits, desk.cached.misses) == (SAMPLES, SAMPLES)
    desk.cached.close()


def test_different_splits_of_one_set_share_what_is_said_about_it(tmp_path: Path) -> None:
    place = CachePlace(folder=str(tmp_path))
    asked = []
    for numbers in (EVERYTHING[:30], EVERYTHING[10:].flip(0)):
        teacher, taken = CountingTeacher(), split().take(numbers)
        part = whole_split(taken.inputs, taken.targets)
        cached = CachedTeacher(teacher, DenseCache(), SUBJECT, place, print, numbers=numbers)
        torch.testing.assert_close(cached(part).logits, teacher.network(part.inputs["samples"]))
        asked.append(teacher.rows)
        cached.close()
    assert asked == [30, 10]


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
def test_a_lossy_choice_gives_the_same_whether_kept_found_or_homeless(tmp_path: Path, kept: Kept) -> None:
    desks = [Desk(tmp_path, kept), Desk(tmp_path, kept), Desk(None, kept), Desk(tmp_path / "small", kept, max_bytes=10)]
    first, *others = [desk.say(EVERYTHING) for desk in desks]
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first, desks[0].exact(EVERYTHING))
    assert [len(desk.teacher.asked) for desk in desks] == [1, 0, 1, 1]
    for desk in desks:
        desk.cached.close()


def test_top_k_of_all_classes_equals_dense(tmp_path: Path) -> None:
    dense, sparse = Desk(tmp_path), Desk(tmp_path, TopKCache(k=CLASSES))
    assert torch.equal(dense.say(EVERYTHING), sparse.say(EVERYTHING))
    assert torch.equal(dense.say(EVERYTHING), sparse.say(EVERYTHING)), "as found"
    dense.cached.close()
    sparse.cached.close()


def test_the_files_can_be_read_without_this_program(tmp_path: Path) -> None:
    desk = Desk(tmp_path, subject=replace(SUBJECT, epochs=2))
    said = desk.say(EVERYTHING, epoch=1)
    desk.cached.close()
    entry = tmp_path / desk.cached.key
    record = json.loads((entry / "cache.json").read_text())
    assert record["columns"] == {"logits": {"dtype": "float32", "shape": [2 * SAMPLES, CLASSES]}}
    assert record["subject"]["teacher"] == "t"
    numbers = torch.frombuffer(bytearray((entry / "logits.bin").read_bytes()), dtype=torch.float32)
    assert torch.equal(numbers.view(2, SAMPLES, CLASSES)[1], said)


def test_a_cache_that_does_not_fit_is_said_once_and_done_without(tmp_path: Path) -> None:
    desk = Desk(tmp_path, max_bytes=100)
    for _ in range(2):
        assert torch.equal(desk.say(EVERYTHING), desk.exact(EVERYTHING))
    assert desk.teacher.rows == 2 * SAMPLES
    assert desk.warnings == ["the teacher's outputs are not cached: 840 bytes are needed; the limit is 100"]
    assert desk.cached.figures()["bytes"] == 0
    desk.cached.close()


def test_a_full_disk_at_the_start_is_said_once_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", full_disk)
    desk = Desk(tmp_path)
    assert torch.equal(desk.say(EVERYTHING), desk.exact(EVERYTHING))
    (warning,) = desk.warnings
    assert "No space left" in warning
    desk.cached.close()


def test_a_disk_that_fails_later_does_not_fail_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(tmp_path)
    desk.say(torch.tensor([1, 2]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        desk.cached.sync()
    rows = torch.tensor([1, 2, 3])
    assert torch.equal(desk.say(rows), desk.exact(rows))
    desk.cached.close()
    assert len(desk.warnings) == 1
    later = Desk(tmp_path)
    later.say(rows)
    assert later.teacher.asked == [[1, 2, 3]], "rows that a failed sync may have lost were read"
    later.cached.close()


def test_a_folder_that_cannot_be_made_is_said_and_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    desk = Desk(tmp_path / "file" / "shelf")
    assert torch.equal(desk.say(EVERYTHING), desk.exact(EVERYTHING))
    assert len(desk.warnings) == 1


def test_an_answer_that_does_not_fit_the_kept_type_is_the_users_fault(tmp_path: Path) -> None:
    desk = Desk(tmp_path, DenseCache(dtype="fp16"))
    desk.teacher.network[2].bias.fill_(1e6)
    with pytest.raises(UserError, match="fp16"):
        desk.say(EVERYTHING)
    desk.cached.close()


def test_new_rows_reach_the_disk_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    desk = Desk(tmp_path)
    monkeypatch.setattr(os, "fsync", synced.append)
    desk.say(torch.tensor([1]))
    assert not synced
    monkeypatch.setattr("worker.teachers.cache.SYNC_SECONDS", -1.0)
    desk.say(torch.tensor([1]))
    assert not synced, "nothing was new"
    desk.say(torch.tensor([2]))
    assert synced
    desk.cached.close()


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
from tests.worker.teachers.test_cache import Desk, EVERYTHING, SAMPLES
import torch

torch.set_num_threads(1)
desk = Desk(Path(sys.argv[1]))
print("open", flush=True)
sys.stdin.readline()
for epoch in range(20):
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(int(sys.argv[2]) + epoch))
    for part in order.split(8):
        torch.testing.assert_close(desk.say(part), desk.exact(part))
desk.cached.close()
print(desk.cached.hits, desk.cached.misses)
"""


def test_jobs_at_the_same_time_share_their_answers(tmp_path: Path) -> None:
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
        assert job.stdout is not None
        assert job.stdout.readline() == "open\n"
    said = [job.communicate("go\n")[0].split() for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0]
    assert all(int(hits) + int(misses) == 20 * SAMPLES for hits, misses in said)
    assert all(int(misses) < 5 * SAMPLES for _, misses in said)
    later = Desk(tmp_path)
    torch.testing.assert_close(later.say(EVERYTHING), later.exact(EVERYTHING))
    assert later.teacher.asked == []
    later.cached.close()


def full_disk(*_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
