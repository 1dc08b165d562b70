"""The worker behind a broker: `celery -A worker.supervisor.celery_app worker`.

The pool's processes run the tasks and only supervise a trainer; torch is never imported here. A message is removed from
the queue when it is received: its receiver must win the job's lease, and a job whose lease is free is sent again.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import Celery, bootsteps
from celery.signals import setup_logging, worker_init, worker_shutting_down
from kombu.entity import Exchange, Queue

from app.core import logs
from app.core.dispatch import celery_app
from app.core.settings import Settings

TICK_SECONDS = 5.0


def make_app(settings: Settings) -> Celery:
    """Celery's application, which serves the queues of the settings unless `-Q` is given."""
    app = celery_app(settings)
    app.set_current()
    app.conf.update(
        include=["worker.supervisor.celery_task"],
        task_queues=[_queue(name) for name in settings.queues],
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        worker_pool="prefork",
        worker_concurrency=1,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,  # a message waits for the first free process
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_proc_alive_timeout=60.0,  # a pool process queries the GPU driver before it is up
        worker_soft_shutdown_timeout=0.0,  # it would only sleep, and then make the pool save its jobs
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
    )
    app.steps["consumer"].add(Tick)
    return app


def _queue(name: str) -> Queue:
    # A separate exchange: on a shared one, every queue bound with the same key would get a copy.
    return Queue(name, Exchange(name), routing_key=name)  # type: ignore[no-untyped-call]  # kombu has few types


class Tick(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Touches the tick file while messages are consumed; a lost connection stops and restarts it."""

    requires = {"celery.worker.consumer.tasks:Tasks"}

    def start(self, consumer: Any) -> None:
        tick_file = Settings().worker_tick_file
        self._timer = tick_file and consumer.timer.call_repeatedly(TICK_SECONDS, tick_file.touch)

    def stop(self, consumer: Any) -> None:
        if self._timer:
            self._timer.cancel()


class StopLine:
    """Notifies the pool's processes that Celery's main process stops.

    A pipe, created before they are forked. One byte is written and never read, so that all of them see it at any time.
    """

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()

    def announce(self) -> None:
        os.write(self._writer, b"x")


app = make_app(Settings())
stop_line = StopLine()


def _need_broker(**_: object) -> None:
    if Settings().embedded:
        # Celery logs and ignores any other exception here.
        raise SystemExit("STILLHOUSE_BROKER_URL is not set; without a broker, run `python -m worker`")


def _pass_on(**_: object) -> None:
    stop_line.announce()


def _set_up_logs(loglevel: int | None = None, **_: object) -> None:
    """Set up logging instead of Celery, in the main process and in those of its pool."""
    settings = Settings()
    logs.configure(settings.log_format, settings.log_level)
    logging.getLogger("celery").setLevel(loglevel or logging.INFO)


setup_logging.connect(_set_up_logs)
worker_init.connect(_need_broker)
worker_shutting_down.connect(_pass_on)
