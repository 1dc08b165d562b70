"""Metrics over the steps, thinned so that their number is bounded however long training is."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel

LIMIT = 200
"""Most points stored; more would not be visible in a plot."""


class Point(BaseModel):
    """Values by name, measured at one optimizer step or shortly before."""

    step: int
    values: dict[str, float]


class History:
    """At most `LIMIT` points, one per interval of steps; within an interval the newest value is stored."""

    def __init__(self, points: Iterable[Point] = ()) -> None:
        self._width = 1
        self._points: dict[int, Point] = {}
        for point in points:
            self.add(point.step, point.values)

    @property
    def points(self) -> list[Point]:
        """Points in the order of their steps."""
        return list(self._points.values())

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add values measured at `step`, which is no earlier than the steps before."""
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
