"""Paths and parameters of requests."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from stillhouse.errors import BadRequest

Document = Mapping[str, Any]


def resource(*parts: str) -> str:
    """Path of a resource below /v1; parts are quoted. Raises `BadRequest` for a part that would change the address."""
    if any(part in ("", ".", "..") for part in parts):
        raise BadRequest(f"{'/'.join(parts)!r} is not a valid id or name")
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are neither None nor an empty list."""
    return {name: value for name, value in values.items() if value is not None and value != []}


def idempotency(key: str | None = None) -> dict[str, str]:
    """The header by which the service recognises a repeated request; by default with a new key."""
    return {"Idempotency-Key": key or uuid.uuid4().hex}
