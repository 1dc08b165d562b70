"""HTTP of the jobs resource."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse
from pydantic import AwareDatetime, BeforeValidator, StringConstraints, ValidationError

from app.core.downloads import DOWNLOAD_RESPONSES, Content, download
from app.core.errors import MAX_ERRORS, NotFound
from app.core.field_errors import of_problems, of_validation
from app.core.http import errors
from app.core.json_body import JsonRoute
from app.core.paging import Page, Paging, page
from app.core.services import ServicesDep
from app.core.views import DeletedView
from app.jobs import repository, service
from app.jobs.estimate import forecast
from app.jobs.idempotency import fingerprint
from app.jobs.lifecycle import Status
from app.jobs.reader import JobReaderDep
from app.jobs.repository import JobFilter
from app.jobs.results import result_of
from app.jobs.schemas.history import (
    ArtifactList,
    ArtifactView,
    CheckpointList,
    CheckpointView,
    EventPage,
    EventView,
    MetricsView,
    SeriesView,
)
from app.jobs.schemas.job import JobView, WarningView
from app.jobs.schemas.requests import CloneOverrides, JobPatch
from app.jobs.schemas.result import JobResultView
from app.jobs.schemas.validation import DefaultView, ValidationView
from app.jobs.service import Idempotency
from app.jobs.stream import StreamReaderDep
from app.jobs.tables import JobRow
from app.projects.auth import Caller, require
from app.recipe import defaults
from app.recipe.job import JobSpec

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonRoute)
_reading = require("read")
DATE = re.compile(r"\d{4}-\d\d-\d\d")


def _dated(text: Any) -> Any:
    """Raises ValueError for a number, which would be read as seconds or milliseconds."""
    if isinstance(text, str) and DATE.match(text) is None:
        raise ValueError("accepted: a time with a time zone, such as 2026-01-31T12:00:00Z")
    return text


Moment = Annotated[AwareDatetime, BeforeValidator(_dated)]
Reader = Annotated[Caller, Depends(_reading)]
Writer = Annotated[Caller, Depends(require("write"))]
IdempotencyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Name of this request, chosen by the client: repeated requests create one job.",
    ),
]
LabelFilter = Annotated[str, StringConstraints(pattern=r"^[^:]{1,64}:.{0,512}$")]


@router.post("", status_code=201, responses=errors(400, 409, 413, 415, 422))
async def create_job(
    services: ServicesDep, caller: Writer, spec: JobSpec, response: Response, idempotency_key: IdempotencyHeader = None
) -> JobView:
    """Submit a job. With an `Idempotency-Key`, a repeated request returns the same job."""
    idempotent = idempotency_of(
        services.settings.idempotency_seconds, idempotency_key, "create", spec.model_dump_json()
    )
    outside = services.settings.outside
    job = await service.create(services.database, caller.project_id, spec, idempotent, outside=outside)
    return _created(job, response)


def idempotency_of(keep_seconds: float, key: str | None, *request: str) -> Idempotency | None:
    """The key of a request that makes a job; none: it has none."""
    return Idempotency(key, fingerprint(*request), keep_seconds) if key is not None else None


def _created(job: JobView, response: Response) -> JobView:
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


@router.post("/validate", responses=errors(400, 413, 415, 422))
async def validate_job(services: ServicesDep, caller: Reader, document: dict[str, Any]) -> ValidationView:
    """Validate a job without creating it: returns every error, or the resolved spec with steps, memory and time."""
    try:
        spec = JobSpec.model_validate(document)
    except ValidationError as error:
        errors = of_validation(error, JobSpec)
        return ValidationView(valid=False, errors=errors, more_errors=error.error_count() - len(errors))
    async with services.database.read() as session:
        problems, facts = await service.examine(session, caller.project_id, spec, services.settings.outside)
        spec, chosen = defaults.resolve(spec, facts.teachers)
        known = None if problems else await forecast(session, caller.project_id, spec, facts)
        remarks = [] if problems else [*service.remarks_on(spec, facts), *await service.unserved(session, spec)]
    field_errors = of_problems(problems[:MAX_ERRORS])
    view = ValidationView(
        valid=not problems,
        errors=field_errors,
        more_errors=len(problems) - len(field_errors),
        spec=spec.model_dump(mode="json"),
        defaults=[DefaultView(**default._asdict()) for default in chosen],
        warnings=[WarningView(**remark._asdict()) for remark in remarks],
    )
    if known is None:
        return view
    view = view.model_copy(update={"parameters": known.parameters, "estimate": known.estimate})
    if known.plan is None:
        return view
    steps = {"steps_per_epoch": known.plan.steps_per_epoch, "total_steps": known.plan.total_steps}
    return view.model_copy(update=steps)


@router.get("", responses=errors(422))
async def list_jobs(
    services: ServicesDep,
    caller: Reader,
    paging: Paging,
    status: Annotated[list[Status] | None, Query(description="One of these states; may be repeated.")] = None,
    name: Annotated[str | None, Query(max_length=128, description="Exactly this name.")] = None,
    label: Annotated[list[LabelFilter] | None, Query(max_length=16, description="`key:value`; all must match.")] = None,
    created_after: Annotated[Moment | None, Query(description="Only jobs created later.")] = None,
    created_before: Annotated[Moment | None, Query(description="Only jobs created earlier.")] = None,
) -> Page[JobView]:
    """Jobs of the project, newest first. All filters apply before the limit."""
    labels = [(key, value) for key, _, value in (text.partition(":") for text in label or [])]
    wanted = JobFilter(status or (), name, labels, _seconds(created_after), _seconds(created_before))
    async with services.database.read() as session:
        found = await page(
            session,
            repository.listing(caller.project_id, wanted),
            JobRow.id,
            paging,
            JobRow.project_id == caller.project_id,
        )
        return found.view(await service.views(session, found.rows))


def _seconds(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment else None


class _PolledRoute(APIRoute):
    """The route of `get_job`, which waiting clients poll.

    For a plain request it bypasses FastAPI's resolution of parameters, which would take longer than everything else.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        resolving = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.scope["query_string"]:
                return await resolving(request)
            return await get_job(request.app.state.job_reader, await _reading(request), request.path_params["job_id"])

        return handle


async def get_job(jobs: JobReaderDep, caller: Reader, job_id: str) -> Response:
    """One job, with its progress, phases and, if it failed, the reason."""
    body = await jobs.read(caller.project_id, job_id)
    return Response(body, media_type="application/json")


router.add_api_route(
    "/{job_id}",
    get_job,
    methods=["GET"],
    response_model=JobView,
    responses=errors(404),
    route_class_override=_PolledRoute,
)


@router.patch("/{job_id}", responses=errors(400, 404, 409, 413, 415, 422))
async def change_job(services: ServicesDep, caller: Writer, job_id: str, patch: JobPatch) -> JobView:
    """Change the priority of a job that is queued or paused."""
    async with services.database.write() as session:
        return await service.view(
            session, await service.reprioritise(session, caller.project_id, job_id, patch.priority)
        )


@router.delete("/{job_id}", responses=errors(404, 409))
async def delete_job(services: ServicesDep, caller: Writer, job_id: str) -> DeletedView:
    """Delete a job in a final state, with its events, metrics, checkpoints and files. Its model is kept."""
    async with services.database.write() as session:
        await service.delete(session, caller.project_id, job_id)
    return DeletedView(id=job_id, object="job")


@router.get("/{job_id}/result", responses=errors(404, 409))
async def get_result(services: ServicesDep, caller: Reader, job_id: str) -> JobResultView:
    """Result of a job that succeeded: its main metric beside its teachers', and its files.

    `alone` is the newest job of the project that trained the same student on the same data without a teacher."""
    async with services.database.read() as session:
        return await result_of(session, await service.get(session, caller.project_id, job_id))


@router.post("/{job_id}/cancel", responses=errors(404, 409))
async def cancel_job(services: ServicesDep, caller: Writer, job_id: str) -> JobView:
    """Cancel a job. A running one is `cancelling` until its worker has stopped, and may still succeed before that."""
    async with services.database.write() as session:
        return await service.view(session, await service.cancel(session, caller.project_id, job_id))


@router.post("/{job_id}/pause", responses=errors(404, 409))
async def pause_job(services: ServicesDep, caller: Writer, job_id: str) -> JobView:
    """Pause a job. A running one saves a checkpoint first."""
    async with services.database.write() as session:
        stop_seconds = services.settings.stop_seconds
        return await service.view(session, await service.pause(session, caller.project_id, job_id, stop_seconds))


@router.post("/{job_id}/resume", responses=errors(404, 409))
async def resume_job(services: ServicesDep, caller: Writer, job_id: str) -> JobView:
    """Queue a paused job again; it resumes from its newest checkpoint."""
    async with services.database.write() as session:
        return await service.view(session, await service.resume(session, caller.project_id, job_id))


@router.post("/{job_id}/clone", status_code=201, responses=errors(400, 404, 409, 413, 415, 422))
async def clone_job(
    services: ServicesDep,
    caller: Writer,
    job_id: str,
    response: Response,
    overrides: CloneOverrides | None = None,
    idempotency_key: IdempotencyHeader = None,
) -> JobView:
    """Submit a copy of a resolved job, seed included, with the given fields replaced."""
    overrides = overrides or CloneOverrides()
    changes = overrides.model_dump_json(exclude_unset=True)
    idempotent = idempotency_of(services.settings.idempotency_seconds, idempotency_key, "clone", job_id, changes)
    async with services.database.read() as session:
        original = await service.get(session, caller.project_id, job_id)
    spec = service.cloned(JobSpec.model_validate(original.spec), overrides)
    clone = await service.create(
        services.database, caller.project_id, spec, idempotent, job_id, services.settings.outside
    )
    return _created(clone, response)


@router.get("/{job_id}/events", responses={**errors(404, 422, 429), 200: {"content": {"text/event-stream": {}}}})
async def list_events(
    services: ServicesDep,
    caller: Reader,
    streams: StreamReaderDep,
    request: Request,
    job_id: str,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Number of the last event already seen.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Length of the page; a stream has none.")] = 100,
    last_event_id: Annotated[
        int | None,
        Header(
            alias="Last-Event-ID",
            ge=0,
            le=2**31 - 1,
            description="For a stream: number of the last event already seen; takes precedence over `after`.",
        ),
    ] = None,
) -> EventPage:
    """Events of a job in order: a page, or with `Accept: text/event-stream` a stream that ends with the job."""
    async with services.database.read() as session:
        job = await service.get(session, caller.project_id, job_id)
        if _wants_stream(request):
            seen = after if last_event_id is None else last_event_id
            return _stream(streams.open(caller, job.id, seen))  # type: ignore[return-value]  # the other response
        rows = await repository.events_after(session, job_id, after, limit + 1)
    return EventPage(data=[EventView.of(row) for row in rows[:limit]], has_more=len(rows) > limit)


def _wants_stream(request: Request) -> bool:
    return "text/event-stream" in request.headers.get("accept", "")


def _stream(events: AsyncIterator[bytes]) -> Response:
    return EventSourceResponse(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


@router.get("/{job_id}/metrics", responses=errors(404, 422))
async def get_metrics(
    services: ServicesDep,
    caller: Reader,
    job_id: str,
    name: Annotated[list[str] | None, Query(max_length=64, description="Series to return; all by default.")] = None,
    points: Annotated[int, Query(ge=2, le=10_000, description="Approximate number of points per series.")] = 500,
) -> MetricsView:
    """Measured values over the steps of training, down-sampled on the server with the extremes of every interval."""
    async with services.database.read() as session:
        await service.get(session, caller.project_id, job_id)
        names = name or await repository.metric_names(session, job_id)
        found = [(each, await repository.series(session, job_id, each, points)) for each in names]
    return MetricsView(
        data=[
            SeriesView(name=each, steps=[step for step, _ in values], values=[value for _, value in values])
            for each, values in found
        ]
    )


@router.get("/{job_id}/checkpoints", responses=errors(404))
async def list_checkpoints(services: ServicesDep, caller: Reader, job_id: str) -> CheckpointList:
    """Checkpoints of a job from which it can resume, newest first."""
    async with services.database.read() as session:
        await service.get(session, caller.project_id, job_id)
        return CheckpointList(data=[CheckpointView.of(row) for row in await repository.checkpoints_of(session, job_id)])


@router.get("/{job_id}/artifacts", responses=errors(404))
async def list_artifacts(services: ServicesDep, caller: Reader, job_id: str) -> ArtifactList:
    """Published files of a job."""
    async with services.database.read() as session:
        await service.get(session, caller.project_id, job_id)
        return ArtifactList(data=[ArtifactView.of(row) for row in await repository.artifacts_of(session, job_id)])


@router.get("/{job_id}/artifacts/{name:path}", responses=DOWNLOAD_RESPONSES, response_class=Response)
async def download_artifact(
    services: ServicesDep, caller: Reader, request: Request, job_id: str, name: str
) -> Response:
    """One published file, or a single range of it."""
    async with services.database.read() as session:
        await service.get(session, caller.project_id, job_id)
        row = await repository.artifact(session, job_id, name)
    if row is None:
        raise NotFound("artifact", name)
    return await download(request, services.store, Content(row.name, row.key, row.size, row.sha256, row.media_type))
