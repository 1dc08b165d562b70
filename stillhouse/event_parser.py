"""Server-sent events: the lines of a stream become events of a job."""

from __future__ import annotations

from stillhouse.objects import Event


class EventParser:
    """Reads a stream line by line; comments and other fields than `data` are passed over."""

    def __init__(self) -> None:
        self._data: list[str] = []

    def feed(self, line: str) -> Event | None:
        """Take a line without its end, and return the event that it completes."""
        if line.startswith("data:"):
            self._data.append(line[5:].removeprefix(" "))
        elif not line and self._data:
            document, self._data = "\n".join(self._data), []
            return Event.model_validate_json(document)
        return None
