"""HTTP of diagnoses: diagnostics of a stored model, run as a job that trains nothing."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field, ValidationError

from app.core.errors import Invalid
from app.core.field_errors import of_validation
from app.core.http import errors
from app.core.json_body import JsonRoute
from app.core.services import ServicesDep
from app.jobs import service
from app.jobs.endpoints import IdempotencyHeader, Writer, idempotency_of
from app.jobs.schemas.job import JobView
from app.models.service import get_model
from app.models.tables import ModelRow
from app.recipe.base import Spec
from app.recipe.data.sources import AnyData
from app.recipe.job import MAX_SEED, EvaluationSpec, JobSpec, Labels, Name, Resources
from app.recipe.students.model import ModelConfig
from app.recipe.tasks import TaskName
from app.recipe.teachers.teacher import Teacher

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=JsonRoute)


class DiagnosisRequest(Spec):
    """Evaluation and diagnostics of a stored model; the fields are those of a job."""

    data: AnyData
    """Data to run them on. The classes are the model's, unless `class_order` or `classes` is given."""
    evaluation: EvaluationSpec
    """Evaluation, and its diagnostics."""
    teachers: Annotated[list[Teacher], Field(max_length=8)] = []
    """Models to analyse beside it."""
    task: TaskName | None = None
    """Task of the model; none: that of its description."""
    name: Name | None = None
    """Name of the job; names may repeat."""
    labels: Labels = {}
    """Free key-value pairs to find the job by."""
    resources: Resources = Resources()
    """Machines and time limits of the job."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of all random draws; none: one is drawn and recorded."""


@router.post("/{model_id}/diagnostics", status_code=201, responses=errors(400, 404, 409, 413, 415, 422))
async def diagnose_model(
    model_id: str,
    wanted: DiagnosisRequest,
    caller: Writer,
    services: ServicesDep,
    response: Response,
    idempotency_key: IdempotencyHeader = None,
) -> JobView:
    """Run diagnostics of a stored model: a job that trains nothing, whose artifacts are its report and pictures. With
    an `Idempotency-Key`, a repeated request returns the same job."""
    settings = services.settings
    request = ("diagnose", model_id, wanted.model_dump_json())
    idempotent = idempotency_of(settings.idempotency_seconds, idempotency_key, *request)
    async with services.database.read() as session:
        model = await get_model(session, caller.project_id, model_id)
    try:
        spec = JobSpec.model_validate(job_document(model, wanted))
    except ValidationError as error:
        raise Invalid.fields(of_validation(error, JobSpec)) from None
    job = await service.create(services.database, caller.project_id, spec, idempotent, outside=settings.outside)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return job


def job_document(model: ModelRow, wanted: DiagnosisRequest) -> dict[str, Any]:
    """The job that runs the diagnostics of `model`."""
    config = ModelConfig.model_validate(model.config) if model.config else None
    document = wanted.model_dump(mode="json", exclude_unset=True)
    described = {"task": config.task} if config is not None else {}
    given = {name: value for name, value in document.items() if value is not None}
    if wanted.data.declared_classes is None and config is not None:
        given["data"] |= _classes(config)
    return {
        **described,
        **given,
        "student": {"architecture": "pretrained", "model": model.id},
        "recipe": {"losses": [], "method": {"kind": "untrained"}},
        "export": ["safetensors"],
    }


def _classes(config: ModelConfig) -> dict[str, Any]:
    """Fields of `data` with the model's classes."""
    return {"class_order": config.class_names} if config.class_names else {"classes": config.classes}
