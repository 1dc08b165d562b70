"""Tells a trainer that hangs from one that is slow. The heartbeat is no proof: it is the supervisor's."""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import NoReturn

from worker.protocol import Report, StepProgress
from worker.supervisor.race import wait_past

STEPS = 64
"""Pairs of progress reports that the usual step time is taken from."""


class Hung(Exception):
    """Nothing was heard of the trainer for too long."""


class Watchdog:
    """Bites when a trainer was silent for `seconds` and for `steps` of its usual steps."""

    def __init__(self, seconds: float, steps: float) -> None:
        self._seconds, self._steps = seconds, steps
        self._heard_at = time.monotonic()
        self._progress: tuple[int, float] | None = None
        self._step_seconds: deque[float] = deque(maxlen=STEPS)

    def heard(self, report: Report | None) -> None:
        """The trainer gave a sign of life."""
        self._heard_at = time.monotonic()
        if isinstance(report, StepProgress):
            self._pace(report.step)

    @property
    def limit(self) -> float:
        """Longest silence, in seconds."""
        usual = median(self._step_seconds) if self._step_seconds else 0.0
        return max(self._seconds, self._steps * usual)

    async def watch(self) -> NoReturn:
        """Raises `Hung` once the silence is too long."""
        await wait_past(lambda: self._heard_at + self.limit)
        raise Hung

    def _pace(self, step: int) -> None:
        if self._progress is not None and step > self._progress[0]:
            last_step, last_at = self._progress
            self._step_seconds.append((self._heard_at - last_at) / (step - last_step))
        self._progress = (step, self._heard_at)
