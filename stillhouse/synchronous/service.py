# Generated from stillhouse/asynchronous/service.py by scripts/sync_client.py; change that and run it again.
"""The client's part for the service itself: catalog, keys, health and version."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from stillhouse.objects import CatalogOption, Key
from stillhouse.requests import given, resource
from stillhouse.synchronous.base import Api


class ServiceApi(Api):
    """The service. Every method raises `ServiceError` and `Unreachable`; those for keys need the scope `admin`."""

    def catalog(self, group: str | None = None) -> list[CatalogOption]:
        """Losses, optimizers, schedules and students for jobs, with their JSON Schema.

        Args:
            group: Only this group, such as `losses`; None: all.

        Returns:
            The options, by group.

        Raises:
            ServiceError: There is no such group (404).
        """
        return self._list(CatalogOption, resource("catalog", *([group] if group else [])))

    def api_keys(self) -> Iterator[Key]:
        """List the keys of the project, without the keys themselves."""
        return self._pages(Key, "/v1/keys", {}, None)

    def create_key(self, name: str, scopes: Iterable[str] = ()) -> Key:
        """Create a key.

        Args:
            name: Purpose of the key.
            scopes: Permissions: `read`, `write`, `admin`; none: `read` and `write`.

        Returns:
            The key; no later response contains `key` itself.

        Raises:
            ServiceError: There is no such scope (422).
        """
        return self._one(Key, "POST", "/v1/keys", json=given({"name": name, "scopes": list(scopes)}))

    def revoke_key(self, key_id: str) -> Key:
        """Revoke a key permanently.

        Raises:
            ServiceError: There is no such key (404).
        """
        return self._one(Key, "DELETE", resource("keys", key_id))

    def health(self) -> dict[str, Any]:
        """State of the service, part by part."""
        answer: dict[str, Any] = self._transport.json("GET", "/healthz")
        return answer

    def version(self) -> dict[str, Any]:
        """Version of the service."""
        answer: dict[str, Any] = self._transport.json("GET", "/v1/version")
        return answer
