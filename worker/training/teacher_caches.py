"""Caches the outputs of a job's teachers for later epochs and jobs."""

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
    """The cached teachers of a job, by name; a context that syncs and closes the caches at its end.

    A teacher whose activations a loss uses runs on every batch, so it has no cache; nor has one that learns, whose
    outputs change.
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

    def wrap(
        self,
        teachers: Mapping[str, TeacherHandle],
        folders: Mapping[str, Path],
        task: TaskData,
        augment: Augment | None,
    ) -> dict[str, TeacherHandle]:
        """The teachers, with a cache where possible; `augment` is the augmentation of the training samples of
        `task`."""
        spec = self._job.teacher_cache
        place = self._place_for(augment)
        if isinstance(spec, NoCache) or (place is None and spec.exact) or (self._predicts_tokens and not _sparse(spec)):
            return dict(teachers)
        wrapped = dict(teachers)
        for name, handle in teachers.items():
            if not self._runs_anyway(name):
                cache_key, numbers = self._cache_key(name, handle.model, folders[name], task, augment)
                self._cached[name] = cached = CachedTeacher(
                    handle.source,
                    spec,
                    cache_key,
                    place,
                    self._warn,
                    None if self._predicts_tokens else head_of(handle.model),
                    numbers,
                    self._length(task, handle),
                    hidden=self._predicts_tokens,
                )
                wrapped[name] = handle._replace(source=cached)
        return wrapped

    def sync(self) -> None:
        """Sync the cached outputs to the disk; before a checkpoint, so that a resumed job finds the same rows."""
        for cached in self._cached.values():
            cached.sync()

    def metrics(self) -> dict[str, float]:
        """Outputs read and computed so far in this attempt, over all teachers; empty if there are no caches."""
        if not self._cached:
            return {}
        hits = sum(cached.hits for cached in self._cached.values())
        misses = sum(cached.misses for cached in self._cached.values())
        return {"train/cache_hits": float(hits), "train/cache_misses": float(misses)}

    def sum_counts(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Add the hits and misses of the job's other processes; `sum_over_ranks` sums a tensor (2,) int64 over them."""
        for cached in self._cached.values():
            cached.hits, cached.misses = sum_over_ranks(torch.tensor([cached.hits, cached.misses])).tolist()

    def figures(self) -> dict[str, Any]:
        """Figures for the report, by teacher."""
        return {name: cached.figures() for name, cached in self._cached.items()}

    def _runs_anyway(self, name: str) -> bool:
        if name == self._job.trained_teacher:
            reason = "it learns together with the student"
        elif teacher_taps(self._job, name):
            reason = "losses use its activations"
        else:
            return False
        message = f"the outputs of {name!r} are not cached: {reason}, so it runs on every batch"
        self._send(Log(message=message))
        return True

    def _place_for(self, augment: Augment | None) -> CachePlace | None:
        """Place of the cache; none if no augmented sample ever recurs."""
        if self._place is None or augment is None:
            return self._place
        if isinstance(augment, Augmenter) and self._job.data.augment_epochs is not None:
            return self._place
        message = "the teachers' outputs are not cached: without data.augment_epochs no augmented sample recurs"
        self._send(Log(message=message))
        return None

    def _cache_key(
        self, name: str, model: Model, folder: Path, task: TaskData, augment: Augment | None
    ) -> tuple[CacheKey, Tensor | None]:
        """Identity of the cached rows, and the row numbers (n,) int64 of the training samples; none: all of them."""
        arithmetic = f"{self._job.arithmetic_of(name)} on {task.train.device.type}"
        samples, numbers = _origin(task, model.input_key) if augment is None else (task.train, None)
        cache_key = CacheKey(
            teacher=digest_folder(folder) + _order(task.places.get(name, ())),
            data=digest_samples(samples),
            samples=len(samples),
            outputs=model.config.outputs,
            arithmetic=arithmetic,
        )
        if isinstance(augment, Augmenter):
            epochs = self._job.data.augment_epochs or 1
            cache_key = replace(cache_key, augmentation=augment.digest(), epochs=epochs)
        return cache_key, numbers

    def _length(self, task: TaskData, handle: TeacherHandle) -> int | None:
        """Tokens of a sequence; none: there is one output per sample."""
        by_token = self._predicts_tokens or self._per_token
        return task.train.inputs[handle.model.input_key].shape[1] if by_token else None

    def label(
        self, batches: Batches, teachers: Mapping[str, TeacherHandle], stop: Callable[[], bool], ranks: SingleProcess
    ) -> None:
        """Compute and cache the outputs of language models for all training samples, and move the models to the CPU.

        `stop` interrupts it. Nothing is computed if there is no place for a cache. Each of the `ranks` computes its
        share, and reads the others' outputs from the cache.
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
        ranks.sum(torch.zeros(()))  # wait for the others' last outputs, which would be computed again
        for name in self._cached if self._predicts_tokens else ():
            teachers[name].model.cpu()

    def _warn(self, message: str) -> None:
        self._send(Log(level="warning", message=message))


def _order(places: Sequence[int]) -> str:
    """Suffix of a teacher's digest for the order of its classes; empty if that is its own order."""
    unchanged = list(places) == list(range(len(places)))
    return "" if unchanged else ":" + sha256(json.dumps(list(places)).encode()).hexdigest()


def _sparse(spec: Kept | NoCache) -> bool:
    """Whether only the largest logits are stored: all logits of every token would fill any disk."""
    return isinstance(spec, TopKCache)


def _origin(task: TaskData, input_key: str) -> tuple[Batch, Tensor | None]:
    """All samples of the file that the training samples were taken from, and the numbers (n,) int64 of the latter in
    it, so that jobs which hold out different samples share the outputs for the rest.

    Not for augmented samples, whose augmentation depends on their number within the split and on the other samples in
    it; nor for packed texts, whose sequences change with the held-out texts.
    """
    train, held = task.train.inputs[input_key], task.eval.inputs[input_key]
    if task.numbers is None:
        return replace(task.train, inputs={input_key: train}), None
    whole = train.new_empty(len(train) + len(held), *train.shape[1:], device="cpu")
    for numbers, samples in zip(task.numbers, (train, held), strict=True):
        whole[numbers] = samples.cpu()
    return whole_split({input_key: whole}, torch.empty(len(whole))), task.numbers[0]
