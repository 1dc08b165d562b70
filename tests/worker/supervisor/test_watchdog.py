"""When silence means that a trainer hangs."""

from __future__ import annotations

import pytest

from worker.protocol import StepProgress
from worker.supervisor.watchdog import Hung, Watchdog


def progress(step: int) -> StepProgress:
    return StepProgress(step=step, total_steps=100, epoch=0.0, samples_per_second=1.0, seconds_left=None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The watchdog's clock, moved by hand."""
    moment = [0.0]
    monkeypatch.setattr("worker.supervisor.watchdog.time.monotonic", lambda: moment[0])
    return moment


def test_fast_steps_leave_the_limit_where_it_is(clock: list[float]) -> None:
    watchdog = Watchdog(600.0, 20.0)
    for step in range(1, 50):
        clock[0] += 1.0
        watchdog.observe(progress(step))
    assert watchdog.limit == 600.0


def test_slow_steps_are_given_time(clock: list[float]) -> None:
    watchdog = Watchdog(600.0, 20.0)
    for step in range(1, 10):
        clock[0] += 100.0
        watchdog.observe(progress(step))
    assert watchdog.limit == 2000.0


def test_a_report_after_many_steps_counts_each_of_them(clock: list[float]) -> None:
    watchdog = Watchdog(1.0, 20.0)
    for step in (10, 20, 30):
        clock[0] += 100.0
        watchdog.observe(progress(step))
    assert watchdog.limit == 200.0


def test_one_long_pause_does_not_blunt_it(clock: list[float]) -> None:
    watchdog = Watchdog(60.0, 20.0)
    for step in range(1, 30):
        clock[0] += 10_000.0 if step == 15 else 1.0
        watchdog.observe(progress(step))
    assert watchdog.limit == 60.0


def test_steps_that_do_not_grow_are_no_steps(clock: list[float]) -> None:
    watchdog = Watchdog(1.0, 20.0)
    for _ in range(5):
        clock[0] += 100.0
        watchdog.observe(progress(3))
    assert watchdog.limit == 1.0


async def test_silence_bites_and_a_word_puts_it_off(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        """The trainer speaks 4 s after the first sleep began, and never again."""
        slept.append(seconds)
        clock[0] += 4.0
        if len(slept) == 1:
            watchdog.observe(None)
        clock[0] += seconds - 4.0

    watchdog = Watchdog(10.0, 0.0)
    monkeypatch.setattr("worker.supervisor.race.asyncio.sleep", sleep)
    with pytest.raises(Hung):
        await watchdog.watch()
    assert slept == [10.0, 4.0]
