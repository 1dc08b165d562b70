"""What must hold always, whatever happens in whatever order: a state machine tries to break it.

Workers claim, write, die and come back with old leases; users cancel, pause and resume; leases run out and deadlines
pass. After every step the rows are held against the invariants.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, update

from app.core.clock import now
from app.core.database import Base, Database
from app.core.errors import WrongState
from app.jobs import leases, publishing, reporting, service
from app.jobs.leases import Lease, LeaseLost, StoredFile
from app.jobs.lifecycle import FINAL, HELD
from app.jobs.reaper import Reaper
from app.jobs.requeue import Cause
from app.jobs.service import Idempotency
from app.jobs.tables import ArtifactRow, AttemptRow, CheckpointRow, EventRow, JobRow
from tests.app.jobs.builders import CONFIG, PATIENT, PROJECT, add_inputs, job_spec, let_deadline_pass, let_lease_run_out
from worker.protocol import StepProgress

T = TypeVar("T")
FILE = StoredFile("model.safetensors", "key", 1, "0" * 64)


class Life(RuleBasedStateMachine):
    """Jobs, honest and stale workers, impatient users and a reaper on one database."""

    url: str
    jobs = Bundle("jobs")
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.database = Database(self.url, limits=PATIENT)
        self.run(self._empty())
        self.current: dict[str, int] = {}
        self.final: dict[str, str] = {}
        self.steps: dict[tuple[str, int], int] = {}
        self.keys: dict[str, str] = {}
        self.ends: dict[str, list[Cause]] = defaultdict(list)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.database.close())
        self.runner.close()

    async def _empty(self) -> None:
        async with self.database.write() as session:
            connection = await session.connection()
            await connection.run_sync(Base.metadata.drop_all)
            await connection.run_sync(Base.metadata.create_all)
        async with self.database.write() as session:
            await add_inputs(session, PROJECT)

    @rule(target=jobs, key=st.sampled_from("abcdefgh"), attempts=st.integers(1, 3))
    def submit(self, key: str, attempts: int) -> str:
        spec = job_spec(resources={"max_attempts": attempts})
        job_id = self.run(service.create(self.database, PROJECT, spec, Idempotency(key, "same", 1e6))).id
        assert self.keys.setdefault(key, job_id) == job_id, "I8: one idempotency key makes one job"
        return job_id

    @rule(target=claims, owner=st.sampled_from(["worker-1", "worker-2"]))
    def claim(self, owner: str) -> Lease | None:
        async def work() -> Lease | None:
            async with self.database.write() as session:
                return await leases.claim(session, owner=owner, queues=["any"], lease_seconds=60.0)

        lease = self.run(work())
        if lease is not None:
            assert lease.token > self.current.get(lease.job_id, 0), "I2: tokens only grow"
            self.current[lease.job_id] = lease.token
        return lease

    def write(self, lease: Lease | None, act: Callable[[Any, Lease], Awaitable[Any]]) -> bool:
        """Let a worker write; a stale one must be refused. Returns whether it was accepted."""
        if lease is None:
            return False
        held = self.run(self._row(lease.job_id)).status in HELD

        async def work() -> None:
            async with self.database.write() as session:
                await act(session, lease)

        try:
            self.run(work())
        except LeaseLost:
            return False
        assert held, "I3: only the holder of a lease writes"
        assert lease.token == self.current[lease.job_id], "I3: only the current token writes"
        return True

    async def _row(self, job_id: str) -> JobRow:
        async with self.database.read() as session:
            return (await session.scalars(select(JobRow).where(JobRow.id == job_id))).one()

    @rule(lease=claims)
    def start(self, lease: Lease | None) -> None:
        self.write(lease, leases.start)

    @rule(lease=claims)
    def beat(self, lease: Lease | None) -> None:
        self.write(lease, leases.beat)

    @rule(lease=claims, step=st.integers(0, 5))
    def progress(self, lease: Lease | None, step: int) -> None:
        report = StepProgress(step=step, total_steps=9, epoch=0.0, samples_per_second=1.0, seconds_left=None)
        if self.write(lease, lambda session, mine: reporting.record(session, mine, report, [("loss", step, 1.0)])):
            assert lease is not None
            last = self.steps.setdefault((lease.job_id, lease.attempt), 0)
            assert step >= last, "I6: steps never go back within an attempt"
            self.steps[lease.job_id, lease.attempt] = step

    @rule(lease=claims, step=st.integers(0, 5))
    def checkpoint(self, lease: Lease | None, step: int) -> None:
        self.write(lease, lambda session, mine: publishing.publish_checkpoint(session, mine, step, [FILE]))

    @rule(lease=claims)
    def succeed(self, lease: Lease | None) -> None:
        if lease is not None and self.run(self._row(lease.job_id)).status != "leased":
            self.write(lease, lambda session, mine: publishing.succeed(session, mine, [FILE], CONFIG, 1, {}))

    @rule(
        lease=claims,
        fault=st.sampled_from(["user", "system", "capacity"]),
        cause=st.sampled_from(["trainer", "service", "outside"]),
    )
    def fail(self, lease: Lease | None, fault: leases.Fault, cause: Cause) -> None:
        what = {"fault": fault, "code": "c", "message": "m", "cause": cause}
        if self.write(lease, lambda session, mine: leases.fail(session, mine, **what)):
            assert lease is not None
            self.ends[lease.job_id].append(cause)

    @rule(lease=claims)
    def release(self, lease: Lease | None) -> None:
        self.write(lease, lambda session, mine: leases.release(session, mine, "stopping"))

    @rule(lease=claims)
    def obey(self, lease: Lease | None) -> None:
        """The worker beats, and does what it is told."""

        async def act(session: Any, mine: Lease) -> None:
            orders = await leases.beat(session, mine)
            if orders.cancel:
                await leases.cancelled(session, mine)
            elif orders.pause:
                await leases.paused(session, mine)

        self.write(lease, act)

    @rule(job_id=jobs, verb=st.sampled_from(["cancel", "pause", "resume"]))
    def ask(self, job_id: str, verb: str) -> None:
        async def work() -> None:
            async with self.database.write() as session:
                if verb == "pause":
                    await service.pause(session, PROJECT, job_id, 60.0)
                else:
                    await getattr(service, verb)(session, PROJECT, job_id)

        try:
            self.run(work())
        except WrongState:
            return

    @rule(job_id=jobs)
    def lease_runs_out(self, job_id: str) -> None:
        self.run(let_lease_run_out(self.database, job_id))

    @rule(job_id=jobs)
    def deadline_passes(self, job_id: str) -> None:
        self.run(let_deadline_pass(self.database, job_id))

    @rule()
    def reap(self) -> None:
        self.run(Reaper(self.database, "reaper", 1.0, 1.0).sweep())

    @rule()
    def time_passes(self) -> None:
        async def work() -> None:
            async with self.database.write() as session:
                await session.execute(update(JobRow).values(next_run_at=now() - 1.0))

        self.run(work())

    @invariant()
    def rows_are_sound(self) -> None:
        self.run(self._check())

    async def _check(self) -> None:
        async with self.database.read() as session:
            for job in await session.scalars(select(JobRow)):
                await self._check_job(session, job)

    async def _check_job(self, session: Any, job: JobRow) -> None:
        held = job.status in HELD
        assert held == (job.lease_owner is not None) == (job.lease_expires_at is not None), "I1: a lease is held or not"
        assert job.lease_token >= self.current.get(job.id, 0), "I2: tokens only grow"
        assert (job.deadline_at is None) == (job.status in FINAL), "I5: what is not final has a deadline"
        own = len(self.ends[job.id]) - self.ends[job.id].count("outside")
        assert job.failures <= own, "only what was reported as a failure counts as one"
        if job.error is not None and job.error["code"] == "poison_job":
            assert self.ends[job.id].count("trainer") >= 2, "only a trainer's own deaths are poison"
        if job.status == "failed" and job.error is not None and job.error["fault"] not in ("user", "deadline"):
            assert own >= 1, "what a job did not cause does not fail it"
        if job.id in self.final:
            assert job.status == self.final[job.id], "I4: a final state is never left"
        if job.status in FINAL:
            self.final[job.id] = job.status
        attempts = list(await session.scalars(select(AttemptRow).where(AttemptRow.job_id == job.id)))
        assert sum(attempt.ended_at is None for attempt in attempts) == held, "I1: one attempt at a time"
        assert [attempt.token for attempt in attempts] == sorted({attempt.token for attempt in attempts}), "I2"
        events = list(await session.scalars(select(EventRow).where(EventRow.job_id == job.id).order_by(EventRow.seq)))
        assert [event.seq for event in events] == list(range(1, job.last_seq + 1)), "I7: numbers have no holes"
        changes = [event.data for event in events if event.type == "status"]
        path = ["validating", *(change["to"] for change in changes)]
        assert [change["from"] for change in changes] == path[:-1], "I7: every change has its event"
        assert path[-1] == job.status, "I7: every change has its event"
        tokens = {attempt.number: attempt.token for attempt in attempts}
        for table in (CheckpointRow, ArtifactRow):
            for row in await session.scalars(select(table).where(table.job_id == job.id)):
                assert row.token == tokens[row.attempt], "I3: published under the token of its attempt"
        published = await session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == job.id))
        assert bool(list(published)) == (job.status == "succeeded"), "I3: artifacts are there exactly after success"


BUDGET = settings(
    max_examples=20,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),  # shrinking a failure would run the databases for minutes
)


def test_the_invariants_hold_on_sqlite() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Life.url = f"sqlite+aiosqlite:///{Path(folder) / 'life.db'}"
        run_state_machine_as_test(Life, settings=BUDGET)  # type: ignore[no-untyped-call]


def test_the_invariants_hold_on_postgresql(postgres_url: str) -> None:
    Life.url = postgres_url
    run_state_machine_as_test(Life, settings=BUDGET)  # type: ignore[no-untyped-call]
