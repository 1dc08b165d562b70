"""What a job's teachers say, kept for later epochs and jobs as the job wants it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.teacher_cache import Kept, NoCache
from worker.data.batches import Batch
from worker.protocol import CachePlace, Log, Report
from worker.teachers import head_of
from worker.teachers.cache import CachedTeacher, Subject
from worker.teachers.digests import digest_folder, digest_samples
from worker.trainer.courses import TaughtBy, teacher_taps

Send = Callable[[Report], None]


class Augmented(NamedTuple):
    """How the samples of a split are changed; the same digest and epoch give the same samples."""

    digest: str = "none"
    epochs: int = 1
    """After that many, the first one comes again."""


class Origin(NamedTuple):
    """The set that a split is a part of: jobs that split it differently share what their teachers say about it."""

    samples: Batch
    numbers: Tensor
    """Which of them the split has, in its order: (N,) int64 on the CPU."""


class Memories:
    """The teachers of a job that remember, by name; used as a context, so that all is on the disk after the job.

    A teacher whose activations a loss looks at runs on every batch, so nothing of it is kept.
    """

    def __init__(self, job: JobSpec, place: CachePlace | None, send: Send) -> None:
        self._job, self._place, self._send = job, place, send
        self._cached: dict[str, CachedTeacher] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for cached in self._cached.values():
            cached.close()

    def give(
        self,
        teachers: Mapping[str, TaughtBy],
        folders: Mapping[str, Path],
        samples: Batch,
        augmented: Augmented = Augmented(),
        origin: Origin | None = None,
    ) -> dict[str, TaughtBy]:
        """The teachers, those that can remember doing so; `samples` is the training split, before augmentation.

        An augmentation depends on a sample's number within its split, so the `origin` counts only without one.
        """
        kept = self._job.teacher_cache
        if isinstance(kept, NoCache) or (self._place is None and kept.exact):
            return dict(teachers)
        if origin is None or augmented != Augmented():
            origin = Origin(samples, torch.arange(len(samples)))
        given = dict(teachers)
        for name, taught in teachers.items():
            if not self._runs_anyway(name):
                subject = self._subject(taught, folders[name], origin.samples, augmented)
                given[name] = taught._replace(source=self._remember(name, taught, kept, subject, origin.numbers))
        return given

    def sync(self) -> None:
        """Bring what was said to the disk; before a checkpoint, so that a resumed job finds what it found before."""
        for cached in self._cached.values():
            cached.sync()

    def metrics(self) -> dict[str, float]:
        """Answers read and asked so far in this attempt, over all teachers; empty when nothing is kept."""
        if not self._cached:
            return {}
        hits = sum(cached.hits for cached in self._cached.values())
        misses = sum(cached.misses for cached in self._cached.values())
        return {"train/cache_hits": float(hits), "train/cache_misses": float(misses)}

    def figures(self) -> dict[str, Any]:
        """For the report, by teacher."""
        return {name: cached.figures() for name, cached in self._cached.items()}

    def _runs_anyway(self, name: str) -> bool:
        if not teacher_taps(self._job, name):
            return False
        message = f"the answers of {name!r} are not kept: losses look at its activations, so it runs on every batch"
        self._send(Log(message=message))
        return True

    def _subject(self, taught: TaughtBy, folder: Path, samples: Batch, augmented: Augmented) -> Subject:
        model = taught.model
        return Subject(
            teacher=digest_folder(folder),
            data=digest_samples({model.view: samples.inputs[model.view]}),
            samples=len(samples),
            outputs=model.config.outputs,
            arithmetic=f"{self._job.recipe.precision} on {samples.targets.device.type}",
            augmentation=augmented.digest,
            epochs=augmented.epochs,
        )

    def _remember(self, name: str, taught: TaughtBy, kept: Kept, subject: Subject, numbers: Tensor) -> CachedTeacher:
        cached = CachedTeacher(taught.source, kept, subject, self._place, self._warn, head_of(taught.model), numbers)
        self._cached[name] = cached
        return cached

    def _warn(self, message: str) -> None:
        self._send(Log(level="warning", message=message))
