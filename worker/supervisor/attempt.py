"""One attempt at a job: holds the lease, supervises the trainer, relays its reports, publishes its files.

Concurrent activities are small coroutines: the work, the heartbeat, the guard of the lease, the uploads
of checkpoints, and watchers for orders, for the worker's stop and for a trainer that hangs. The first that ends decides
how the attempt ends. Every write names the lease's token; without it, the trainer is killed and nothing is written.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import NoReturn

from sqlalchemy.ext.asyncio import AsyncSession

from app.core import logs
from app.core.database import DATABASE_LOST
from app.core.tasks import is_set
from app.jobs import leases, publishing, reporting
from app.jobs.inputs import input_files, model_names
from app.jobs.leases import Lease, LeaseLost, Orders, StoredFile
from worker.limits import note_of
from worker.memory import killed_from_outside, oom_kills
from worker.protocol import (
    TRAINER_KILLED,
    CheckpointSaved,
    Failed,
    Finished,
    Log,
    Metrics,
    PhaseBegan,
    Report,
    Start,
    StepProgress,
    Stop,
    Stopped,
)
from worker.supervisor.access import Access
from worker.supervisor.context import Context
from worker.supervisor.endings import BAD_CHECKPOINT, Ending, Failure, HandBack, failure_from, reported
from worker.supervisor.publisher import Publisher
from worker.supervisor.race import race, unbroken, wait_past
from worker.supervisor.staging import stage
from worker.supervisor.trainer_process import TrainerProcess
from worker.supervisor.watchdog import Hung, Watchdog

FENCE_MARGIN = 0.1
"""Remaining share of the lease at which a trainer is killed whose supervisor can't send heartbeats."""
BATCH = 1000
"""Most reports, and most metrics, in one statement."""

logger = logging.getLogger(__name__)


async def run_next(context: Context, job_id: str | None = None) -> bool:
    """Claim the given job, or the first in the queues, and run it; false if there was nothing to claim."""
    # Counted from before the request, so that it never ends later than in the database.
    held_until = time.monotonic() + context.settings.lease_seconds
    lease = await unbroken(_claim(context, job_id))
    if lease is None:
        return False
    await Attempt(lease, context, held_until).run()
    return True


async def _claim(context: Context, job_id: str | None) -> Lease | None:
    settings = context.settings
    async with context.database.write() as session:
        return await leases.claim(
            session,
            owner=context.owner,
            queues=context.queues,
            lease_seconds=settings.lease_seconds,
            job_id=job_id,
            gpus=settings.worker_gpus,
            nodes=settings.worker_nodes,
        )


class Attempt:
    """One try at a job; `run` returns once nothing of it is left on this machine."""

    def __init__(self, lease: Lease, context: Context, held_until: float) -> None:
        self._lease, self._context, self._timeouts = lease, context, context.timeouts
        self._held_until = held_until
        self._folder = context.scratch.folder(lease.job_id, f"a{lease.attempt}")
        self._access = Access(lease, context)
        self._publisher = Publisher(self._access, self._folder)
        self._watchdog = Watchdog(self._timeouts.hang, self._timeouts.hang_steps)
        self._trainer: TrainerProcess | None = None
        self._oom_kills = deque([oom_kills()], maxlen=2)
        self._step: int | None = None
        self._flushed_at = 0.0
        self._ordered_end: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._pause = asyncio.Event()
        self._leaving: str | None = None
        self._result_received = asyncio.Event()

    async def run(self) -> None:
        logs.job_id.set(self._lease.job_id)
        try:
            await race(self._see_through(), self._beat(), self._guard_lease())
        except LeaseLost:
            logger.warning("%s: lost the lease of attempt %d", self._lease.job_id, self._lease.attempt)
        finally:
            await unbroken(self._clear())
            logs.job_id.set(None)

    async def _see_through(self) -> None:
        try:
            await race(
                self._work(),
                self._publisher.publish_checkpoints(),
                self._await_orders(),
                self._leave_when(self._pause, "paused"),
                self._leave_when(self._context.stop, "its worker stops"),
            )
        except Ending as ending:
            await self._settle(ending)
        except LeaseLost:
            raise
        except Exception as error:
            failure = failure_from(error)
            if failure.fault != "user":
                logger.exception("%s: attempt %d failed", self._lease.job_id, self._lease.attempt)
            await self._settle(failure)

    # ---- the work

    async def _work(self) -> None:
        trainer = await self._start_trainer()
        try:
            finished = await race(self._relay(trainer), self._watchdog.watch())
        except Hung:
            seconds = round(self._watchdog.limit)
            raise Failure("system", "hung", f"the trainer sent no report for {seconds} s") from None
        await trainer.end()  # it has sent its result: from here on nothing changes its files
        await self._publisher.publish_bundle(finished)

    async def _start_trainer(self) -> TrainerProcess:
        self._context.spares.refill()
        inputs, names = await self._access.write(_begin_staging)
        self._refuse_missing(inputs)
        cache = self._context.teacher_cache(self._lease.project_id)
        make = partial(stage, self._context.sources, self._lease, inputs, self._folder, cache, names)
        await self._access.patiently(make)
        self._trainer = trainer = await self._context.spares.take()
        self._watchdog.observe(None)
        await trainer.send(Start(folder=str(self._folder)))
        await self._access.write(leases.start)
        return trainer

    def _refuse_missing(self, inputs: dict[str, list[StoredFile]]) -> None:
        for param, reference in self._lease.spec.references.items():
            if reference not in inputs:
                raise Failure("user", "missing_input", f"{reference} does not exist any more", param)

    async def _relay(self, trainer: TrainerProcess) -> Finished:
        """Relay the trainer's reports up to its result; raises an `Ending` unless that is `Finished`."""
        while True:
            reports = await self._collect(trainer)
            await self._flush(reports)
            match reports[-1]:
                case CheckpointSaved() as saved:
                    self._publisher.offer(saved)
                case StepProgress():
                    self._context.spares.refill()  # not before training runs: warming up would delay its start
                case None:
                    raise await self._death(trainer)
                case Finished() | Stopped() | Failed() as last:
                    self._result_received.set()
                    return self._judge(last)

    async def _collect(self, trainer: TrainerProcess) -> list[Report | None]:
        """Progress and metrics that may be written together, up to the first report that must not wait."""
        reports = [await self._read(trainer)]
        soonest = asyncio.get_running_loop().time() + self._timeouts.gather
        with suppress(TimeoutError):
            async with asyncio.timeout_at(max(soonest, self._flushed_at + self._timeouts.flush)):
                while isinstance(reports[-1], StepProgress | Metrics) and len(reports) < BATCH:
                    reports.append(await self._read(trainer))
        return reports

    async def _read(self, trainer: TrainerProcess) -> Report | None:
        report = await trainer.read()
        self._watchdog.observe(report)
        if isinstance(report, StepProgress):
            self._step = report.step
        return report

    async def _flush(self, reports: list[Report | None]) -> None:
        """Write reports, with a heartbeat in the same commit, so that orders reach an active trainer at once."""
        if any(isinstance(report, StepProgress | Metrics | Log | PhaseBegan) for report in reports):
            asked_at = time.monotonic()
            self._renew(asked_at, await self._access.write(partial(_record, reports=reports)))
        if isinstance(
            reports[-1], StepProgress | Metrics
        ):  # not after a phase began, so that its first step is visible at once
            self._flushed_at = asyncio.get_running_loop().time()

    def _judge(self, last: Finished | Stopped | Failed) -> Finished:
        match last:
            case Finished():
                return last
            case Failed():
                self._step = self._step if last.step is None else last.step
                raise reported(last)
            case Stopped() if self._leaving is not None:
                raise HandBack(self._leaving)
            case Stopped():
                raise Failure("system", "trainer_left", "the trainer stopped without a request")

    async def _death(self, trainer: TrainerProcess) -> Failure:
        """The failure of a trainer that ended without a result."""
        status = await trainer.exited(self._timeouts.kill)
        if status is None:
            return Failure("system", "trainer_died", "the trainer stopped responding")
        if status == -signal.SIGKILL and oom_kills() > self._oom_kills[0]:
            return Failure("capacity", "out_of_memory", "the trainer was killed: the machine ran out of memory")
        if (note := note_of(self._folder, trainer.pid)) and (cause := note.explain(status)):
            return Failure(cause.fault, cause.code, cause.message, cause.param)
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        if killed_from_outside(status):
            return Failure("system", TRAINER_KILLED, f"the trainer {how}", cause="outside")
        return Failure("system", "trainer_died", f"the trainer {how}")

    # ---- the watchers

    async def _beat(self) -> NoReturn:
        while True:
            asked_at = time.monotonic()
            try:
                orders = await self._access.once(leases.beat)
            except DATABASE_LOST:
                logger.warning("%s: no heartbeat: the database can't be reached", self._lease.job_id, exc_info=True)
                await asyncio.sleep(self._timeouts.retry)
                continue
            self._renew(asked_at, orders)
            self._oom_kills.append(oom_kills())  # of the last beats only: others on the machine run out of memory too
            self._context.tick()
            await asyncio.sleep(self._context.settings.heartbeat_seconds)

    async def _guard_lease(self) -> NoReturn:
        """Kill the trainer before the lease expires without a heartbeat: no later attempt may find it alive."""
        margin = FENCE_MARGIN * self._lease.seconds
        await wait_past(lambda: self._held_until - margin)
        if self._trainer is not None:
            self._trainer.kill()
        raise LeaseLost

    def _renew(self, asked_at: float, orders: Orders) -> None:
        """Note that the lease was extended, at some time after `asked_at`, and follow the orders in the reply."""
        self._held_until = max(self._held_until, asked_at + self._lease.seconds)
        if orders.pause:
            self._pause.set()
        if self._ordered_end.done():
            return
        if orders.cancel:
            self._ordered_end.set_result(HandBack("cancelled", salvage=False))
        elif orders.out_of_time:
            limit = self._lease.spec.resources.max_seconds
            message = f"the job ran for longer than {limit:g} s"
            self._ordered_end.set_result(Failure("deadline", "out_of_time", message, "resources.max_seconds"))

    async def _await_orders(self) -> NoReturn:
        raise await asyncio.shield(self._ordered_end)

    async def _leave_when(self, asked: asyncio.Event, reason: str) -> NoReturn:
        """Once `asked` is set, make the trainer save its state and exit. The relay receives its further reports."""
        await asked.wait()
        self._leaving = reason
        if self._trainer is None:
            raise HandBack(reason)
        await self._trainer.send(Stop())
        if not await is_set(self._result_received, self._context.settings.stop_seconds):
            raise HandBack(reason)
        await asyncio.Future()
        raise AssertionError("unreachable")

    # ---- the end

    async def _settle(self, ending: Ending) -> None:
        """End the trainer, save its last checkpoint, and write the job's new state."""
        if self._trainer is not None:
            await self._trainer.end(self._timeouts.kill)
        if ending.salvage:
            await self._publisher.salvage()
        match ending:
            case HandBack(reason=reason):
                await self._access.write(partial(leases.release, reason=reason))
            case Failure():
                await self._fail(ending)

    async def _fail(self, failure: Failure) -> None:
        if failure.fault == "user":
            fields = (self._lease.attempt, failure.param or failure.code, failure.message)
            logger.info("%s: attempt %d ended by an error of the user: %s: %s", self._lease.job_id, *fields)
        else:
            tail = self._trainer.tail() if self._trainer else ""
            logger.error("%s: %s; stderr of the trainer ends with:\n%s", self._lease.job_id, failure.message, tail)
        if failure.code == BAD_CHECKPOINT:
            await self._access.write(publishing.give_up_checkpoint)
        await self._access.write(
            partial(
                leases.fail,
                fault=failure.fault,
                code=failure.code,
                message=failure.message,
                param=failure.param,
                step=self._step,
                cause=failure.cause,
                backoff_seconds=self._context.settings.retry_backoff_seconds,
            )
        )

    async def _clear(self) -> None:
        if self._trainer is not None:
            await self._trainer.close()
        await asyncio.to_thread(self._context.scratch.remove, self._folder)
        if not self._context.stop.is_set():
            self._context.spares.refill()


async def _begin_staging(session: AsyncSession, lease: Lease) -> tuple[dict[str, list[StoredFile]], dict[str, str]]:
    await reporting.begin_phase(session, lease, "staging")
    return await input_files(session, lease), await model_names(session, lease)


async def _record(session: AsyncSession, lease: Lease, reports: list[Report | None]) -> Orders:
    """Write a batch of reports in order. Values that are not finite can't be plotted, and are omitted."""
    progress = next((report for report in reversed(reports) if isinstance(report, StepProgress)), None)
    metrics = [
        (name, report.step, value)
        for report in reports
        if isinstance(report, Metrics)
        for name, value in report.values.items()
        if math.isfinite(value)
    ]
    orders = None
    for start in range(0, max(len(metrics), 1 if progress else 0), BATCH):
        orders = await reporting.record(session, lease, progress, metrics[start : start + BATCH])
    match reports[-1]:
        case PhaseBegan(phase=phase):
            await reporting.begin_phase(session, lease, phase)
        case Log(message=message, level=level):
            await reporting.log(session, lease, message, level)
    return orders or await leases.beat(session, lease)
