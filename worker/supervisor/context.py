"""Resources that one worker process shares between its attempts."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.core.settings import Settings
from app.core.store import Store
from app.jobs.requeue import disown
from worker.fetch.model_cache import FetchCache
from worker.protocol import CachePlace
from worker.supervisor.gpus import hold_gpus
from worker.supervisor.presence import Presence
from worker.supervisor.staging import Scratch, Sources
from worker.supervisor.trainer_process import Launch, SparePool, trainer_command

logger = logging.getLogger(__name__)


def new_owner() -> str:
    """A unique name for a process."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


@dataclass(frozen=True)
class Timeouts:
    """Waiting times of a supervisor, in seconds."""

    gather: float = 0.02
    """For further reports of the trainer, before they are written together."""
    flush: float = 1.0
    """Between two writes of progress and metrics."""
    kill: float = 5.0
    """From SIGTERM to SIGKILL."""
    hang: float = 600.0
    """Without a report from the trainer, before it counts as hanging; at least `hang_steps` of its usual steps."""
    hang_steps: float = 20.0
    store: float = 300.0
    """For a store that can't be reached."""
    retry: float = 0.5
    """Between two tries to reach the database; tries for the store are at doubling intervals from this one."""


@dataclass(frozen=True)
class Context:
    """One worker process: at most one attempt at a time runs in it."""

    settings: Settings
    database: Database
    store: Store
    scratch: Scratch
    spares: SparePool
    queues: Sequence[str]
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the worker must stop: the running job is saved and requeued."""
    timeouts: Timeouts = Timeouts()
    owner: str = field(default_factory=new_owner)
    """Name of this process in leases; no later one has the same name."""

    @property
    def sources(self) -> Sources:
        """Sources of the inputs of attempts, with a cache for all workers of the machine."""
        cache = FetchCache(self.settings.resolved_cache_dir / "models", self.settings.model_cache_bytes)
        return Sources(self.store, self.settings, cache)

    def teacher_cache(self, project_id: str) -> CachePlace | None:
        """Place of the teacher cache for the jobs of a project."""
        settings = self.settings
        if settings.teacher_cache_bytes == 0:
            return None
        folder = settings.resolved_cache_dir / "teachers"
        return CachePlace(folder=str(folder), max_bytes=settings.teacher_cache_bytes, owner=project_id)

    def tick(self) -> None:
        """Touch the tick file, to show that the worker is alive."""
        if self.settings.worker_tick_file is not None:
            self.settings.worker_tick_file.touch()


@asynccontextmanager
async def open_context(
    settings: Settings,
    queues: Sequence[str],
    command: tuple[str, ...] | None = None,
    timeouts: Timeouts = Timeouts(),
) -> AsyncIterator[Context]:
    """Open the resources of a worker, and begin to warm up its first trainer.

    A worker that serves the queue `gpu` reserves GPUs while it runs; any other hides all of them.
    `command` starts trainers. Raises: `NoGpu`.
    """
    gpus = await hold_gpus(settings.scratch_dir / "gpus", settings.worker_gpus) if "gpu" in queues else ()
    launch = Launch(command or trainer_command(), gpus, settings.resolved_cache_dir)
    database = Database.from_settings(settings)
    with Scratch(settings.scratch_dir, owner := new_owner()) as scratch:
        spares = SparePool(launch, scratch)
        spares.refill()
        try:
            await _disown(database, scratch.dead, settings.retry_backoff_seconds)
            store = Store.from_settings(settings)
            context = Context(settings, database, store, scratch, spares, queues, timeouts=timeouts, owner=owner)
            async with Presence(settings, context.owner, queues):
                yield context
        finally:
            await spares.close()
            await database.close()
            for gpu in gpus:
                gpu.lock.close()


async def _disown(database: Database, owners: Sequence[str], backoff_seconds: float) -> None:
    """Requeue the jobs of dead processes of this machine, without waiting for the end of their leases.

    The reaper does so too, when the leases have expired: if the database can't be reached now, nothing is lost.
    """
    if not owners:
        return
    try:
        async with database.write() as session:
            for owner in owners:
                await disown(session, owner, backoff_seconds)
    except SQLAlchemyError:
        logger.warning("jobs of dead workers wait until their leases expire", exc_info=True)
