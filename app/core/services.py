"""Resources that one process of the API shares between requests, and their dependency for endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from app.core.database import Database
from app.core.dispatch import Dispatcher
from app.core.settings import Settings
from app.core.slots import Slots
from app.core.store import Store


@dataclass(frozen=True)
class Services:
    """Shared resources, created by the application's lifespan and stored in `app.state.services`."""

    settings: Settings
    database: Database
    store: Store
    dispatcher: Dispatcher
    uploads: Slots
    """Slots for bodies that are written to the store."""


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
