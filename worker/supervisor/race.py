"""Concurrent work with watchers, movable deadlines, and work that must not be interrupted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
LEAVE_SECONDS = 10.0
"""Longest wait for a cancelled coroutine: a call on a dead connection may never return."""


async def race(work: Coroutine[Any, Any, T], *watchers: Coroutine[Any, Any, NoReturn]) -> T:
    """Run `work` until it ends or the first watcher raises; then the others are cancelled.

    Returns the work's result, or raises what ended it.
    """
    working = asyncio.create_task(work)
    tasks = [working, *map(asyncio.create_task, watchers)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=LEAVE_SECONDS)
    for watching in done - {working}:
        if working not in done:
            watching.result()
    return working.result()


async def wait_past(deadline: Callable[[], float]) -> None:
    """Return once the monotonic clock has passed a deadline that may be postponed meanwhile."""
    while True:
        left = deadline() - time.monotonic()
        if left <= 0:
            return
        await asyncio.sleep(left)


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even if the caller is cancelled; the cancellation is raised only afterwards."""
    working = asyncio.create_task(work)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        if not working.cancelled():
            working.exception()  # marks it as retrieved
        raise
