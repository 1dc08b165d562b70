"""Tasks of an event loop that end with the frame that started them, and waiting with a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_SECONDS = 1.0
"""Between two cancellations of one task."""


async def stop_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks until they have ended, whatever they end with.

    Again and again, because one cancellation may be lost: a library that waits may swallow it when what it waits for
    comes at the same moment, and a task that loops then goes on for ever.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_SECONDS)


async def is_set(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but no longer than that; whether it was set."""
    try:
        async with asyncio.timeout(seconds):  # `asyncio.wait_for` loses a cancellation in Python 3.11
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()
