"""What every process of the API does beside answering requests: it sends the outbox and reaps."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from app.core.relay import relay
from app.core.services import Services
from app.files.service import DELETE_OBJECTS, expire_uploads
from app.jobs.reaper import Reaper

RELAY_SECONDS = 0.25
log = logging.getLogger(__name__)


@asynccontextmanager
async def running_loops(services: Services) -> AsyncIterator[None]:
    """Run the loops for as long as the frame lasts."""
    settings = services.settings
    # Random: a restarted process must not take itself for the one that died.
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    reaper = Reaper(services.database, owner, settings.reaper_seconds, settings.retry_backoff_seconds)

    async def send(kind: str, payload: dict[str, Any]) -> None:
        if kind == DELETE_OBJECTS:
            await services.store.delete(payload["keys"])
        else:
            await services.dispatcher.dispatch(payload["job_id"], payload["queue"])

    async def tell() -> None:
        await relay(services.database, send)

    async def reap() -> None:
        if await reaper.sweep():
            await expire_uploads(services.database)

    tasks = [
        asyncio.create_task(_forever(tell, RELAY_SECONDS), name="relay"),
        asyncio.create_task(_forever(reap, settings.reaper_seconds), name="reaper"),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _forever(work: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Repeat, whatever happens: a lost database or broker comes back."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("a round of background work failed; the next one comes in %.1f s", seconds)
        await asyncio.sleep(seconds)
