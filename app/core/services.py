"""What one process of the API holds open for all requests, and how an endpoint gets at it."""

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
    """Made by the application's lifespan, kept in `app.state.services`."""

    settings: Settings
    database: Database
    store: Store
    dispatcher: Dispatcher
    uploads: Slots
    """Of bodies that are written to the store."""


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
