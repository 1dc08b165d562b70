"""Rules of the jobs resource: submission, and the operations of users on a job."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.clock import now
from app.core.database import Database
from app.core.discard import discard
from app.core.errors import Invalid, NotFound, WrongState
from app.core.field_errors import of_problems
from app.core.ids import new_id
from app.files.tables import FileRow
from app.jobs import idempotency, lifecycle, repository, workers
from app.jobs.estimate import plan_of
from app.jobs.lifecycle import FINAL, Move, Status
from app.jobs.moves import move
from app.jobs.schemas.job import JobView
from app.jobs.schemas.requests import CloneOverrides
from app.jobs.tables import JobInput, JobLabel, JobRow
from app.models.tables import ModelRow
from app.recipe import defaults
from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import ArrayFacts, FirstLine, Known
from app.recipe.job import MAX_SEED, JobSpec
from app.recipe.problem import Problem
from app.recipe.remarks import JobRemark, remarks
from app.recipe.students.model import ModelConfig
from app.recipe.teachers.teacher import Outside


@dataclass(frozen=True)
class Idempotency:
    """The client's key, the digest of its request, and how long the key is stored."""

    key: str
    digest: str
    keep_seconds: float


async def create(
    database: Database,
    project_id: str,
    spec: JobSpec,
    idempotent: Idempotency | None = None,
    cloned_from: str | None = None,
    outside: Outside = Outside(),
) -> JobView:
    """Check a job against its inputs, store it and queue it, all in one transaction; returns its view.

    `outside` are the allowed sources of its teachers, and of its student's weights, besides the service's own models.
    Raises `Invalid` with every invalid field. Nothing is stored then.
    """
    async with database.write() as session:
        if idempotent is None:
            return await view(session, await _make(session, project_id, spec, cloned_from, outside))
        request = (project_id, idempotent.key)
        made = await idempotency.reserve(session, *request, idempotent.digest, idempotent.keep_seconds)
        if made is not None:
            return await view(session, await get(session, project_id, made))
        job = await _make(session, project_id, spec, cloned_from, outside)
        await idempotency.settle(session, *request, job.id)
        return await view(session, job)


async def _make(
    session: AsyncSession, project_id: str, spec: JobSpec, cloned_from: str | None, outside: Outside
) -> JobRow:
    resolved, remarks = await _require_sound(session, project_id, spec, outside)
    return await _insert(session, project_id, resolved, remarks, cloned_from)


async def _require_sound(
    session: AsyncSession, project_id: str, spec: JobSpec, outside: Outside
) -> tuple[JobSpec, list[JobRemark]]:
    """The job with its defaults filled in, and warnings about it; raises `Invalid` with every invalid field."""
    problems, facts = await examine(session, project_id, spec, outside)
    if problems:
        raise Invalid.fields(of_problems(problems))
    resolved, _ = defaults.resolve(spec, facts.teachers)
    return resolved, remarks_on(resolved, facts)


def remarks_on(spec: JobSpec, facts: InputFacts) -> list[JobRemark]:
    """Warnings about a resolved job, as far as its samples can already be counted."""
    plan = plan_of(spec, facts)
    return list(remarks(spec, plan)) if plan else []


async def unserved(session: AsyncSession, spec: JobSpec) -> list[JobRemark]:
    """A warning if no worker would take the job now."""
    why = workers.why_unserved(spec.resources.model_dump(), await workers.present(session))
    return [JobRemark("queue_unserved", "resources.queue", why)] if why else []


async def examine(
    session: AsyncSession, project_id: str, spec: JobSpec, outside: Outside = Outside()
) -> tuple[list[Problem], InputFacts]:
    """All problems of a job that the headers of its inputs show, and the facts from these headers."""
    problems, facts = await input_facts(session, project_id, spec, outside)
    return problems + find_problems(spec, facts), facts


async def input_facts(
    session: AsyncSession, project_id: str, spec: JobSpec, outside: Outside = Outside()
) -> tuple[list[Problem], InputFacts]:
    """Facts from the headers of a job's inputs, and the problems of inputs that are missing or of another kind."""
    problems: list[Problem] = []
    train = await _data_file(session, project_id, "data.train", spec, problems)
    held_out = None
    if spec.data.eval is not None:
        held_out = await _data_file(session, project_id, "data.eval", spec, problems)
    for param in (f"data.{name}" for name in spec.data.further_files):
        if param in spec.data.files:
            await _data_file(session, project_id, param, spec, problems)
    further = {param: await _data_file(session, project_id, param, spec, problems) for param in spec.diagnostic_files}
    for path, origin in spec.origins.items():
        problems += [Problem(f"{path}.{field}", *wrong) for field, *wrong in outside.wrong(origin)]
    found = {
        origin.model: await _model(session, project_id, f"{path}.model", origin.model, problems)
        for path, origin in spec.origins.items()
        if origin.model is not None
    }
    teachers = {reference: config for reference, config in found.items() if config is not None}
    known = {param: facts for param, facts in further.items() if facts is not None}
    return problems, InputFacts(train=train, eval=held_out, teachers=teachers, further=known)


async def _data_file(
    session: AsyncSession, project_id: str, param: str, spec: JobSpec, problems: list[Problem]
) -> Known | None:
    reference = spec.references[param]
    file = await session.get(FileRow, reference, with_for_update={"read": True})  # not deleted before the commit
    if file is None or file.project_id != project_id or file.deleted_at is not None:
        problems.append(Problem(param, f"there is no file {reference!r}", "the id of an uploaded file"))
    elif file.format not in spec.data.file_formats:
        accepted = " or ".join(spec.data.file_formats)
        problems.append(Problem(param, f"file {reference!r} is {file.format}", f"{accepted}, for {spec.data.format}"))
    else:
        return _known(file)
    return None


def _known(file: FileRow) -> Known | None:
    """Facts from the headers of a sample file."""
    if "first_line" in file.summary:
        return FirstLine(file.summary["first_line"])
    arrays = file.summary.get("arrays", {})
    return {name: ArrayFacts(tuple(array["shape"]), array["dtype"]) for name, array in arrays.items()} or None


async def _model(
    session: AsyncSession, project_id: str, param: str, reference: str, problems: list[Problem]
) -> ModelConfig | None:
    model = await session.get(ModelRow, reference, with_for_update={"read": True})
    if model is None or model.project_id != project_id or model.deleted_at is not None:
        problems.append(Problem(param, f"there is no model {reference!r}", "the id of a model"))
        return None
    return ModelConfig.model_validate(model.config) if model.config else None


async def _insert(
    session: AsyncSession, project_id: str, spec: JobSpec, remarks: list[JobRemark], cloned_from: str | None
) -> JobRow:
    seed = spec.seed if spec.seed is not None else secrets.randbelow(MAX_SEED)
    resolved = spec.settled(seed, datetime.now(UTC).date())
    job = JobRow(
        id=new_id("job"),
        project_id=project_id,
        name=spec.name,
        status=Status.VALIDATING,
        status_at=now(),
        deadline_at=now() + spec.resources.max_queue_seconds,
        spec=resolved.model_dump(mode="json"),
        priority=spec.priority,
        queue=spec.resources.queue,
        cloned_from=cloned_from,
        created_at=now(),
        max_attempts=spec.resources.max_attempts,
        next_run_at=now(),
        dispatched_at=now(),
        last_seq=0,
        warnings=[remark._asdict() for remark in remarks],
    )
    session.add(job)
    await session.flush()
    session.add_all(JobInput(job_id=job.id, reference=reference) for reference in set(spec.references.values()))
    session.add_all(JobLabel(job_id=job.id, key=key, value=value) for key, value in spec.labels.items())
    admitted = await move(session, job.id, lifecycle.ADMIT, "queued")
    if admitted is None:
        raise RuntimeError("a job that was just inserted can't be admitted")
    return admitted


async def view(session: AsyncSession, job: JobRow) -> JobView:
    """The view of a job."""
    return (await views(session, [job]))[0]


async def views(session: AsyncSession, jobs: Sequence[JobRow]) -> list[JobView]:
    """The views of jobs."""
    phases = await repository.phases_of(session, [job.id for job in jobs if job.lease_token])
    waiting = [job for job in jobs if job.status == Status.QUEUED]
    positions = await repository.queue_positions(session, [job.id for job in waiting])
    present = await workers.present(session) if waiting else frozenset[workers.Capability]()
    reasons = {job.id: workers.why_unserved(job.spec["resources"], present) for job in waiting}
    return [JobView.of(job, phases.get(job.id, []), positions.get(job.id), reasons.get(job.id)) for job in jobs]


async def get(session: AsyncSession, project_id: str, job_id: str) -> JobRow:
    """The project's job; raises `NotFound` for a missing one and for another project's alike."""
    job = await session.get(JobRow, job_id, populate_existing=True)
    if job is None or job.project_id != project_id or job.deleted_at is not None:
        raise NotFound("job", job_id)
    return job


async def cancel(session: AsyncSession, project_id: str, job_id: str) -> JobRow:
    """Cancel a job at once, or ask its worker to. A job that is being cancelled already stays so."""
    return await _request(
        session,
        project_id,
        job_id,
        "cancelled",
        [(lifecycle.CANCEL_IDLE, "cancelled", {}), (lifecycle.REQUEST_CANCEL, "asked to cancel", {})],
        already=(Status.CANCELLING, Status.CANCELLED),
    )


async def pause(session: AsyncSession, project_id: str, job_id: str, stop_seconds: float) -> JobRow:
    """Pause a job at once, or ask its worker to save a checkpoint and stop."""
    in_time = {"deadline_at": now() + 2 * stop_seconds}
    return await _request(
        session,
        project_id,
        job_id,
        "paused",
        [(lifecycle.PAUSE_IDLE, "paused", {}), (lifecycle.REQUEST_PAUSE, "asked to pause", in_time)],
        already=(Status.PAUSING, Status.PAUSED),
    )


async def resume(session: AsyncSession, project_id: str, job_id: str) -> JobRow:
    """Queue a paused job again; it resumes from its newest checkpoint."""
    moves: list[tuple[Move, str, dict[str, Any]]] = [(lifecycle.RESUME, "resumed", {})]
    return await _request(session, project_id, job_id, "resumed", moves, already=(Status.QUEUED,))


async def _request(
    session: AsyncSession,
    project_id: str,
    job_id: str,
    verb: str,
    moves: list[tuple[Move, str, dict[str, Any]]],
    already: tuple[Status, ...],
) -> JobRow:
    """Make the first legal move of `moves`; a request for the current state changes nothing."""
    job = await get(session, project_id, job_id)
    for step, message, values in moves:
        moved = await move(session, job_id, step, message, **values)
        if moved is not None:
            return moved
    job = await get(session, project_id, job_id)
    if job.status in already:
        return job
    raise WrongState("wrong_state", f"a job that is {job.status} can't be {verb}", param="status")


async def reprioritise(session: AsyncSession, project_id: str, job_id: str, priority: int) -> JobRow:
    """Change the priority of a job that is still queued."""
    job = await get(session, project_id, job_id)
    statement = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.status.in_((Status.QUEUED, Status.PAUSED)))
        .values(priority=priority)
        .returning(JobRow)
        .execution_options(populate_existing=True, synchronize_session=False)
    )
    changed = (await session.scalars(statement)).one_or_none()
    if changed is None:
        raise WrongState("wrong_state", f"the priority of a job that is {job.status} can't be changed", param="status")
    return changed


async def delete(session: AsyncSession, project_id: str, job_id: str) -> None:
    """Delete a job in a final state, with its events, metrics, checkpoints and files. Its model is kept, with the
    files that both share; raises `WrongState` for a job that is not final."""
    job = await get(session, project_id, job_id)
    mine = (JobRow.id == job_id, JobRow.status.in_(FINAL), JobRow.deleted_at.is_(None))
    gone = update(JobRow).where(*mine).values(deleted_at=now(), checkpoint_id=None).returning(JobRow.id)
    if await session.scalar(gone.execution_options(synchronize_session=False)) is None:
        message = f"a job that is {job.status} can't be deleted; cancel it first"
        raise WrongState("wrong_state", message, param="status")
    discard(session, await repository.remove_history(session, job_id))


def cloned(original: JobSpec, overrides: CloneOverrides) -> JobSpec:
    """The original's spec with the given fields replaced; without any it repeats the job, seed included."""
    given = {name: getattr(overrides, name) for name in overrides.model_fields_set}
    return original.model_copy(update=given)
