"""The outbox: messages to other systems are written in the transaction that causes them, and sent afterwards."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, BigInteger, Integer, String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.core.clock import now
from app.core.database import Base

if TYPE_CHECKING:
    from app.core.services import Services  # which imports FastAPI, and workers post messages too

Handler = Callable[["Services", dict[str, Any]], Awaitable[None]]
"""Sends a message, given its payload; raises on failure. It may be called twice for one message."""
HANDLERS: dict[str, Handler] = {}
"""Handlers by kind of message."""


class OutboxMessage(Base):
    """A message to send once the transaction that wrote it has committed; deleted after it is sent."""

    __tablename__ = "outbox"

    # SQLite increments only its own INTEGER automatically.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    available_at: Mapped[float] = mapped_column(index=True)
    """Earliest time of sending or retrying."""
    attempts: Mapped[int] = mapped_column(default=0)
    last_error: Mapped[str | None] = mapped_column(String(1024))
    """Error of the last try; for operators."""
    set_aside_at: Mapped[float | None]
    """When it was set aside; it is not retried unless an operator clears this."""


def handles(kind: str) -> Callable[[Handler], Handler]:
    """Register a function as the handler of a kind of messages."""

    def register(handler: Handler) -> Handler:
        if HANDLERS.setdefault(kind, handler) is not handler:
            raise ValueError(f"messages of the kind {kind!r} have two handlers")
        return handler

    return register


def post(session: AsyncSession, kind: str, payload: dict[str, Any], available_at: float | None = None) -> None:
    """Add a message to the outbox, in the caller's transaction; it is not sent before `available_at`."""
    moment = now() if available_at is None else available_at
    session.add(OutboxMessage(kind=kind, payload=payload, available_at=moment))
