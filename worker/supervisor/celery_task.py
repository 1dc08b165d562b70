"""The only Celery task, and the state that a process of the pool keeps between tasks."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

from celery import current_app, shared_task
from celery.signals import worker_process_init, worker_process_shutdown

from app.core.dispatch import RUN_JOB
from app.core.settings import Settings
from worker.supervisor.attempt import run_next
from worker.supervisor.celery_app import stop_line
from worker.supervisor.context import Context, open_context


class PoolProcess:
    """An event loop that is suspended between tasks, with open connections and a warm trainer."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        queues = list(current_app.amqp.queues.consume_from)
        self._context: Context = self._runner.run(
            self._stack.enter_async_context(open_context(Settings(), queues)),
        )

    def run(self, job_id: str) -> None:
        """Run one job, if it can still be claimed."""
        self._runner.run(self._run(job_id))

    def close(self) -> None:
        self._runner.run(self._stack.aclose())
        self._runner.close()

    async def _run(self, job_id: str) -> None:
        loop, stop = asyncio.get_running_loop(), self._context.stop

        def leave() -> None:
            loop.remove_reader(stop_line.reader)
            stop.set()

        loop.add_reader(stop_line.reader, leave)
        # A signal to the whole process group reaches this process too, which must then save its job, not die.
        loop.add_signal_handler(signal.SIGTERM, leave)
        try:
            if not stop.is_set():
                await run_next(self._context, job_id)
        finally:
            loop.remove_reader(stop_line.reader)
            loop.remove_signal_handler(signal.SIGTERM)


_process: PoolProcess | None = None


def _open(**_: object) -> None:
    global _process
    _process = PoolProcess()


def _close(**_: object) -> None:
    if _process is not None:
        _process.close()


worker_process_init.connect(_open)
worker_process_shutdown.connect(_close)


@shared_task(name=RUN_JOB)  # type: ignore[untyped-decorator]  # Celery has few types
def run_job(job_id: str, **_: object) -> None:
    """Run a job; does nothing if another worker has it or it has ended.

    Unknown arguments are ignored, so that a newer API works with an older worker.
    """
    if _process is None:
        _open()
    assert _process is not None
    _process.run(job_id)
