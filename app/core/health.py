"""Health of the service, for `/healthz`."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Annotated, Literal

from fastapi import Depends, Request
from sqlalchemy.exc import SQLAlchemyError

from app.core.relay import set_aside
from app.core.services import Services
from app.core.views import View

log = logging.getLogger("stillhouse.health")
FRESH_SECONDS = 2.0
"""Time for which a result is reused: anyone may request it, and the store's check writes."""
TIMEOUT_SECONDS = 5.0


class Health(View):
    """State of the service and its dependencies; a working part has no reason."""

    status: Literal["ok", "unavailable"]
    """Whether the service can work."""
    reasons: dict[str, str]
    """Why a part (`database`, `store`, `broker`) can't be used."""
    warnings: dict[str, str] = {}
    """Conditions that need an operator although the service works: messages that were set aside (`outbox`). Omitted
    if there are none."""


@dataclass
class HealthCheck:
    """Checks all parts, at most once every few seconds."""

    services: Services
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _answer: Health | None = None
    _until: float = 0.0

    async def __call__(self) -> Health:
        async with self._lock:
            if self._answer is None or time.monotonic() > self._until:
                self._answer = await self._check()
                self._until = time.monotonic() + FRESH_SECONDS
            return self._answer

    async def _check(self) -> Health:
        services = self.services
        checks = {
            "database": services.database.now,
            "store": services.store.check,
            "broker": services.dispatcher.check,
        }
        outcomes = await asyncio.gather(
            *(asyncio.wait_for(check(), TIMEOUT_SECONDS) for check in checks.values()), return_exceptions=True
        )
        failed = {
            name: outcome for name, outcome in zip(checks, outcomes, strict=True) if isinstance(outcome, Exception)
        }
        for name, error in failed.items():
            log.warning("the %s can't be used", name, exc_info=error)
        reasons = {name: _reason(error) for name, error in failed.items()}
        found = {"status": "unavailable" if reasons else "ok", "reasons": reasons}
        warnings = {} if "database" in reasons else await self._warnings()
        return Health.model_validate(found | ({"warnings": warnings} if warnings else {}))

    async def _warnings(self) -> dict[str, str]:
        try:
            async with self.services.database.read() as session:
                count = await set_aside(session)
        except SQLAlchemyError:
            log.warning("the outbox can't be read", exc_info=True)
            return {}
        return {"outbox": f"messages that could not be sent and were set aside: {count}"} if count else {}


async def _health_check(request: Request) -> HealthCheck:
    check: HealthCheck = request.app.state.health
    return check


HealthCheckDep = Annotated[HealthCheck, Depends(_health_check)]


def _reason(error: Exception) -> str:
    """Short reason, since the endpoint needs no key: the log has the details."""
    return "does not respond in time" if isinstance(error, TimeoutError) else "can't be reached, or refuses or is full"
