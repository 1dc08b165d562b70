"""Collects the warnings of a job for its report."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from worker.protocol import Log, Report

OTHER = "other"
"""Code of warnings without one."""


class Warned(NamedTuple):
    """One warning."""

    code: str
    """Stable code of its kind, in snake_case."""
    message: str


class WarningLog:
    """Forwards the trainer's reports, and stores the warnings of this attempt, each once."""

    def __init__(self, send: Callable[[Report], None]) -> None:
        self._send = send
        self._warned: dict[str, Warned] = {}

    def __call__(self, report: Report) -> None:
        self._send(report)
        if isinstance(report, Log) and report.level == "warning":
            self._warned.setdefault(report.message, Warned(report.code or OTHER, report.message))

    def warn(self, code: str, message: str) -> None:
        """Send a warning."""
        self(Log(level="warning", message=message, code=code))

    def figures(self) -> list[dict[str, str]]:
        """Warnings for the report, in their order."""
        return [warned._asdict() for warned in self._warned.values()]
