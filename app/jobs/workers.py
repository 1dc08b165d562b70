"""Announced workers, and whether one of them can take a queued job."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import upsert
from app.jobs.tables import Worker

ANNOUNCE_SECONDS = 10.0
"""Interval of a worker's announcements."""
ABSENT_SECONDS = 35.0
"""Time without an announcement after which a worker counts as gone: three in a row were missed."""
FORGOTTEN_SECONDS = 3600.0
"""Time without an announcement after which the row of a killed worker is deleted."""


class Capability(NamedTuple):
    """Jobs that a worker can take."""

    queues: frozenset[str]
    gpus: int
    nodes: int


async def announce(session: AsyncSession, owner: str, queues: Sequence[str], gpus: int, nodes: int) -> None:
    """Record that a worker is available."""
    row = {"owner": owner, "queues": list(queues), "gpus": gpus, "nodes": nodes, "seen_at": now()}
    await upsert(session, Worker, [row], update=["queues", "gpus", "nodes", "seen_at"])
    await session.execute(delete(Worker).where(Worker.seen_at < now() - FORGOTTEN_SECONDS))


async def leave(session: AsyncSession, owner: str) -> None:
    """Record that a worker is no longer available."""
    await session.execute(delete(Worker).where(Worker.owner == owner))


_PRESENT = select(Worker.queues, Worker.gpus, Worker.nodes).where(Worker.seen_at > now() - ABSENT_SECONDS)


async def present(session: AsyncSession) -> frozenset[Capability]:
    """Capabilities of the available workers."""
    found = await session.execute(_PRESENT)
    return frozenset(Capability(frozenset(queues), gpus, nodes) for queues, gpus, nodes in found)


def why_unserved(resources: Mapping[str, Any], workers: Collection[Capability]) -> str | None:
    """Why none of the workers takes a job that needs these `resources`; none if one does.

    The conditions are those of a claim (`app.jobs.leases.claim`).
    """
    queue = resources["queue"]
    if not workers:
        return "no worker is running: it waits until one starts (`stillhouse up`, or `python -m worker`)"
    serving = [worker for worker in workers if queue in worker.queues]
    if not serving:
        served = ", ".join(sorted({name for worker in workers for name in worker.queues}))
        return f"no worker serves the queue {queue!r}: it waits until one does; now served: {served}"
    processes, nodes = resources.get("processes", 1), resources.get("nodes", 1)
    if all(worker.nodes < nodes for worker in serving):
        largest = max(worker.nodes for worker in serving)
        return f"needs {nodes} machines, and no worker of the queue {queue!r} has more than {largest}"
    if queue == "gpu" and all(worker.gpus < processes or worker.nodes < nodes for worker in serving):
        largest = max(worker.gpus for worker in serving)
        return f"needs {processes} GPUs on a machine, and no worker takes more than {largest} (STILLHOUSE_WORKER_GPUS)"
    return None
