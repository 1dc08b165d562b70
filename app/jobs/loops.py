"""Background loops of every process of the API: relay of the outbox, reaper, and collector."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from app.core.outbox import HANDLERS
from app.core.relay import relay
from app.core.services import Services
from app.core.tasks import stop_tasks
from app.files.service import expire_uploads
from app.jobs.collector import Collector
from app.jobs.reaper import Reaper

RELAY_SECONDS = 0.25
AFTER_ERROR_SECONDS = 5.0
"""Pause after a round that failed."""
log = logging.getLogger(__name__)
Round = Callable[[], Awaitable[float]]
"""One round of a loop; the seconds until the next."""


@asynccontextmanager
async def running_loops(services: Services) -> AsyncIterator[None]:
    """Run the loops within the context."""
    settings = services.settings
    # Random: a restarted process must not be mistaken for the one that died.
    owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    reaper = Reaper(services.database, owner, settings.reaper_seconds, settings.retry_backoff_seconds)
    collector = Collector(services.database, services.store, owner, settings.collector_grace_seconds)
    handlers = {kind: partial(handler, services) for kind, handler in HANDLERS.items()}

    async def send() -> float:
        while await relay(services.database, handlers):
            pass
        return RELAY_SECONDS

    async def reap() -> float:
        if not await reaper.sweep():
            return settings.reaper_seconds
        await expire_uploads(services.database)
        return await reaper.pause()

    async def collect() -> float:
        await collector.round()
        return settings.collector_seconds

    rounds: dict[str, Round] = {"relay": send, "reaper": reap}
    if settings.collector_seconds > 0:
        rounds["collector"] = collect
    first = {"collector": settings.collector_seconds}  # a short-lived service need not read its store
    tasks = [asyncio.create_task(_forever(work, first.get(name, 0.0)), name=name) for name, work in rounds.items()]
    try:
        yield
    finally:
        await stop_tasks(tasks)


async def _forever(work: Round, pause: float) -> None:
    """Repeat after every error: a lost database or broker may return."""
    await asyncio.sleep(pause)
    while True:
        try:
            pause = await work()
        except Exception:
            pause = AFTER_ERROR_SECONDS
            log.exception("a round of background work failed; the next one starts in %.1f s", pause)
        await asyncio.sleep(pause)
