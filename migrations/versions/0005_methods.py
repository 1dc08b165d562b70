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
BATCH = 500
"""Jobs that are read at a time."""


def upgrade() -> None:
    _rewrite(_to_method)


def downgrade() -> None:
    """A job of another method than the two has no form in the earlier contract, and stays as it is."""
    _rewrite(_to_generation)


def _rewrite(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """A batch of jobs at a time, since all documents together may be larger than the memory."""
    connection, last = op.get_bind(), ""
    while rows := connection.execute(sa.select(JOBS).where(JOBS.c.id > last).order_by(JOBS.c.id).limit(BATCH)).all():
        for job_id, spec in rows:
            if (changed := change(spec)) != spec:
                connection.execute(JOBS.update().where(JOBS.c.id == job_id).values(spec=changed))
        last = rows[-1].id


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
