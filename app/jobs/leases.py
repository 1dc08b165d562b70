"""What a worker does to a job, from its claim to its last word, all under the lease token that the claim gave.

Every function works in the caller's transaction and raises `LeaseLost` when the token is no longer the current one:
then the worker must stop at once and throw away what it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import upsert
from app.core.ids import new_id
from app.files.tables import FileRow
from app.jobs import lifecycle
from app.jobs.lifecycle import HELD, Move, Status, emit, move
from app.jobs.requeue import PAUSED_SECONDS, Cause, dispatch, requeue, settle_death
from app.jobs.tables import ArtifactRow, AttemptRow, CheckpointRow, JobRow, Metric, PhaseRow
from app.models.tables import ModelRow
from app.recipe.job import JobSpec
from app.recipe.report import summary
from app.recipe.students.model import ModelConfig

Fault = Literal["user", "system", "capacity", "deadline"]
KEPT_CHECKPOINTS = 2


class LeaseLost(Exception):
    """The job is no longer this attempt's."""


@dataclass(frozen=True)
class StoredFile:
    """A file in the object store; `name` is what it is called within its bundle or checkpoint."""

    name: str
    key: str
    size: int
    sha256: str
    media_type: str = "application/octet-stream"


@dataclass(frozen=True)
class CheckpointRef:
    """A published checkpoint to go on from."""

    id: str
    step: int
    files: list[StoredFile] = field(default_factory=list)


@dataclass(frozen=True)
class Lease:
    """The right to run a job until `seconds` after the last beat."""

    job_id: str
    project_id: str
    token: int
    attempt: int
    owner: str
    spec: JobSpec
    seconds: float
    run_seconds_left: float
    checkpoint: CheckpointRef | None


class Orders(NamedTuple):
    """What the answer to a heartbeat asks the worker to do."""

    cancel: bool
    pause: bool
    out_of_time: bool


class TrainingProgress(Protocol):
    """Where training stands; `worker.protocol.Progress` is one."""

    @property
    def step(self) -> int: ...
    @property
    def total_steps(self) -> int: ...
    @property
    def epoch(self) -> float: ...
    @property
    def samples_per_second(self) -> float: ...
    @property
    def seconds_left(self) -> float | None: ...


async def claim(
    session: AsyncSession,
    *,
    owner: str,
    queues: Sequence[str],
    lease_seconds: float,
    job_id: str | None = None,
    gpus: int = 1,
    nodes: int = 1,
) -> Lease | None:
    """Take the given job, or the best of the queues (highest priority, then oldest); none if there is nothing to do.

    It is one for no more than `nodes` machines and, of the queue `gpu`, no more than `gpus` on each.
    """
    candidate = await session.scalar(_claimable(queues, job_id, gpus, nodes))
    if candidate is None:
        return None
    job = await move(
        session,
        candidate,
        lifecycle.CLAIM,
        f"claimed by {owner}",
        lease_token=JobRow.lease_token + 1,
        lease_owner=owner,
        lease_expires_at=now() + lease_seconds,
        attempt=JobRow.attempt + 1,
        phase=None,
    )
    if job is None:
        return None
    spec = JobSpec.model_validate(job.spec)
    checkpoint = await session.get(CheckpointRow, job.checkpoint_id) if job.checkpoint_id else None
    start_step = checkpoint.step if checkpoint else 0
    left = spec.resources.max_seconds - job.run_seconds
    await session.execute(update(JobRow).where(JobRow.id == job.id).values(deadline_at=now() + left, step=start_step))
    session.add(
        AttemptRow(
            job_id=job.id,
            number=job.attempt,
            token=job.lease_token,
            worker=owner,
            start_step=start_step,
            claimed_at=now(),
        )
    )
    return Lease(
        job_id=job.id,
        project_id=job.project_id,
        token=job.lease_token,
        attempt=job.attempt,
        owner=owner,
        spec=spec,
        seconds=lease_seconds,
        run_seconds_left=left,
        checkpoint=_checkpoint_ref(checkpoint) if checkpoint else None,
    )


def _claimable(queues: Sequence[str], job_id: str | None, gpus: int, nodes: int) -> Select[str]:
    # Read from the document; jobs from before there could be several have no number.
    processes = func.coalesce(JobRow.spec["resources"]["processes"].as_integer(), 1)
    machines = func.coalesce(JobRow.spec["resources"]["nodes"].as_integer(), 1)
    statement = (
        select(JobRow.id)
        .where(JobRow.status == Status.QUEUED, JobRow.queue.in_(queues), JobRow.next_run_at <= now())
        .where(or_(JobRow.queue != "gpu", processes <= gpus), machines <= nodes)
        .order_by(JobRow.priority.desc(), JobRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)  # SQLite leaves this out: its writers come one after the other
    )
    return statement if job_id is None else statement.where(JobRow.id == job_id)


def _checkpoint_ref(row: CheckpointRow) -> CheckpointRef:
    return CheckpointRef(row.id, row.step, [StoredFile(**file) for file in row.files])


async def beat(session: AsyncSession, lease: Lease) -> Orders:
    """Extend the lease, and hear what has been asked of the job meanwhile."""
    return await _beat(session, lease, (), {})


async def _beat(session: AsyncSession, lease: Lease, conditions: tuple[Any, ...], values: dict[str, Any]) -> Orders:
    """Beat, and write `values` with the same statement; raises `LeaseLost` too when the conditions do not hold."""
    statement = (
        update(JobRow)
        .where(*_mine(lease), *conditions)
        .values(lease_expires_at=now() + lease.seconds, **values)
        .returning(JobRow.status, JobRow.deadline_at, now())
        .execution_options(synchronize_session=False)
    )
    row = (await session.execute(statement)).one_or_none()
    if row is None:
        raise LeaseLost(lease.job_id)
    status, deadline_at, moment = row
    working = status in (Status.LEASED, Status.RUNNING)
    return Orders(status == Status.CANCELLING, status == Status.PAUSING, working and moment >= (deadline_at or moment))


async def start(session: AsyncSession, lease: Lease, total_steps: int | None = None) -> None:
    """The trainer has begun. If the job is being cancelled or paused by now, it stays so: the next beat tells."""
    values: dict[str, Any] = {"started_at": func.coalesce(JobRow.started_at, now())}
    if total_steps is not None:
        values["total_steps"] = total_steps
    job = await move(session, lease.job_id, lifecycle.START, "running", token=lease.token, **values)
    if job is None:
        await beat(session, lease)
    mine = (AttemptRow.job_id == lease.job_id, AttemptRow.number == lease.attempt)
    await session.execute(update(AttemptRow).where(*mine).values(started_at=now()))


async def begin_phase(session: AsyncSession, lease: Lease, phase: str) -> None:
    """Close the phase that was open, open the next."""
    await _emit(session, lease, "phase", phase, data={"phase": phase}, phase=phase)
    open_phases = (PhaseRow.job_id == lease.job_id, PhaseRow.attempt == lease.attempt, PhaseRow.ended_at.is_(None))
    await session.execute(update(PhaseRow).where(*open_phases).values(ended_at=now()))
    row = {"job_id": lease.job_id, "attempt": lease.attempt, "phase": phase, "started_at": now(), "ended_at": None}
    await upsert(session, PhaseRow, [row], update=["ended_at"])


async def record(
    session: AsyncSession, lease: Lease, progress: TrainingProgress | None, metrics: Sequence[tuple[str, int, float]]
) -> Orders:
    """Write down progress and measured values `(name, step, value)`, and beat.

    Published steps of an attempt never go back: one that would raises `LeaseLost`.
    """
    values: dict[str, Any] = {}
    conditions: tuple[Any, ...] = ()
    if progress is not None:
        values = {
            "step": progress.step,
            "total_steps": progress.total_steps,
            "epoch": progress.epoch,
            "samples_per_second": progress.samples_per_second,
            "seconds_left": progress.seconds_left,
            "progress_at": now(),
        }
        conditions = (JobRow.step <= progress.step,)
    orders = await _beat(session, lease, conditions, values)
    rows = {
        (name, step): {"job_id": lease.job_id, "name": name, "attempt": lease.attempt, "step": step, "value": value}
        for name, step, value in metrics
    }
    if rows:
        await upsert(session, Metric, list(rows.values()), update=["value"])
    return orders


async def log(session: AsyncSession, lease: Lease, message: str, level: str = "info") -> None:
    """Put a line into the job's events."""
    await _emit(session, lease, "log", message, level)


async def publish_checkpoint(session: AsyncSession, lease: Lease, step: int, files: list[StoredFile]) -> list[str]:
    """Register an uploaded checkpoint; returns the object keys of those that it makes superfluous, to be deleted.

    Made twice, since the answer to the first commit was lost, it does nothing.
    """
    same = (CheckpointRow.job_id == lease.job_id, CheckpointRow.attempt == lease.attempt, CheckpointRow.step == step)
    if await session.scalar(select(CheckpointRow.id).where(*same)) is not None:
        return []
    checkpoint_id = new_id("ckpt")
    await _emit(
        session, lease, "checkpoint", f"checkpoint at step {step}", data={"step": step}, checkpoint_id=checkpoint_id
    )
    session.add(
        CheckpointRow(
            id=checkpoint_id,
            job_id=lease.job_id,
            attempt=lease.attempt,
            token=lease.token,
            step=step,
            files=[asdict(file) for file in files],
            created_at=now(),
        )
    )
    await session.flush()
    alive = select(CheckpointRow).where(CheckpointRow.job_id == lease.job_id, CheckpointRow.deleted_at.is_(None))
    old = (await session.scalars(alive.order_by(CheckpointRow.id.desc()).offset(KEPT_CHECKPOINTS))).all()
    for row in old:
        row.deleted_at = now()
    return [file["key"] for row in old for file in row.files]


async def give_up_checkpoint(session: AsyncSession, lease: Lease) -> None:
    """The checkpoint that the attempt was to go on from can't be used: the next attempt takes the one before it."""
    if lease.checkpoint is None:
        return
    await session.execute(update(CheckpointRow).where(CheckpointRow.id == lease.checkpoint.id).values(deleted_at=now()))
    kept = select(CheckpointRow.id).where(CheckpointRow.job_id == lease.job_id, CheckpointRow.deleted_at.is_(None))
    before = await session.scalar(kept.order_by(CheckpointRow.id.desc()).limit(1))
    message = f"the checkpoint at step {lease.checkpoint.step} can't be used"
    await _emit(session, lease, "log", message, "warning", checkpoint_id=before)


async def succeed(
    session: AsyncSession,
    lease: Lease,
    artifacts: list[StoredFile],
    config: ModelConfig,
    parameters: int,
    report: dict[str, Any],
) -> str:
    """Publish the artifacts and the model, and end the job; returns the model's id."""
    model_id = new_id("model")
    job = await _fenced(session, lease, lifecycle.SUCCEED, "succeeded", model_id=model_id, result=summary(report))
    for artifact in artifacts:
        row = {"id": new_id("art"), "job_id": job.id, "attempt": lease.attempt, "token": lease.token}
        session.add(ArtifactRow(**row, **asdict(artifact), created_at=now()))
    session.add(
        ModelRow(
            id=model_id,
            project_id=job.project_id,
            name=job.name,
            job_id=job.id,
            teacher_id=lease.spec.all_teachers[0].model if lease.spec.all_teachers else None,
            config=config.model_dump(mode="json"),
            parameters=parameters,
            report=report,
            files=[asdict(artifact) for artifact in artifacts],
            created_at=now(),
        )
    )
    return model_id


async def fail(
    session: AsyncSession,
    lease: Lease,
    *,
    fault: Fault,
    code: str,
    message: str,
    param: str | None = None,
    step: int | None = None,
    cause: Cause = "trainer",
    backoff_seconds: float = 5.0,
) -> None:
    """End the attempt with a failure. One of the user's ends the job; `app.jobs.requeue` says what others do."""
    error = {"fault": fault, "code": code, "message": message, "param": param, "step": step}
    job = await session.scalar(select(JobRow).where(*_mine(lease)).with_for_update())
    if job is None:
        raise LeaseLost(lease.job_id)
    if fault in ("system", "capacity"):
        await settle_death(session, job, error, backoff_seconds, cause=cause)
    else:
        await _fenced(session, lease, lifecycle.FAIL, message, data={"error": error}, error=error)


async def cancelled(session: AsyncSession, lease: Lease) -> None:
    """The trainer was stopped, as the user asked."""
    await _fenced(session, lease, lifecycle.CANCEL, "cancelled")


async def paused(session: AsyncSession, lease: Lease) -> None:
    """The trainer was stopped after a checkpoint, as the user asked."""
    await _fenced(session, lease, lifecycle.PAUSE, "paused", deadline_at=now() + PAUSED_SECONDS)


async def release(session: AsyncSession, lease: Lease, reason: str) -> None:
    """Hand the job back in good order: another worker goes on at once, and no failure is counted."""
    job = await session.scalar(select(JobRow).where(*_mine(lease)).with_for_update())
    if job is None:
        raise LeaseLost(lease.job_id)
    if job.status == Status.CANCELLING:
        await cancelled(session, lease)
    elif job.status == Status.PAUSING:
        await paused(session, lease)
    else:
        requeued = await _fenced(
            session, lease, lifecycle.RELEASE, f"handed back: {reason}", **requeue(lease.spec, 0.0)
        )
        dispatch(session, requeued)


async def inputs(session: AsyncSession, lease: Lease) -> dict[str, list[StoredFile]]:
    """The files behind every reference of the spec: one for a data file, the bundle for a model."""
    data = lease.spec.data
    staged: dict[str, list[StoredFile]] = {}
    for reference in {data.train, data.eval} - {None}:
        file = await session.scalar(
            select(FileRow).where(FileRow.id == reference, FileRow.project_id == lease.project_id)
        )
        if file is not None:
            staged[file.id] = [StoredFile(file.name, file.key, file.size, file.sha256)]
    for origin in lease.spec.origins.values():
        wanted = (ModelRow.id == origin.model, ModelRow.project_id == lease.project_id)
        model = await session.scalar(select(ModelRow).where(*wanted))
        if model is not None:
            staged[model.id] = [StoredFile(**file) for file in model.files]
    return staged


async def model_names(session: AsyncSession, lease: Lease) -> dict[str, str]:
    """Names of the service's models that the spec refers to, by id; those without a name are left out."""
    wanted = {origin.model for origin in lease.spec.origins.values()} - {None}
    rows = await session.execute(
        select(ModelRow.id, ModelRow.name).where(ModelRow.id.in_(wanted), ModelRow.project_id == lease.project_id)
    )
    return {model_id: name for model_id, name in rows.all() if name is not None}


def _mine(lease: Lease) -> tuple[Any, ...]:
    return (JobRow.id == lease.job_id, JobRow.lease_token == lease.token, JobRow.status.in_(HELD))


async def _fenced(session: AsyncSession, lease: Lease, step: Move, message: str, **values: Any) -> JobRow:
    job = await move(session, lease.job_id, step, message, token=lease.token, **values)
    if job is None:
        raise LeaseLost(lease.job_id)
    return job


async def _emit(
    session: AsyncSession,
    lease: Lease,
    type: str,
    message: str,
    level: str = "info",
    data: dict[str, Any] | None = None,
    **values: Any,
) -> None:
    if await emit(session, lease.job_id, lease.token, type, message, level, data or {}, **values) is None:
        raise LeaseLost(lease.job_id)
