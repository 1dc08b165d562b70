"""A teacher that remembers: what it has said about a sample once, no job on this machine asks it again.

Answers are kept by content. A key is the digest of all that decides them (`CacheKey`, what of an answer is kept), so
nothing ever needs to be invalidated: another teacher, other samples or another augmentation have another key. Rows are
numbered by augmentation epoch and sample, K epochs of N samples, and filled as training asks for them.

What the student learns from does not depend on whether an answer was kept: a job that keeps 16 bits or the largest
logits is given just that in its first epoch too, and when there is no room on the disk.

Dense fp32 answers are those of the teacher itself, bit for bit. Yet a teacher may say something else in the last bit
when it is asked about a sample in other company: on a CPU, rows of batches of one or two samples were seen to differ by
1e-6 from those of larger ones, which agreed. So a job that finds some rows of a batch kept by another, and asks for the
rest, may differ in the last bit from one that asks for all of them. A job that is resumed on its machine finds the rows
of the batches that it had done, asks for whole batches after that, and takes the steps of an uninterrupted one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from app.recipe.teachers.cache import Kept
from worker.data.batches import Batch
from worker.outputs import TeacherSignal
from worker.protocol import CachePlace
from worker.teachers.encoding import Columns, build_encoding
from worker.teachers.kept_rows import RowLayout
from worker.teachers.shelf import DiskCache, NoRoom, OpenEntry
from worker.teachers.signal import TeacherSource

FORMAT = 1
"""Raise it with any change of how rows are laid out, or of how this code makes a teacher's answer from its files."""
SYNC_SECONDS = 60.0
"""Longest time after which new rows are brought to the disk, as long as there are new ones."""

Warn = Callable[[str], None]


@dataclass(frozen=True)
class CacheKey:
    """All that decides what is kept in a row; two jobs share rows when all of it is equal."""

    teacher: str
    """Digest of its files."""
    data: str
    """Digest of the samples that it reads."""
    samples: int
    outputs: int
    """Numbers of one answer."""
    arithmetic: str
    """Precision and kind of device of the teacher's forward pass."""
    augmentation: str = "none"
    """Digest of the augmentation with its seed. The sample that a row is about must be a pure function of this, of the
    augmentation epoch and of the sample's number."""
    epochs: int = 1
    """Augmentation epochs before the first one comes again."""

    def key(self, kept: Kept, owner: str = "") -> str:
        """Names the rows of this subject that keep as much for this owner."""
        content = {"format": FORMAT, "owner": owner, **asdict(self), **kept.model_dump()}
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class CachedTeacher:
    """The signal of `teacher`, kept in `place` (none: nowhere) and read from there; without activations.

    It goes on without keeping anything when there is no room for all rows, when the disk is full, or when it fails,
    and says so once to `warn`. `numbers` (on the CPU) are those of the split's samples among the subject's; none: the
    split is all of them; `tokens` is the length of sequences whose every token is answered for, by `hidden` states of a
    language model or by logits of classes. Raises UserError when the teacher's answers do not fit what is to be kept of
    them.
    """

    def __init__(
        self,
        teacher: TeacherSource,
        kept: Kept,
        subject: CacheKey,
        place: CachePlace | None,
        warn: Warn,
        head: Tensor | None = None,
        numbers: Tensor | None = None,
        tokens: int | None = None,
        *,
        hidden: bool = True,
    ) -> None:
        self._teacher, self._subject, self._warn, self._head = teacher, subject, warn, head
        self._numbers = numbers
        self._encoding = build_encoding(kept, subject.outputs, tokens, hidden=hidden)
        self.key = subject.key(kept, place.owner if place else "")
        about = {"format": FORMAT, "subject": asdict(subject), "kept": kept.model_dump()}
        self._layout = RowLayout(subject.epochs * subject.samples, self._encoding.columns, about)
        self.hits = self.misses = self.found = 0
        self._held = self._open(place) if place else None
        self._synced_at = time.monotonic()

    def __call__(self, batch: Batch) -> TeacherSignal:
        """What the teacher says about a batch; it is run only on the rows that nobody has asked for yet.

        Waits for the device when `batch.index` lies on one, or when something is to be kept.
        """
        return TeacherSignal(self._encoding.decode(self._look_up(batch)), self._head)

    @property
    def answered(self) -> int:
        """Samples that the teacher itself was run on so far."""
        return self.misses

    def sync(self) -> None:
        """Bring all that is new to the disk, so that it outlives the machine's death as a checkpoint does."""
        if self._held is not None:
            self._synced_at = time.monotonic()
            self._guard(self._held.rows.sync)

    def close(self) -> None:
        """Sync, and let others throw the rows away when they need the room."""
        self.sync()
        self._let_go()

    def figures(self) -> dict[str, Any]:
        """For the report: what was read and asked since the cache was opened, in this attempt."""
        keeps = self._held is not None
        row, tokens = sum(column.row_bytes for column in self._encoding.columns.values()), self._encoding.tokens
        by_token = {} if tokens is None else {"bytes_per_token": row / tokens}
        return by_token | {
            "key": self.key,
            "hits": self.hits,
            "misses": self.misses,
            "rows_found": self.found,
            "shared": self.found > 0,
            "bytes": self._layout.bytes if keeps else 0,
            "keeps": keeps,
        }

    def _look_up(self, batch: Batch) -> Columns:
        if self._held is None:
            return self._ask(batch)
        device = batch.targets.device
        rows = self._rows(batch)
        missing = (~self._held.rows.filled(rows)).nonzero().squeeze(1)
        self.hits += len(rows) - len(missing)
        if len(missing) == len(rows):
            return self._fill(batch, rows)
        found = {name: _to(column, device) for name, column in self._held.rows.read(rows).items()}
        if not len(missing):
            return found
        fresh = self._fill(batch.take(missing), rows[missing])
        there = missing.to(device)
        return {name: column.index_copy(0, there, fresh[name]) for name, column in found.items()}

    def _rows(self, batch: Batch) -> Tensor:
        numbers = batch.index.cpu()
        if self._numbers is not None:
            numbers = self._numbers[numbers]
        return numbers + batch.epoch % self._subject.epochs * self._subject.samples

    def _fill(self, batch: Batch, rows: Tensor) -> Columns:
        fresh = self._ask(batch)
        on_cpu = {name: column.cpu() for name, column in fresh.items()}
        assert self._held is not None
        kept = self._held.rows
        self._guard(lambda: kept.write(rows, on_cpu))
        if time.monotonic() - self._synced_at > SYNC_SECONDS:
            self.sync()
        return fresh

    def _ask(self, batch: Batch) -> Columns:
        self.misses += len(batch)
        return self._encoding.encode(self._teacher(batch).outputs)

    def _open(self, place: CachePlace) -> OpenEntry | None:
        try:
            held = DiskCache(Path(place.folder), place.max_bytes).open(self.key, self._layout)
        except (NoRoom, OSError) as error:
            self._warn(f"the teacher's answers are not kept: {_told(error)}")
            return None
        self.found = held.rows.count()
        return held

    def _guard(self, act: Callable[[], None]) -> None:
        """A disk that fails must not fail the job: the teacher can always be asked."""
        try:
            act()
        except OSError as error:
            self._warn(f"the teacher's answers are not kept any more: {_told(error)}")
            self._let_go()

    def _let_go(self) -> None:
        if self._held is not None:
            with suppress(OSError):
                self._held.close()
            self._held = None


def _told(error: Exception) -> str:
    """Without the path, which is none of the job's business."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _to(column: Tensor, device: torch.device) -> Tensor:
    return column.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else column
