"""Parser of server-sent events for the events of a job."""

from __future__ import annotations

from stillhouse.objects import Event


class EventParser:
    """Parses a stream line by line; comments and fields other than `data` are ignored."""

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> Event | None:
        """Parse a line without its end, and return the event that it completes."""
        if line.startswith("data:"):
            self._data.append(line[5:].removeprefix(" "))
        elif not line and self._data:
            document, self._data = "\n".join(self._data), []
            return Event.model_validate_json(document)
        return None
