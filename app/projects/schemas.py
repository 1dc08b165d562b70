"""Requests and responses of projects and keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from app.core.clock import Time
from app.core.views import View
from app.projects.auth import Scope
from app.projects.tables import ApiKey, Project
from app.recipe.base import Spec
from app.recipe.job import Name


def _distinct(scopes: list[Scope]) -> list[Scope]:
    return sorted(set(scopes))


class KeyRequest(Spec):
    """A key to be created."""

    name: Name
    """Name of the key, such as its purpose."""
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3), AfterValidator(_distinct)] = ["read", "write"]
    """Permissions of the key: `read` and `write` apply to everything in its project but keys, which need `admin`."""
    expires_in_seconds: float | None = Field(None, gt=0.0, le=3.2e9)
    """Lifetime of the key; none: until it is revoked."""


class KeyView(View):
    """A key, without its secret."""

    id: str
    """Id of the key, which is not secret."""
    object: Literal["key"] = "key"
    name: str
    """Name of the key."""
    hint: str
    """First characters of the key."""
    scopes: list[Scope]
    """Permissions of the key."""
    created_at: Time
    """When it was created."""
    expires_at: Time | None
    """When it expires; null: never."""
    revoked_at: Time | None
    """When it was revoked; null: it was not."""
    last_used_at: Time | None
    """Last use, to the minute."""

    @classmethod
    def of(cls, row: ApiKey) -> KeyView:
        return cls.model_validate(row, from_attributes=True)


class NewKeyView(KeyView):
    """A new key: the only response that shows it."""

    key: str
    """The key itself."""


class ProjectView(View):
    """A tenant."""

    id: str
    """Id of the project."""
    object: Literal["project"] = "project"
    name: str
    """Name of the project."""
    created_at: Time
    """When it was created."""

    @classmethod
    def of(cls, row: Project) -> ProjectView:
        return cls.model_validate(row, from_attributes=True)
