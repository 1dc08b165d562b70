"""The worker without a broker: polls the database for jobs, and runs them one after the other."""

from __future__ import annotations

import asyncio
import logging
import signal

from app.core.database import DATABASE_LOST
from app.core.settings import Settings
from app.core.tasks import is_set
from app.recipe.job import Queue
from worker.supervisor.attempt import run_next
from worker.supervisor.context import Context, open_context
from worker.supervisor.gpus import visible_gpus

LONGEST_PAUSE_SECONDS = 5.0

logger = logging.getLogger(__name__)


def queues_of(settings: Settings) -> list[Queue]:
    """Queues of the settings; by default those that this machine supports."""
    if "queues" in settings.model_fields_set or not visible_gpus():
        return settings.queues
    return [*settings.queues, "gpu"]


async def serve(settings: Settings) -> None:
    """Run jobs until SIGTERM or SIGINT; then save and requeue the running job. A second signal ends the process."""
    async with open_context(settings, queues_of(settings)) as context:
        stop_on_signals(context.stop)
        await poll(context)


async def poll(context: Context) -> None:
    """Claim and run one job after the other, until the worker must stop."""
    pause = context.settings.poll_seconds
    while not context.stop.is_set():
        context.tick()
        try:
            pause = 0.0 if await run_next(context) else context.settings.poll_seconds
        except DATABASE_LOST:
            logger.warning("the database can't be reached", exc_info=True)
            pause = min(2 * max(pause, context.settings.poll_seconds), LONGEST_PAUSE_SECONDS)
        await is_set(context.stop, pause)


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` on the first SIGTERM or SIGINT; the next one has its usual effect."""
    loop = asyncio.get_running_loop()

    def asked() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked)
