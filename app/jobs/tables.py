"""Tables of jobs. The complete state of a job is in its row of `jobs`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

import app.projects.tables  # noqa: F401  # foreign keys name it
from app.core.database import Base


class JobRow(Base):
    """A job's request and state. `status` is written only by `app.jobs.lifecycle`."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_lease", "status", "lease_expires_at"),
        Index("ix_jobs_deadline", "status", "deadline_at"),
        Index("ix_jobs_list", "project_id", "id"),
        Index("ix_jobs_list_status", "project_id", "status", "id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str | None] = mapped_column(String(128))
    status: Mapped[str] = mapped_column(String(16))
    previous_status: Mapped[str | None] = mapped_column(String(16))
    status_at: Mapped[float]
    """When the status was entered."""
    deadline_at: Mapped[float | None]
    """When the status must have been left; only final states have none."""
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    """`app.recipe.job.JobSpec`, resolved: all defaults filled, the seed drawn."""
    priority: Mapped[int]
    queue: Mapped[str] = mapped_column(String(16))
    cloned_from: Mapped[str | None] = mapped_column(String(40))
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    """When the first attempt started to run."""
    finished_at: Mapped[float | None]

    attempt: Mapped[int] = mapped_column(default=0)
    """Number of claims so far; part of every object key of an attempt."""
    failures: Mapped[int] = mapped_column(default=0)
    """Attempts that failed: by a crash of their trainer, or of a dependency."""
    interruptions: Mapped[int] = mapped_column(default=0, server_default="0")
    """Attempts ended by an external cause: a lost lease, a trainer killed from outside."""
    max_attempts: Mapped[int]
    lease_token: Mapped[int] = mapped_column(default=0)
    """Incremented by every claim; each write of an attempt names its token."""
    lease_owner: Mapped[str | None] = mapped_column(String(255))
    lease_expires_at: Mapped[float | None]
    next_run_at: Mapped[float]
    """Not claimed before this time."""
    dispatched_at: Mapped[float]
    """When workers were last notified of the job."""
    run_seconds: Mapped[float] = mapped_column(default=0.0)
    """Time in seconds that workers held the job in earlier attempts."""
    death_step: Mapped[int | None] = mapped_column(BigInteger)
    """Step at which a trainer last died by itself; a second death there with no new checkpoint is a poison job."""
    death_phase: Mapped[str | None] = mapped_column(String(24))
    """Phase of that death."""
    death_checkpoint_id: Mapped[str | None] = mapped_column(String(40))
    """Newest checkpoint at that death."""

    phase: Mapped[str | None] = mapped_column(String(24))
    step: Mapped[int] = mapped_column(BigInteger, default=0)
    total_steps: Mapped[int | None] = mapped_column(BigInteger)
    epoch: Mapped[float] = mapped_column(default=0.0)
    samples_per_second: Mapped[float | None]
    seconds_left: Mapped[float | None]
    progress_at: Mapped[float | None]
    """When the attempt last reported a step."""
    checkpoint_id: Mapped[str | None] = mapped_column(String(40))
    """Newest published checkpoint, from which the next attempt resumes."""
    model_id: Mapped[str | None] = mapped_column(String(40))
    """The trained model."""
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """Why it failed: `fault`, `code`, `message`, `param`, `step`."""
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Result: `app.recipe.report.summary` of its report."""
    warnings: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    """Warnings from its validation: `code`, `param` and `message` each."""
    deleted_at: Mapped[float | None]
    """When its owner deleted it; it is hidden then."""
    last_seq: Mapped[int] = mapped_column(default=0)
    """Number of the newest event."""


# In the order of claims, so that the first is found at once, and with all columns needed to count those ahead.
Index("ix_jobs_claim", JobRow.status, JobRow.priority.desc(), JobRow.id, JobRow.queue)


class Worker(Base):
    """A worker process. It announces itself at intervals; one that has not for a while counts as gone."""

    __tablename__ = "workers"

    owner: Mapped[str] = mapped_column(String(255), primary_key=True)
    """Owner, as in its leases."""
    queues: Mapped[list[str]] = mapped_column(JSON)
    gpus: Mapped[int]
    """Most processes per machine of the jobs that it takes from the queue `gpu`."""
    nodes: Mapped[int]
    """Machines that it has for a job."""
    seen_at: Mapped[float]


class JobLabel(Base):
    """A label of a job, in a separate row so that filters can use an index."""

    __tablename__ = "job_labels"
    __table_args__ = (Index("ix_job_labels_find", "key", "value", "job_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[str] = mapped_column(String(512))


class JobInput(Base):
    """A file or model that a job uses, which is not deleted before the job is final."""

    __tablename__ = "job_inputs"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    reference: Mapped[str] = mapped_column(String(40), primary_key=True, index=True)


class AttemptRow(Base):
    """One try at a job by one worker."""

    __tablename__ = "job_attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[int]
    worker: Mapped[str] = mapped_column(String(255))
    start_step: Mapped[int] = mapped_column(BigInteger)
    """Step of the checkpoint it resumed from; 0 for a new start."""
    claimed_at: Mapped[float]
    started_at: Mapped[float | None]
    ended_at: Mapped[float | None]
    outcome: Mapped[str | None] = mapped_column(String(24))
    """`succeeded`, `failed`, `cancelled`, `paused`, `released`, `interrupted` or `lost`."""


class PhaseRow(Base):
    """A phase of an attempt, with its start and end."""

    __tablename__ = "job_phases"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    phase: Mapped[str] = mapped_column(String(24), primary_key=True)
    started_at: Mapped[float]
    ended_at: Mapped[float | None]


class EventRow(Base):
    """An event of a job. Written in the same transaction as the change that it reports."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    """1, 2, 3, … without gaps."""
    type: Mapped[str] = mapped_column(String(32))
    """`status`, `phase`, `checkpoint` or `log`."""
    level: Mapped[str] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(String(2048))
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_at: Mapped[float]


class Metric(Base):
    """A value measured at one step of one attempt."""

    __tablename__ = "job_metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(128), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    value: Mapped[float]


class CheckpointRow(Base):
    """A published state of training, from which an attempt can resume."""

    __tablename__ = "checkpoints"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    attempt: Mapped[int]
    token: Mapped[int]
    step: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    """`name`, `key`, `size` and `sha256` of each file."""
    created_at: Mapped[float]
    deleted_at: Mapped[float | None]
    """When its objects were superseded by a newer one."""


class ArtifactRow(Base):
    """A published file of a job."""

    __tablename__ = "artifacts"
    __table_args__ = (UniqueConstraint("job_id", "name"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    attempt: Mapped[int]
    token: Mapped[int]
    name: Mapped[str] = mapped_column(String(255))
    media_type: Mapped[str] = mapped_column(String(128))
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[float]


class IdempotencyKey(Base):
    """An idempotency key: requests with the same key are the same request."""

    __tablename__ = "idempotency_keys"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the request."""
    job_id: Mapped[str | None] = mapped_column(String(40))
    """The job that the request created; none while it is running."""
    locked_until: Mapped[float]
    """End of the time for the first request; after that a crash is assumed and the key is free again."""
    expires_at: Mapped[float] = mapped_column(index=True)


class SweepLease(Base):
    """One row per kind of background work: the process that does it, and when its turn expires."""

    __tablename__ = "sweep_leases"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(255))
    expires_at: Mapped[float]
