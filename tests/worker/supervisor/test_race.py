"""Work beside its watchers, and work that may not be broken off."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import pytest

from worker.supervisor.race import race, unbroken, wait_past


class Bitten(Exception):
    pass


async def bite() -> NoReturn:
    raise Bitten


async def sleep_for_ever() -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError


async def give(value: int) -> int:
    return value


async def test_the_works_result_comes_back_and_the_watchers_are_cancelled() -> None:
    ended = asyncio.Event()

    async def watch() -> NoReturn:
        try:
            await sleep_for_ever()
        finally:
            ended.set()

    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert await race(work(), watch()) == 7
    assert ended.is_set()


async def test_a_watcher_that_raises_ends_the_work() -> None:
    with pytest.raises(Bitten):
        await race(sleep_for_ever(), sleep_for_ever(), bite())


async def test_work_that_is_done_counts_more_than_a_watcher() -> None:
    assert await race(give(7), bite()) == 7


async def test_the_works_own_error_is_raised() -> None:
    with pytest.raises(Bitten):
        await race(bite(), sleep_for_ever())


async def test_cancelling_the_race_cancels_all_who_run() -> None:
    started = asyncio.Event()
    cancelled = []

    async def run(name: str) -> NoReturn:
        try:
            started.set()
            await sleep_for_ever()
        except asyncio.CancelledError:
            cancelled.append(name)
            raise

    racing = asyncio.create_task(race(run("work"), run("watcher")))
    await started.wait()
    racing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await racing
    assert cancelled == ["work", "watcher"]


async def test_unbroken_work_is_finished_before_its_cancellation_is_felt() -> None:
    begun, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()
        done.set()

    caller = asyncio.create_task(unbroken(work()))
    await begun.wait()
    caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done.is_set()


async def test_unbroken_work_gives_its_result_and_its_error() -> None:
    assert await unbroken(give(7)) == 7
    with pytest.raises(Bitten):
        await unbroken(bite())


async def test_a_deadline_may_be_put_off_while_it_is_waited_for() -> None:
    now = asyncio.get_running_loop().time
    deadline = [now() + 0.05]
    waiting = asyncio.create_task(wait_past(lambda: deadline[0]))
    deadline[0] += 0.1
    await waiting
    assert now() >= deadline[0]
