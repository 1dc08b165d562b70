"""Notifies workers of queued jobs: a message through Celery, or nothing if workers poll the database.

A message is only a wake-up. The worker that receives it must still win the job's lease, so a lost, late or duplicate
one does no harm.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from app.core.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

RUN_JOB = "stillhouse.run_job"
"""Name of the task that runs one job; its one argument is the job's id."""
CONNECT_SECONDS = 5.0
ONE_TRY = {"max_retries": 1, "interval_start": 0.0, "interval_step": 0.0, "interval_max": 0.0}
"""Celery need not retry: the relay keeps a message that was not sent."""


class BrokerUnavailable(Exception):
    """The broker can't be reached; the message was not sent."""


class Dispatcher(Protocol):
    """Wakes a worker up for a job."""

    async def dispatch(self, job_id: str, queue: str) -> None:
        """Notify the workers of `queue` of a job. Raises `BrokerUnavailable`."""

    async def check(self) -> None:
        """Raises `BrokerUnavailable` when a message could not be sent now."""

    async def close(self) -> None:
        """Close the connections."""


class PollOnly:
    """Sends nothing: workers poll the database."""

    async def dispatch(self, job_id: str, queue: str) -> None: ...

    async def check(self) -> None: ...

    async def close(self) -> None: ...


class CeleryDispatcher:
    """Publishes a Celery task by name: nothing of the worker is imported here."""

    def __init__(self, settings: Settings) -> None:
        self._celery = celery_app(settings)
        self._celery.conf.broker_transport_options |= {**ONE_TRY, "socket_timeout": CONNECT_SECONDS}

    async def dispatch(self, job_id: str, queue: str) -> None:
        await _reach_broker(self._celery.send_task, RUN_JOB, args=(job_id,), queue=queue, retry=False)

    async def check(self) -> None:
        await _reach_broker(self._connect)

    async def close(self) -> None:
        await asyncio.to_thread(self._celery.close)

    def _connect(self) -> None:
        with self._celery.connection_for_write() as connection:
            connection.ensure_connection(**ONE_TRY, timeout=CONNECT_SECONDS)


def make_dispatcher(settings: Settings) -> Dispatcher:
    """The dispatcher of the settings."""
    return PollOnly() if settings.embedded else CeleryDispatcher(settings)


def celery_app(settings: Settings) -> Celery:
    """A Celery application with the settings that both ends of the queue share.

    Messages are JSON; there is one queue per kind of machine, and no result backend: the database has a job's state.
    """
    from celery import Celery  # takes 0.2 s and some MB, which the embedded service does not need

    celery = Celery("stillhouse", broker=settings.broker_url.get_secret_value(), set_as_current=False)
    celery.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_default_queue="any",
        broker_connection_timeout=CONNECT_SECONDS,
        broker_transport_options={"socket_connect_timeout": CONNECT_SECONDS, "socket_keepalive": True},
    )
    return celery


async def _reach_broker(call: Any, *args: Any, **kwargs: Any) -> None:
    """Make a call in a thread, since Celery's client blocks."""
    from kombu.exceptions import KombuError

    try:
        await asyncio.to_thread(call, *args, **kwargs)
    except (KombuError, OSError) as error:
        raise BrokerUnavailable("the broker can't be reached") from error
