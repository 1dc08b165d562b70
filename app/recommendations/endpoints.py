"""HTTP of recommendations."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import ValidationError

from app.core.errors import FieldError, Invalid
from app.core.field_errors import of_validation
from app.core.http import errors
from app.core.json_body import JsonRoute
from app.core.services import ServicesDep
from app.core.slots import Slots
from app.projects.auth import Caller, require
from app.recipe.job import JobSpec
from app.recommendations import service
from app.recommendations.schemas import RecommendationView

router = APIRouter(prefix="/v1/recommendations", tags=["recommendations"], route_class=JsonRoute)
Reader = Annotated[Caller, Depends(require("read"))]
Top = Annotated[int, Query(ge=1, le=service.MAX_TOP, description="Most recipes in the answer.")]
_slots = Slots(1, "too_many_recommendations", "recommendations")
"""One at a time for each key: each starts a process."""


@router.post("", responses=errors(400, 413, 415, 422, 429))
async def recommend_recipes(
    services: ServicesDep, caller: Reader, document: dict[str, Any], top: Top = 3
) -> RecommendationView:
    """Recommend recipes for a job without `recipe`: learned from the project's succeeded jobs, or defaults, with the
    reason, if there is too little to learn from. Nothing is created."""
    if "recipe" in document:
        given = FieldError(
            param="recipe", message="can't be given: it is what is recommended", accepted="a job without recipe"
        )
        raise Invalid.fields([given])
    with _slots.taken(caller.key_id):
        try:
            async with services.database.read() as session:
                found = await service.gather(session, caller.project_id, document, services.settings.outside)
        except ValidationError as error:
            problems = of_validation(error, JobSpec)
            raise Invalid.fields(problems, error.error_count() - len(problems)) from None
        return await service.recommend(document, found, top)
