# Generated from stillhouse/asynchronous/base.py by scripts/sync_client.py; change that and run it again.
"""Base class of all parts of the client."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any, Self, TypeVar

from stillhouse.objects import Reply
from stillhouse.requests import given
from stillhouse.synchronous.transport import Transport

AnyReply = TypeVar("AnyReply", bound=Reply)


class Api:
    """Base of the client's parts: requests whose responses are objects."""

    _transport: Transport

    def patient(self, until: float | None = None) -> Self:
        """The same client, whose repeatable requests continue after restarts of the service.

        Args:
            until: A time of `time.monotonic()` after which requests are no longer retried; None: only
                `outage_seconds` limits them.

        Returns:
            A client on the same connections. Raises nothing.
        """
        patient = copy(self)
        patient._transport = self._transport.patient(until)
        return patient

    def _one(self, kind: type[AnyReply], method: str, path: str, **options: Any) -> AnyReply:
        """The object in the response to a request."""
        return kind.model_validate(self._transport.json(method, path, **options))

    def _list(self, kind: type[AnyReply], path: str, **params: Any) -> list[AnyReply]:
        """The objects of a list without pages."""
        page = self._transport.json("GET", path, params=given(params))
        return [kind.model_validate(item) for item in page["data"]]

    def _pages(
        self, kind: type[AnyReply], path: str, filters: dict[str, Any], limit: int | None, page_size: int = 100
    ) -> Iterator[AnyReply]:
        """The objects of all pages of a list, at most `limit`."""
        left, after = limit, None
        while left is None or left > 0:
            params = given(filters | {"after": after, "limit": min(page_size, left or page_size)})
            page = self._transport.json("GET", path, params=params)
            for item in page["data"]:
                yield kind.model_validate(item)
            if not page["has_more"]:
                return
            after, left = page["last_id"], None if left is None else left - len(page["data"])
