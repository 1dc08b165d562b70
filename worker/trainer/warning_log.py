"""What a job was warned of, for its report."""

from __future__ import annotations

from collections.abc import Callable

from worker.protocol import Log, Report


class WarningLog:
    """Passes on what the trainer says, and remembers the warnings of this attempt, each once."""

    def __init__(self, send: Callable[[Report], None]) -> None:
        self._send = send
        self.messages: list[str] = []

    def __call__(self, report: Report) -> None:
        self._send(report)
        if isinstance(report, Log) and report.level == "warning" and report.message not in self.messages:
            self.messages.append(report.message)
