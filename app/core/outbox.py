"""The outbox: what must be told to the outside is written in the transaction that decides it, and sent afterwards."""

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
"""Sends a message, given its payload; raises if it could not. It may be called twice for one message."""
HANDLERS: dict[str, Handler] = {}
"""By the kind of message."""


class OutboxMessage(Base):
    """A message to send once the transaction that wrote it has committed; deleted when it was sent."""

    __tablename__ = "outbox"

    # SQLite counts only its own INTEGER up by itself.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    available_at: Mapped[float] = mapped_column(index=True)
    """When it is sent, or tried again, at the earliest."""
    attempts: Mapped[int] = mapped_column(default=0)
    last_error: Mapped[str | None] = mapped_column(String(1024))
    """Why the last try failed; for operators."""
    set_aside_at: Mapped[float | None]
    """When it was given up; it is not tried again unless an operator clears this."""


def handles(kind: str) -> Callable[[Handler], Handler]:
    """Make a function the handler of a kind of messages."""

    def register(handler: Handler) -> Handler:
        if HANDLERS.setdefault(kind, handler) is not handler:
            raise ValueError(f"messages of the kind {kind!r} have two handlers")
        return handler

    return register


def post(session: AsyncSession, kind: str, payload: dict[str, Any], available_at: float | None = None) -> None:
    """Put a message into the outbox, in the caller's transaction; it is not sent before `available_at`."""
    moment = now() if available_at is None else available_at
    session.add(OutboxMessage(kind=kind, payload=payload, available_at=moment))
