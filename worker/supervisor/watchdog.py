"""Distinguishes a trainer that hangs from a slow one. The heartbeat does not: it comes from the supervisor."""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import NoReturn

from worker.protocol import Report, StepProgress
from worker.supervisor.race import wait_past

STEPS = 64
"""Pairs of progress reports from which the usual step time is computed."""


class Hung(Exception):
    """There was no report of the trainer for too long."""


class Watchdog:
    """Raises `Hung` if a trainer sends no report for `seconds` and for `steps` of its usual steps."""

    def __init__(self, seconds: float, steps: float) -> None:
        self._seconds, self._steps = seconds, steps
        self._last_at = time.monotonic()
        self._progress: tuple[int, float] | None = None
        self._step_seconds: deque[float] = deque(maxlen=STEPS)

    def observe(self, report: Report | None) -> None:
        """Record a report, or another sign of life, of the trainer."""
        self._last_at = time.monotonic()
        if isinstance(report, StepProgress):
            self._pace(report.step)

    @property
    def limit(self) -> float:
        """Longest time without a report, in seconds."""
        usual = median(self._step_seconds) if self._step_seconds else 0.0
        return max(self._seconds, self._steps * usual)

    async def watch(self) -> NoReturn:
        """Raises `Hung` once there was no report for too long."""
        await wait_past(lambda: self._last_at + self.limit)
        raise Hung

    def _pace(self, step: int) -> None:
        if self._progress is not None and step > self._progress[0]:
            last_step, last_at = self._progress
            self._step_seconds.append((self._last_at - last_at) / (step - last_step))
        self._progress = (step, self._last_at)
