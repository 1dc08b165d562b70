"""Stopping tasks of an event loop, and waiting with a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_SECONDS = 1.0
"""Time between two cancellations of one task."""


async def stop_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended, and ignore their results.

    The cancellation is repeated because it may be lost: a waiting library may swallow it when the awaited event
    occurs at the same moment, and a task with a loop would then run for ever.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_SECONDS)


async def is_set(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event for at most `seconds`; returns whether it was set."""
    try:
        async with asyncio.timeout(seconds):  # `asyncio.wait_for` loses a cancellation in Python 3.11
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()
