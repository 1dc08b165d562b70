"""Stored jobs say `recipe.method` where they said `recipe.generation`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

JOBS = sa.table("jobs", sa.column("id", sa.String()), sa.column("spec", sa.JSON()))


def upgrade() -> None:
    _rewrite(_to_method)


def downgrade() -> None:
    """A job of another method than the two has no form in the earlier contract, and stays as it is."""
    _rewrite(_to_generation)


def _rewrite(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    connection = op.get_bind()
    for job_id, spec in connection.execute(sa.select(JOBS.c.id, JOBS.c.spec)).all():
        if (changed := change(spec)) != spec:
            connection.execute(JOBS.update().where(JOBS.c.id == job_id).values(spec=changed))


def _to_method(spec: dict[str, Any]) -> dict[str, Any]:
    recipe = dict(spec["recipe"])
    generation = recipe.pop("generation", None)
    return {**spec, "recipe": recipe if generation is None else {**recipe, "method": generation}}


def _to_generation(spec: dict[str, Any]) -> dict[str, Any]:
    recipe = dict(spec["recipe"])
    kind = recipe.get("method", {"kind": "supervised"})["kind"]
    if kind == "supervised":
        recipe.pop("method", None)
    elif kind in ("on-policy", "sequence-level"):
        recipe["generation"] = recipe.pop("method")
    return {**spec, "recipe": recipe}
