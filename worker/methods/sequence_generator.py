"""Texts that a teacher generates before training, one for each prompt of the data, and that are kept as it goes.

They are rows in the disk cache of the teachers' answers, under a key of all that decides them. So a job that is killed
meanwhile goes on behind those that it has, and another job with the same teacher, prompts and seed generates none.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.data.prompts import Prompts
from worker.methods.sampler import CHUNK, Sampler
from worker.protocol import CachePlace, Log, Send, ShouldStop
from worker.students.decoding import Generation
from worker.students.measure import Reading
from worker.students.model import Model
from worker.teachers.cached_rows import RowLayout
from worker.teachers.digests import digest_samples
from worker.teachers.disk_cache import CacheFull, DiskCache, OpenEntry
from worker.teachers.encoding import Columns, StoredColumn

FORMAT = 1
"""Raise it with any change of what is generated for the same key."""
SECONDS_BETWEEN_LOGS = 30.0


class GeneratedDataset(NamedTuple):
    """A text for every prompt, and the floating-point operations that this attempt spent on them."""

    generation: Generation
    flops: int


class SequenceGenerator:
    """Has `model` generate up to `max_new_tokens` tokens behind every prompt; the texts are kept in `place`."""

    def __init__(
        self,
        sampler: Sampler,
        model: Model,
        cost: Reading,
        prompts: Prompts,
        max_new_tokens: int,
        place: CachePlace,
        send: Send,
    ) -> None:
        self._sampler, self._model, self._cost, self._prompts = sampler, model, cost, prompts
        self._place, self._send, self._logged_at = place, send, time.monotonic()
        self._width = int(prompts.samples.targets.max()) + max_new_tokens

    def generate(self, about: dict[str, Any], stop: ShouldStop) -> GeneratedDataset | None:
        """All texts, of which those that are kept are read; none: it was asked to stop before the last one.

        `about` holds what decides them besides the prompts.
        """
        samples = self._prompts.samples
        inputs = {"tokens": self._prompts.tokens, "lengths": samples.targets}
        description = {
            "format": FORMAT,
            "prompts": digest_samples(replace(samples, inputs=inputs)),
            "ends": list(self._prompts.ends),
            **about,
        }
        columns = {"tokens": StoredColumn(torch.int32, self._width), "length": StoredColumn(torch.int32, 1)}
        entry = self._open(description, RowLayout(len(samples), columns, {"texts": description}))
        try:
            return self._all(entry, stop)
        finally:
            if entry is not None:
                with suppress(OSError):
                    entry.rows.sync()
                entry.close()

    def _open(self, description: dict[str, Any], layout: RowLayout) -> OpenEntry | None:
        content = json.dumps({**description, "owner": self._place.owner}, sort_keys=True)
        key = sha256(content.encode()).hexdigest()
        try:
            return DiskCache(Path(self._place.folder), self._place.max_bytes).open(key, layout)
        except (CacheFull, OSError):
            message = "the texts that the teacher generates are not kept: there is no room"
            self._send(Log(level="warning", message=message))
            return None

    def _all(self, entry: OpenEntry | None, stop: ShouldStop) -> GeneratedDataset | None:
        parts, spent, count = [], 0, len(self._prompts.samples)
        for begin in range(0, count, CHUNK):
            numbers = torch.arange(begin, min(begin + CHUNK, count))
            if entry is not None and bool(entry.rows.filled(numbers).all()):
                parts.append(entry.rows.read(numbers))
                continue
            if stop():
                return None
            fresh, flops = self._chunk(numbers)
            spent += flops
            parts.append(fresh)
            if entry is not None:
                _keep(entry, numbers, fresh)
            self._log(begin + len(numbers), count)
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return GeneratedDataset(self._generation(**whole), spent)

    def _chunk(self, numbers: Tensor) -> tuple[Columns, int]:
        prompts = self._prompts.samples.take(numbers.to(self._prompts.tokens.device))
        (tokens, generated), flops = self._sampler.sample(self._model, self._cost, prompts, "teacher", int(numbers[0]))
        length = (prompts.targets + generated.sum(1)).unsqueeze(1)
        whole = F.pad(tokens, (0, self._width - tokens.shape[1]))
        return {"tokens": whole.int().cpu(), "length": length.int().cpu()}, flops

    def _generation(self, tokens: Tensor, length: Tensor) -> Generation:
        """On the device of the prompts, as long as the longest text."""
        device, places = self._prompts.tokens.device, torch.arange(int(length.max()))
        generated = (places >= self._prompts.samples.targets.cpu().unsqueeze(1)) & (places < length)
        return Generation(tokens[:, : len(places)].long().to(device), generated.to(device))

    def _log(self, done: int, count: int) -> None:
        """So that whoever waits sees that it goes on."""
        if time.monotonic() - self._logged_at > SECONDS_BETWEEN_LOGS:
            self._logged_at = time.monotonic()
            self._send(Log(message=f"the teacher has generated {done} of {count} texts"))


def _keep(entry: OpenEntry, numbers: Tensor, fresh: Columns) -> None:
    """A disk that fails must not fail the job: texts can be generated again."""
    with suppress(OSError):
        entry.rows.write(numbers, fresh)
