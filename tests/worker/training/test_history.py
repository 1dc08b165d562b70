"""History of metrics of a long training."""

from __future__ import annotations

from itertools import pairwise

import pytest

from worker.training.history import LIMIT, History, Point


@pytest.mark.parametrize("steps", [1, LIMIT, LIMIT + 1, 12_345])
def test_it_stays_small_and_even_however_long_training_is(steps: int) -> None:
    history = History()
    for step in range(1, steps + 1):
        history.add(step, {"train/loss": float(step)})
    points = history.points
    assert len(points) <= LIMIT
    assert len(points) >= min(steps, LIMIT // 2)
    assert points[-1] == Point(step=steps, values={"train/loss": float(steps)})
    gaps = [later.step - earlier.step for earlier, later in pairwise(points)]
    assert len(set(gaps[1:-1])) <= 1
    assert all(point.values == {"train/loss": float(point.step)} for point in points)


def test_values_measured_close_together_share_a_point() -> None:
    history = History()
    history.add(5, {"train/loss": 1.0})
    history.add(5, {"eval/nll": 2.0})
    assert history.points == [Point(step=5, values={"train/loss": 1.0, "eval/nll": 2.0})]


def test_rare_values_outlive_the_thinning() -> None:
    history = History()
    for step in range(1, 10_001):
        history.add(step, {"train/loss": 0.0} | ({"eval/nll": 1.0} if step % 1000 == 0 else {}))
    assert sum("eval/nll" in point.values for point in history.points) == 10


def test_it_continues_after_it_was_read_back() -> None:
    straight, halted = History(), History()
    for step in range(1, 1001):
        straight.add(step, {"a": float(step)})
        halted.add(step, {"a": float(step)})
        if step in (150, 401):
            halted = History(Point.model_validate_json(point.model_dump_json()) for point in halted.points)
    assert len(halted.points) <= LIMIT
    assert halted.points[-1] == straight.points[-1]
    assert [point.step for point in halted.points] == sorted(point.step for point in halted.points)
