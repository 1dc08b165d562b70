"""Generates a teacher's texts before training, one for each prompt of the data, and caches them.

They are rows in the disk cache of teacher outputs, under a key of everything that determines them. So a job that is
killed meanwhile continues after its cached texts, and another job with the same teacher, prompts and seed generates
none.
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
"""To be raised with any change of the generated texts for the same key."""
SECONDS_BETWEEN_LOGS = 30.0


class GeneratedDataset(NamedTuple):
    """A text for every prompt, and the floating-point operations that this attempt spent on them."""

    generation: Generation
    flops: int


class SequenceGenerator:
    """Generates up to `max_new_tokens` tokens after every prompt by `model`; the texts are cached in `place`."""

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

    def generate(self, settings: dict[str, Any], stop: ShouldStop) -> GeneratedDataset | None:
        """All texts, of which cached ones are read; none: `stop` returned true before the last one.

        `settings` has everything besides the prompts that determines the texts.
        """
        samples = self._prompts.samples
        inputs = {"tokens": self._prompts.tokens, "lengths": samples.targets}
        description = {
            "format": FORMAT,
            "prompts": digest_samples(replace(samples, inputs=inputs)),
            "ends": list(self._prompts.ends),
            **settings,
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
            message = "the texts that the teacher generates are not cached: the cache or the disk is full"
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
                _store(entry, numbers, fresh)
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
        """Report the progress at intervals."""
        if time.monotonic() - self._logged_at > SECONDS_BETWEEN_LOGS:
            self._logged_at = time.monotonic()
            self._send(Log(message=f"the teacher has generated {done} of {count} texts"))


def _store(entry: OpenEntry, numbers: Tensor, fresh: Columns) -> None:
    """Write rows to the cache. A disk that fails must not fail the job: texts can be generated again."""
    with suppress(OSError):
        entry.rows.write(numbers, fresh)
