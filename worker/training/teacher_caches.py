"""What a job's teachers say, kept for later epochs and jobs as the job wants it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.teachers.cache import Kept, NoCache, TopKCache
from worker.data.augment import Augmenter
from worker.data.batches import Augment, Batch, Batches, whole_split
from worker.data.task_data import TaskData
from worker.distributed.ranks import SingleProcess
from worker.protocol import CachePlace, Log, Send
from worker.students.model import Model
from worker.tasks.base import Task
from worker.teachers import head_of
from worker.teachers.cache import CachedTeacher, CacheKey
from worker.teachers.digests import digest_folder, digest_samples
from worker.training.stages import TeacherHandle, teacher_taps


class TeacherCaches:
    """The teachers of a job that remember, by name; used as a context, so that all is on the disk after the job.

    A teacher whose activations a loss looks at runs on every batch, so nothing of it is kept; nor of one that the
    training method runs on other inputs than the data's.
    """

    def __init__(self, task: Task, job: JobSpec, place: CachePlace | None, send: Send) -> None:
        self._job, self._place, self._send = job, place, send
        self._predicts_tokens, self._per_token = task.predicts_tokens, task.per_token
        self._cached: dict[str, CachedTeacher] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for cached in self._cached.values():
            cached.close()

    def give(
        self,
        teachers: Mapping[str, TeacherHandle],
        folders: Mapping[str, Path],
        task: TaskData,
        augment: Augment | None,
    ) -> dict[str, TeacherHandle]:
        """The teachers, those that can remember doing so; `augment` is what changes the training samples of `task`."""
        kept = self._job.teacher_cache
        place = self._place_for(augment)
        if isinstance(kept, NoCache) or (place is None and kept.exact) or (self._predicts_tokens and not _sparse(kept)):
            return dict(teachers)
        given = dict(teachers)
        for name, taught in teachers.items():
            if not self._runs_anyway(name):
                subject, numbers = self._subject(name, taught.model, folders[name], task, augment)
                self._cached[name] = cached = CachedTeacher(
                    taught.source,
                    kept,
                    subject,
                    place,
                    self._warn,
                    None if self._predicts_tokens else head_of(taught.model),
                    numbers,
                    self._length(task, taught),
                    hidden=self._predicts_tokens,
                )
                given[name] = taught._replace(source=cached)
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

    def add_up(self, everywhere: Callable[[Tensor], Tensor]) -> None:
        """Count what other processes of the job have read and asked too; `everywhere` sums over them."""
        for cached in self._cached.values():
            cached.hits, cached.misses = everywhere(torch.tensor([cached.hits, cached.misses])).tolist()

    def figures(self) -> dict[str, Any]:
        """For the report, by teacher."""
        return {name: cached.figures() for name, cached in self._cached.items()}

    def _runs_anyway(self, name: str) -> bool:
        if teacher_taps(self._job, name):
            reason = "losses look at its activations, so it runs on every batch"
        elif name in self._job.recipe.method.uncached_teachers():
            reason = f"{self._job.recipe.method.kind} runs it on other inputs in every step"
        else:
            return False
        self._send(Log(message=f"the answers of {name!r} are not kept: {reason}"))
        return True

    def _place_for(self, augment: Augment | None) -> CachePlace | None:
        """Where answers may be kept: nowhere when no sample ever looks the same again."""
        if self._place is None or augment is None:
            return self._place
        if isinstance(augment, Augmenter) and self._job.data.augment_epochs is not None:
            return self._place
        message = "the teachers' answers are not kept: without data.augment_epochs no sample looks the same twice"
        self._send(Log(message=message))
        return None

    def _subject(
        self, name: str, model: Model, folder: Path, task: TaskData, augment: Augment | None
    ) -> tuple[CacheKey, Tensor | None]:
        """What the rows are about, and which of them are those of the training samples."""
        arithmetic = f"{self._job.arithmetic_of(name)} on {task.train.device.type}"
        samples, numbers = _origin(task, model.input_key) if augment is None else (task.train, None)
        subject = CacheKey(
            teacher=digest_folder(folder) + _order(task.places.get(name, ())),
            data=digest_samples(samples),
            samples=len(samples),
            outputs=model.config.outputs,
            arithmetic=arithmetic,
        )
        if isinstance(augment, Augmenter):
            epochs = self._job.data.augment_epochs or 1
            subject = replace(subject, augmentation=augment.digest(), epochs=epochs)
        return subject, numbers

    def _length(self, task: TaskData, taught: TeacherHandle) -> int | None:
        """Tokens of a sequence; none: answers are about whole samples."""
        by_token = self._predicts_tokens or self._per_token
        return task.train.inputs[taught.model.input_key].shape[1] if by_token else None

    def label(
        self, batches: Batches, teachers: Mapping[str, TeacherHandle], stop: Callable[[], bool], ranks: SingleProcess
    ) -> None:
        """Have language models of which the largest logits are kept say all that training will ask them, and leave the
        device; `stop` asks to leave it at that. Without a place to keep it in, nothing is said before it is asked.

        Each of the `ranks` asks about its share, and finds what the others were told.
        """
        samples, size = batches.samples, self._job.recipe.batch_size // self._job.recipe.accumulate
        for cached in self._cached.values() if self._predicts_tokens else ():
            if not ranks.agree(cached.figures()["keeps"]):
                return
            for begin in range(0, len(samples), size):
                if ranks.agree(stop()):
                    return
                rows = ranks.share(torch.arange(begin, min(begin + size, len(samples)), device=samples.storage_device))
                cached(samples.take(rows))
            cached.sync()
        ranks.sum(torch.zeros(()))  # or the last of what others were told would be asked again
        for name in self._cached if self._predicts_tokens else ():
            teachers[name].model.cpu()

    def _warn(self, message: str) -> None:
        self._send(Log(level="warning", message=message))


def _order(places: Sequence[int]) -> str:
    """Names the order in which a teacher gives its classes, where that is not its own."""
    own = list(places) == list(range(len(places)))
    return "" if own else ":" + sha256(json.dumps(list(places)).encode()).hexdigest()


def _sparse(kept: Kept | NoCache) -> bool:
    """Whole logits of every token would fill any disk."""
    return isinstance(kept, TopKCache)


def _origin(task: TaskData, input_key: str) -> tuple[Batch, Tensor | None]:
    """All samples of the file that the training samples were taken from, and their numbers in it, so that jobs which
    hold out different samples share what is said about the rest.

    Not for augmented samples, whose changes depend on their number within the split and on the other samples in it; nor
    for packed texts, which lie in other sequences once others are held out.
    """
    train, held = task.train.inputs[input_key], task.eval.inputs[input_key]
    if task.numbers is None:
        return replace(task.train, inputs={input_key: train}), None
    whole = train.new_empty(len(train) + len(held), *train.shape[1:], device="cpu")
    for numbers, samples in zip(task.numbers, (train, held), strict=True):
        whole[numbers] = samples.cpu()
    return whole_split({input_key: whole}, torch.empty(len(whole))), task.numbers[0]
