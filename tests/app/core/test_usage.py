"""What is used is found by every resource that may use it."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

import app.main  # noqa: F401  # all resources
from app.core import usage
from app.core.usage import finds_users, users_of
from app.jobs.repository import jobs_using
from app.models.repository import models_using


async def test_the_users_of_every_resource_are_given_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_FINDERS", {"file": [], "model": []})

    @finds_users("file", "model")
    async def jobs(session: AsyncSession, project_id: str, id: str) -> list[str]:
        return [f"job_of_{project_id}_{id}"]

    @finds_users("file")
    async def albums(session: AsyncSession, project_id: str, id: str) -> list[str]:
        return [f"album_of_{id}"]

    session = AsyncSession()
    assert await users_of(session, "file", "p", "f") == ["album_of_f", "job_of_p_f"]
    assert await users_of(session, "model", "p", "m") == ["job_of_p_m"]


def test_jobs_and_models_are_asked_before_a_file_goes_and_jobs_before_a_model() -> None:
    assert set(usage._FINDERS["file"]) == {jobs_using, models_using}
    assert usage._FINDERS["model"] == [jobs_using]
