"""Authentication: maps the bearer key of a request to a project and its scopes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from fastapi import Depends, Request
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from fastapi.security.utils import get_authorization_scheme_param
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as ASGIScope

from app.core.database import Database
from app.core.errors import Forbidden, Unauthorized
from app.projects import keys, repository

log = logging.getLogger("stillhouse.auth")
Scope = Literal["read", "write", "admin"]
CACHE_SECONDS = 5.0
"""Time for which a key is cached, so that a revoked or expired one may still work."""
CACHE_SIZE = 10_000
PROTECTED = "/v1/"
"""Prefix of the addresses that need a key."""
_CALLER = "caller"


@dataclass(frozen=True)
class Caller:
    """The key and project of a request."""

    project_id: str
    key_id: str
    scopes: frozenset[str]


class _Known(NamedTuple):
    caller: Caller
    until: float


@dataclass
class KeyRing:
    """Finds callers by their keys, and caches them for a few seconds so that a read costs no second query."""

    database: Database
    secret: bytes
    when_forgotten: Callable[[str], None] | None = None
    """Called with the id of a key that this process has just revoked."""
    _known: dict[str, _Known] = field(default_factory=dict)
    _notes: set[asyncio.Task[None]] = field(default_factory=set)

    async def caller(self, key: str) -> Caller | None:
        """The caller with this key; none if it is malformed, unknown, revoked or expired."""
        if not keys.is_well_formed(key):
            return None
        digest = keys.digest(key, self.secret)
        known = self._known.get(digest)
        if known and known.until > time.monotonic():
            return known.caller
        return await self._look_up(digest)

    async def _look_up(self, digest: str) -> Caller | None:
        async with self.database.read() as session:
            row = await repository.valid_key(session, digest)
        if row is None:
            self._known.pop(digest, None)
            return None
        key_id, project_id, scopes, unnoted = row
        if unnoted:
            self._note(key_id)
        if len(self._known) >= CACHE_SIZE:
            self._known.clear()
        caller = Caller(project_id, key_id, frozenset(scopes))
        self._known[digest] = _Known(caller, time.monotonic() + CACHE_SECONDS)
        return caller

    def forget(self, key_id: str) -> None:
        """Drop a key that this process has just revoked; the caches of other processes expire."""
        self._known = {digest: known for digest, known in self._known.items() if known.caller.key_id != key_id}
        if self.when_forgotten is not None:
            self.when_forgotten(key_id)

    def _note(self, key_id: str) -> None:
        """Record the use of a key without delaying its request."""
        task = asyncio.create_task(self._write_note(key_id))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _write_note(self, key_id: str) -> None:
        try:
            async with self.database.write() as session:
                await repository.note_use(session, key_id)
        except SQLAlchemyError:
            log.warning("the use of key %s could not be recorded", key_id, exc_info=True)

    async def close(self) -> None:
        """Wait until all uses are recorded."""
        await asyncio.gather(*self._notes)


class Authentication:
    """Middleware that rejects API requests without a valid key, before any other check.

    `open` are the addresses under `PROTECTED` that need no key.
    """

    def __init__(self, app: ASGIApp, open: Collection[str]) -> None:
        self.app, self.open = app, open

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PROTECTED) and scope["path"] not in self.open:
            scope["state"][_CALLER] = await _authenticate(scope["app"].state.key_ring, Headers(scope=scope))
        await self.app(scope, receive, send)


async def _authenticate(ring: KeyRing, headers: Headers) -> Caller:
    scheme, key = get_authorization_scheme_param(headers.get("Authorization"))
    caller = await ring.caller(key) if scheme.lower() == "bearer" else None
    if caller is None:
        reason = "the key is not valid" if key else "no key was given"
        challenge = {"WWW-Authenticate": "Bearer"}
        raise Unauthorized("invalid_key", f"{reason}: send `Authorization: Bearer still_…`", headers=challenge)
    return caller


async def _ring(request: Request) -> KeyRing:
    ring: KeyRing = request.app.state.key_ring
    return ring


Ring = Annotated[KeyRing, Depends(_ring)]


class require(SecurityBase):
    """A dependency that requires a key with this scope, and returns the caller."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.scheme_name = "HTTPBearer"
        self.model = HTTPBearer(description="An API key: `Authorization: Bearer still_…`")

    async def __call__(self, request: Request) -> Caller:
        """The caller. Raises `Forbidden`. An address without authentication has no caller, which is a bug."""
        caller: Caller = request.scope["state"][_CALLER]
        if self.scope not in caller.scopes:
            raise Forbidden("missing_scope", f"this needs a key with the scope {self.scope!r}")
        return caller
