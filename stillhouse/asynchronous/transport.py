"""HTTP session with the service: key, time-outs, retries, and errors as exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from typing import Any, ParamSpec, Self, TypeVar

import httpx
from tenacity import AsyncRetrying

from stillhouse.connection import Connection
from stillhouse.errors import Unreachable
from stillhouse.replies import checked
from stillhouse.retries import OUTAGE_SECONDS, RetryPolicy

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
CONNECT_SECONDS = 5.0


class AsyncTransport:
    """Sends requests and retries them by its policy; `patient` returns one that continues after restarts."""

    def __init__(
        self,
        connection: Connection,
        *,
        retries: int = 3,
        timeout_seconds: float = 30.0,
        outage_seconds: float = OUTAGE_SECONDS,
    ) -> None:
        self.url = connection.url
        self._policy = RetryPolicy(retries, outage_seconds)
        self._http = httpx.AsyncClient(
            base_url=connection.url,
            headers={"Authorization": f"Bearer {connection.key}", "User-Agent": "stillhouse-client"},
            timeout=httpx.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    def patient(self, until: float | None = None) -> Self:
        """The same session with a patient policy (see `RetryPolicy`)."""
        patient = copy(self)
        patient._policy = replace(self._policy, patient=True, until=until)
        return patient

    async def json(self, method: str, path: str, **options: Any) -> Any:
        """Send a request and return the decoded body, None if it is empty. Raises as `send`."""
        response = await self.send(method, path, **options)
        return response.json() if response.content else None

    async def send(self, method: str, path: str, *, repeatable: bool | None = None, **options: Any) -> httpx.Response:
        """Send a request whose response fits in memory, and retry it by the policy.

        Raises `ServiceError` if the service rejects it, `Unreachable` if there is no response.
        """
        strategies = self._policy.of_request(method, options.get("headers") or {}, repeatable)
        try:
            response: httpx.Response = await AsyncRetrying(**strategies)(self.send_once, method, path, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        return response

    async def send_once(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request once. Raises `ServiceError` and `httpx.TransportError`."""
        return checked(await self._http.request(method, path, **options))

    async def outlast(
        self,
        operation: Callable[Arguments, Awaitable[Answer]],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Answer:
        """Call `operation` until it succeeds, through one outage of the service.

        Raises its `ServiceError` if that is permanent or the outage lasts too long, `Unreachable` if no connection
        lasts.
        """
        try:
            answer: Answer = await AsyncRetrying(**self._policy.of_outage())(operation, *arguments, **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        return answer

    @asynccontextmanager
    async def stream(
        self, path: str, headers: dict[str, str], *, redirects: bool = False, silence_seconds: float | None = None
    ) -> AsyncIterator[httpx.Response]:
        """GET a streamed response; the key is not sent to another host after a redirect.

        Reading raises `httpx.ReadTimeout` after `silence_seconds` (by default the session's time-out) without data.
        """
        timeout = (
            self._http.timeout if silence_seconds is None else httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS)
        )
        async with self._http.stream(
            "GET", path, headers=headers, follow_redirects=redirects, timeout=timeout
        ) as response:
            if response.is_error:
                await response.aread()
            yield checked(response)

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"{self.url} does not respond: {str(error) or type(error).__name__}")
