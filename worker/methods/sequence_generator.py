"""Texts that a teacher writes before training, one on each prompt of the data, and keeps as it goes.

They are rows on the shelf of the teachers' answers, named by all that decides them. So a job that is killed while they
are written goes on behind those that it has, and another job with the same teacher, prompts and seed writes none.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.data.prompts import Prompts
from worker.methods.sampler import TOGETHER, Author
from worker.protocol import CachePlace, Log, Report
from worker.students.decoding import Written
from worker.students.measure import Reading
from worker.students.model import Model
from worker.teachers.digests import digest_samples
from worker.teachers.encoding import Columns, StoredColumn
from worker.teachers.kept_rows import RowLayout
from worker.teachers.shelf import DiskCache, NoRoom, OpenEntry

FORMAT = 1
"""Raise it with any change of what is written for the same key."""
SECONDS_BETWEEN_LOGS = 30.0
Send = Callable[[Report], None]
Stop = Callable[[], bool]


class Corpus(NamedTuple):
    """All texts, and what this attempt computed for them."""

    written: Written
    flops: int


class Scribe:
    """Has `model` write up to `most` tokens on every prompt; what it wrote is kept in `place`."""

    def __init__(
        self, author: Author, model: Model, cost: Reading, prompts: Prompts, most: int, place: CachePlace, send: Send
    ) -> None:
        self._author, self._model, self._cost, self._prompts = author, model, cost, prompts
        self._place, self._send, self._said = place, send, time.monotonic()
        self._width = int(prompts.samples.targets.max()) + most

    def write(self, about: dict[str, Any], stop: Stop) -> Corpus | None:
        """All texts, of which those that are kept are read; none: it was asked to stop before the last one.

        `about` is what decides them besides the prompts.
        """
        samples = self._prompts.samples
        inputs = {"tokens": self._prompts.tokens, "lengths": samples.targets}
        told = {
            "format": FORMAT,
            "prompts": digest_samples(replace(samples, inputs=inputs)),
            "ends": list(self._prompts.ends),
            **about,
        }
        columns = {"tokens": StoredColumn(torch.int32, self._width), "length": StoredColumn(torch.int32, 1)}
        held = self._open(told, RowLayout(len(samples), columns, {"texts": told}))
        try:
            return self._all(held, stop)
        finally:
            if held is not None:
                with suppress(OSError):
                    held.rows.sync()
                held.close()

    def _open(self, told: dict[str, Any], layout: RowLayout) -> OpenEntry | None:
        key = sha256(json.dumps({**told, "owner": self._place.owner}, sort_keys=True).encode()).hexdigest()
        try:
            return DiskCache(Path(self._place.folder), self._place.max_bytes).open(key, layout)
        except (NoRoom, OSError):
            self._send(Log(level="warning", message="the texts that the teacher writes are not kept: there is no room"))
            return None

    def _all(self, held: OpenEntry | None, stop: Stop) -> Corpus | None:
        parts, spent, count = [], 0, len(self._prompts.samples)
        for begin in range(0, count, TOGETHER):
            numbers = torch.arange(begin, min(begin + TOGETHER, count))
            if held is not None and bool(held.rows.filled(numbers).all()):
                parts.append(held.rows.read(numbers))
                continue
            if stop():
                return None
            fresh, flops = self._some(numbers)
            spent += flops
            parts.append(fresh)
            if held is not None:
                _keep(held, numbers, fresh)
            self._tell(begin + len(numbers), count)
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Corpus(self._written(**whole), spent)

    def _some(self, numbers: Tensor) -> tuple[Columns, int]:
        prompts = self._prompts.samples.take(numbers.to(self._prompts.tokens.device))
        (tokens, own), flops = self._author.write(self._model, self._cost, prompts, "teacher", int(numbers[0]))
        length = (prompts.targets + own.sum(1)).unsqueeze(1)
        whole = F.pad(tokens, (0, self._width - tokens.shape[1]))
        return {"tokens": whole.int().cpu(), "length": length.int().cpu()}, flops

    def _written(self, tokens: Tensor, length: Tensor) -> Written:
        """On the device of the prompts, as long as the longest text."""
        device, places = self._prompts.tokens.device, torch.arange(int(length.max()))
        own = (places >= self._prompts.samples.targets.cpu().unsqueeze(1)) & (places < length)
        return Written(tokens[:, : len(places)].long().to(device), own.to(device))

    def _tell(self, done: int, count: int) -> None:
        """So that whoever waits knows that it goes on."""
        if time.monotonic() - self._said > SECONDS_BETWEEN_LOGS:
            self._said = time.monotonic()
            self._send(Log(message=f"the teacher has written {done} of {count} texts"))


def _keep(held: OpenEntry, numbers: Tensor, fresh: Columns) -> None:
    """A disk that fails must not fail the job: texts can be written again."""
    with suppress(OSError):
        held.rows.write(numbers, fresh)
