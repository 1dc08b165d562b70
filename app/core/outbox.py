"""The outbox: what must be told to the outside is written in the transaction that decides it, and sent afterwards."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Integer, String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.core.clock import now
from app.core.database import Base


class OutboxMessage(Base):
    """A message to send once the transaction that wrote it has committed; deleted when it was sent."""

    __tablename__ = "outbox"

    # SQLite counts only its own INTEGER up by itself.
    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    available_at: Mapped[float] = mapped_column(index=True)
    attempts: Mapped[int] = mapped_column(default=0)


def post(session: AsyncSession, kind: str, payload: dict[str, Any], available_at: float | None = None) -> None:
    """Put a message into the outbox, in the caller's transaction; it is not sent before `available_at`."""
    moment = now() if available_at is None else available_at
    session.add(OutboxMessage(kind=kind, payload=payload, available_at=moment))
