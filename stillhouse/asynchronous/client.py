"""The client: every operation of the service, over HTTP only."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from stillhouse import connection
from stillhouse.asynchronous.jobs import AsyncJobsApi
from stillhouse.asynchronous.models import AsyncModelsApi
from stillhouse.asynchronous.service import AsyncServiceApi
from stillhouse.asynchronous.transport import AsyncTransport
from stillhouse.retries import OUTAGE_SECONDS


class AsyncClient(AsyncJobsApi, AsyncModelsApi, AsyncServiceApi):
    """Client of one service, to be used with `async with`, or closed with `close`.

    Repeatable requests are retried after a lost connection and while the service is busy; watching, uploads
    and downloads continue after an outage of the service, such as a restart.

    Args:
        url: Address of the service; None: STILLHOUSE_URL, or the service that `stillhouse up` runs on this machine.
        key: API key; None: STILLHOUSE_API_KEY, or the key of that service.
        retries: How often a repeatable request is retried.
        timeout_seconds: Longest time without data in a response.
        outage_seconds: Longest outage after which operations continue.

    Raises:
        Unreachable: No service or no key is configured.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        retries: int = 3,
        timeout_seconds: float = 30.0,
        outage_seconds: float = OUTAGE_SECONDS,
    ) -> None:
        found = connection.find(url, key)
        self.url = found.url
        self._transport = AsyncTransport(
            found, retries=retries, timeout_seconds=timeout_seconds, outage_seconds=outage_seconds
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Raises nothing."""
        await self._transport.close()
