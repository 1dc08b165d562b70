"""Deletes objects of the store through the outbox, so that a crash after the commit leaves none behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.core.outbox import handles, post

if TYPE_CHECKING:
    from app.core.services import Services  # which imports FastAPI

DELETE_OBJECTS = "delete_objects"
"""Kind of the outbox messages that delete objects (`keys`)."""


def discard(session: AsyncSession, keys: list[str]) -> None:
    """Delete objects once the caller's transaction has committed."""
    if keys:
        post(session, DELETE_OBJECTS, {"keys": keys})


@handles(DELETE_OBJECTS)
async def _delete_objects(services: Services, payload: dict[str, Any]) -> None:
    await services.store.delete(payload["keys"])
