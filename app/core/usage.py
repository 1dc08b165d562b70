"""References to rows of other resources, such as files or models; a row in use is not deleted.

A resource that refers to rows of others registers a query here when it is imported. So the resource that deletes its
rows does not depend on those that refer to them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

Used = Literal["file", "model"]
FindUsers = Callable[[AsyncSession, str, str], Awaitable[list[str]]]
"""Takes the ids of a project and a row; returns ids of some of the users of the row."""
_FINDERS: dict[Used, list[FindUsers]] = {"file": [], "model": []}


def finds_users(*kinds: Used) -> Callable[[FindUsers], FindUsers]:
    """Register a query that runs before a row of these kinds is deleted."""

    def register(find: FindUsers) -> FindUsers:
        for kind in kinds:
            _FINDERS[kind].append(find)
        return find

    return register


async def users_of(session: AsyncSession, kind: Used, project_id: str, id: str) -> list[str]:
    """Ids of the users of a row, in order; none: it may be deleted."""
    found = [await find(session, project_id, id) for find in _FINDERS[kind]]
    return sorted(user for users in found for user in users)
