"""Tasks that are ended, and waiting with a limit."""

from __future__ import annotations

import asyncio

import pytest

from app.core.tasks import is_set, stop_tasks


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 2:
                    raise

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await stop_tasks([task])
    assert task.cancelled()
    assert swallowed == 2


async def test_tasks_that_have_ended_or_failed_are_no_obstacle() -> None:
    async def fail() -> None:
        raise ValueError

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await stop_tasks([task])
    await stop_tasks([])
    assert isinstance(task.exception(), ValueError)


async def test_waiting_ends_with_the_event_or_its_limit() -> None:
    event = asyncio.Event()
    assert not await is_set(event, 0.01)
    asyncio.get_running_loop().call_soon(event.set)
    assert await is_set(event, 60)


async def test_a_cancellation_in_the_moment_of_the_event_is_not_lost() -> None:
    event = asyncio.Event()

    async def loop() -> None:
        while True:
            await is_set(event, 60)
            event.clear()

    task = asyncio.create_task(loop())
    await asyncio.sleep(0)
    event.set()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
