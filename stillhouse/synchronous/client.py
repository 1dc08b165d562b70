# Generated from stillhouse/asynchronous/client.py by scripts/sync_client.py; change that and run it again.
"""The client: every operation of the service, over HTTP only."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from stillhouse import connection
from stillhouse.retries import OUTAGE_SECONDS
from stillhouse.synchronous.jobs import JobsApi
from stillhouse.synchronous.models import ModelsApi
from stillhouse.synchronous.service import ServiceApi
from stillhouse.synchronous.transport import Transport


class Client(JobsApi, ModelsApi, ServiceApi):
    """Client of one service, to be used with `with`, or closed with `close`.

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
        self._transport = Transport(
            found, retries=retries, timeout_seconds=timeout_seconds, outage_seconds=outage_seconds
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Raises nothing."""
        self._transport.close()
