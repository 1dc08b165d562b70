"""What was measured on the way, thinned out so that it stays small however long training is."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

LIMIT = 200
"""Points that are kept; more would not be seen in a picture."""


class Point(BaseModel):
    """Values by name, measured at one optimizer step or shortly before."""

    step: int
    values: dict[str, float]


class History:
    """Points at least so many steps apart that there are never more than `LIMIT`; the newest of each value stays."""

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self._width = 1
        self._points: dict[int, Point] = {}
        for point in points:
            self.add(point.step, point.values)

    @property
    def points(self) -> list[Point]:
        """In the order of their steps."""
        return list(self._points.values())

    def add(self, step: int, values: dict[str, float]) -> None:
        """Take in what was measured at `step`, which is no earlier than the steps before."""
        self._put(step, values)
        while len(self._points) > LIMIT:
            self._width *= 2
            points, self._points = self.points, {}
            for point in points:
                self._put(point.step, point.values)

    def _put(self, step: int, values: dict[str, float]) -> None:
        place = step // self._width
        earlier = self._points[place].values if place in self._points else {}
        self._points[place] = Point(step=step, values=earlier | values)
