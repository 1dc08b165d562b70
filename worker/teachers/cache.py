"""A teacher with a cache: its outputs for a sample are computed once on a machine and shared by all jobs.

Outputs are cached by content. A key is the digest of all that decides them (`CacheKey`, and the encoding), so no entry
is ever invalidated: another teacher, other samples or another augmentation have another key. Rows are numbered by
augmentation epoch and sample, K epochs of N samples, and are filled as training needs them.

Training is the same with and without a cache hit: a job that caches 16 bits or the largest logits uses the encoded
outputs in its first epoch too, and also when the disk is full.

Dense fp32 outputs are the teacher's own, bit for bit. Yet a teacher's outputs may differ in the last bit when a sample
is in another batch: on a CPU, rows of batches of one or two samples were measured to differ by 1e-6 from those of
larger ones, which agreed. So a job that finds some rows of a batch cached by another job, and computes the rest, may
differ in the last bit from one that computes all of them. A job that is resumed on its machine finds the rows of the
batches that it had done, computes whole batches after that, and takes the steps of an uninterrupted one.
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
from worker.teachers.cached_rows import RowLayout
from worker.teachers.disk_cache import CacheFull, DiskCache, OpenEntry
from worker.teachers.encoding import Columns, build_encoding
from worker.teachers.signal import TeacherSource

FORMAT = 1
"""To be raised with any change of the layout of rows, or of how this code computes a teacher's outputs from its
files."""
SYNC_SECONDS = 60.0
"""Longest time until new rows are synced to the disk."""

Warn = Callable[[str], None]


@dataclass(frozen=True)
class CacheKey:
    """Identity of the cached rows: two jobs share rows if all fields are equal."""

    teacher: str
    """Digest of the teacher's files."""
    data: str
    """Digest of the samples that the teacher reads."""
    samples: int
    outputs: int
    """Size C of one output."""
    arithmetic: str
    """Precision and kind of device of the teacher's forward pass."""
    augmentation: str = "none"
    """Digest of the augmentation with its seed. The augmented sample of a row must be a pure function of this, of the
    augmentation epoch and of the sample's number."""
    epochs: int = 1
    """Augmentation epochs before the first one is repeated."""

    def key(self, spec: Kept, owner: str = "") -> str:
        """Digest that names the rows stored by `spec` for this owner."""
        content = {"format": FORMAT, "owner": owner, **asdict(self), **spec.model_dump()}
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class CachedTeacher:
    """Outputs of `teacher`, stored in the cache at `place` and read from there; without activations.

    `place` is none if nothing is stored. Caching ends, with one warning to `warn`, if there is no space for all rows,
    if the disk is full, or if it fails. `numbers`, (n,) int64 on the CPU, are the numbers of the split's samples among
    those of `cache_key`; none: the split is all of them. `tokens` is the length of sequences with an output at every
    token: `hidden` states of a language model, or logits of classes. `head` is the weight (C, D) of the teacher's last
    layer, in its own dtype. Raises UserError if the teacher's outputs do not fit the encoding.
    """

    def __init__(
        self,
        teacher: TeacherSource,
        spec: Kept,
        cache_key: CacheKey,
        place: CachePlace | None,
        warn: Warn,
        head: Tensor | None = None,
        numbers: Tensor | None = None,
        tokens: int | None = None,
        *,
        hidden: bool = True,
    ) -> None:
        self._teacher, self._cache_key, self._warn, self._head = teacher, cache_key, warn, head
        self._numbers = numbers
        self._encoding = build_encoding(spec, cache_key.outputs, tokens, hidden=hidden)
        self.key = cache_key.key(spec, place.owner if place else "")
        about = {"format": FORMAT, "subject": asdict(cache_key), "kept": spec.model_dump()}
        self._layout = RowLayout(cache_key.epochs * cache_key.samples, self._encoding.columns, about)
        self.hits = self.misses = self.found = 0
        self._entry = self._open(place) if place else None
        self._synced_at = time.monotonic()

    def __call__(self, batch: Batch) -> TeacherSignal:
        """Outputs for a batch, decoded to float32; the teacher runs only on rows that are not in the cache.

        Waits for the device if `batch.index` is on one, or if rows are to be stored.
        """
        return TeacherSignal(self._encoding.decode(self._look_up(batch)), self._head)

    @property
    def computed_samples(self) -> int:
        """Samples that the teacher itself was run on so far."""
        return self.misses

    def sync(self) -> None:
        """Sync new rows to the disk, so that they survive a crash of the machine as a checkpoint does."""
        if self._entry is not None:
            self._synced_at = time.monotonic()
            self._guard(self._entry.rows.sync)

    def close(self) -> None:
        """Sync, and release the entry, which may then be evicted."""
        self.sync()
        self._release()

    def figures(self) -> dict[str, Any]:
        """Figures for the report: rows read and computed since the cache was opened, in this attempt."""
        stores = self._entry is not None
        row, tokens = sum(column.row_bytes for column in self._encoding.columns.values()), self._encoding.tokens
        by_token = {} if tokens is None else {"bytes_per_token": row / tokens}
        return by_token | {
            "key": self.key,
            "hits": self.hits,
            "misses": self.misses,
            "rows_found": self.found,
            "shared": self.found > 0,
            "bytes": self._layout.bytes if stores else 0,
            "keeps": stores,
        }

    def _look_up(self, batch: Batch) -> Columns:
        if self._entry is None:
            return self._compute(batch)
        device = batch.targets.device
        rows = self._rows(batch)
        missing = (~self._entry.rows.filled(rows)).nonzero().squeeze(1)
        self.hits += len(rows) - len(missing)
        if len(missing) == len(rows):
            return self._fill(batch, rows)
        found = {name: _to(column, device) for name, column in self._entry.rows.read(rows).items()}
        if not len(missing):
            return found
        fresh = self._fill(batch.take(missing), rows[missing])
        positions = missing.to(device)
        return {name: column.index_copy(0, positions, fresh[name]) for name, column in found.items()}

    def _rows(self, batch: Batch) -> Tensor:
        numbers = batch.index.cpu()
        if self._numbers is not None:
            numbers = self._numbers[numbers]
        return numbers + batch.epoch % self._cache_key.epochs * self._cache_key.samples

    def _fill(self, batch: Batch, rows: Tensor) -> Columns:
        fresh = self._compute(batch)
        on_cpu = {name: column.cpu() for name, column in fresh.items()}
        assert self._entry is not None
        cached = self._entry.rows
        self._guard(lambda: cached.write(rows, on_cpu))
        if time.monotonic() - self._synced_at > SYNC_SECONDS:
            self.sync()
        return fresh

    def _compute(self, batch: Batch) -> Columns:
        self.misses += len(batch)
        return self._encoding.encode(self._teacher(batch).outputs)

    def _open(self, place: CachePlace) -> OpenEntry | None:
        try:
            entry = DiskCache(Path(place.folder), place.max_bytes).open(self.key, self._layout)
        except (CacheFull, OSError) as error:
            self._warn(f"the teacher's outputs are not cached: {_reason(error)}")
            return None
        self.found = entry.rows.count()
        return entry

    def _guard(self, act: Callable[[], None]) -> None:
        """Call `act`. A disk that fails must not fail the job: the teacher's outputs can be computed again."""
        try:
            act()
        except OSError as error:
            self._warn(f"the teacher's outputs are no longer cached: {_reason(error)}")
            self._release()

    def _release(self) -> None:
        if self._entry is not None:
            with suppress(OSError):
                self._entry.close()
            self._entry = None


def _reason(error: Exception) -> str:
    """Text of an error without the path, which the job's owner must not see."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _to(column: Tensor, device: torch.device) -> Tensor:
    return column.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else column
