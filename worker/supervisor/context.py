"""What one worker process holds open for all the attempts that it makes."""

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
from worker.fetch.shelf import FetchCache
from worker.protocol import CachePlace
from worker.supervisor.gpus import hold_gpus
from worker.supervisor.presence import Presence
from worker.supervisor.staging import Scratch, Sources
from worker.supervisor.trainer_process import Launch, SparePool, trainer_command

logger = logging.getLogger(__name__)


def new_owner() -> str:
    """A name for a process that no other has had."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


@dataclass(frozen=True)
class Timeouts:
    """How long a supervisor waits for what, in seconds."""

    gather: float = 0.02
    """For what the trainer says in one breath, before it is written."""
    flush: float = 1.0
    """Between two writes of progress and metrics."""
    kill: float = 5.0
    """From SIGTERM to SIGKILL."""
    hang: float = 600.0
    """Without a word from the trainer, before it is taken to hang; at least `hang_steps` of its usual steps."""
    hang_steps: float = 20.0
    store: float = 300.0
    """For a store that can't be reached."""
    retry: float = 0.5
    """Between two tries to reach the database; the store is asked at doubling intervals that begin with this one."""


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
    """Set when the worker must leave: what runs is saved and handed back."""
    timeouts: Timeouts = Timeouts()
    owner: str = field(default_factory=new_owner)
    """Names this process in leases; no later one has the same name."""

    @property
    def sources(self) -> Sources:
        """Where the inputs of attempts come from; what is kept of them is kept for all workers of the machine."""
        shelf = FetchCache(self.settings.resolved_cache_dir / "models", self.settings.model_cache_bytes)
        return Sources(self.store, self.settings, shelf)

    def teacher_cache(self, project_id: str) -> CachePlace | None:
        """Where trainers of a project's jobs keep what teachers say."""
        settings = self.settings
        if settings.teacher_cache_bytes == 0:
            return None
        folder = settings.resolved_cache_dir / "teachers"
        return CachePlace(folder=str(folder), max_bytes=settings.teacher_cache_bytes, owner=project_id)

    def tick(self) -> None:
        """Show whoever watches the tick file that the worker is alive."""
        if self.settings.worker_tick_file is not None:
            self.settings.worker_tick_file.touch()


@asynccontextmanager
async def open_context(
    settings: Settings,
    queues: Sequence[str],
    command: tuple[str, ...] | None = None,
    timeouts: Timeouts = Timeouts(),
) -> AsyncIterator[Context]:
    """Open all that a worker needs, and begin to warm its first trainer up.

    A worker that serves the queue `gpu` takes GPUs of its own for as long as it lives; any other hides all of them.
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
    """Give back the jobs of processes of this machine that are dead, which spares them the rest of their leases.

    The reaper does so too, when the leases have run out: where the database can't be asked now, nothing is lost.
    """
    if not owners:
        return
    try:
        async with database.write() as session:
            for owner in owners:
                await disown(session, owner, backoff_seconds)
    except SQLAlchemyError:
        logger.warning("jobs of dead workers wait until their leases have run out", exc_info=True)
