"""Opens the library's object stores: local disk, S3, GCS, Azure or memory."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, ObjectStore, S3Store, from_url

from app.core.settings import Settings

Signer = S3Store | GCSStore | AzureStore
"""A store that signs links."""
_CLIENT = {"connect_timeout": timedelta(seconds=5), "read_timeout": timedelta(seconds=30), "timeout": timedelta(days=1)}
_RETRY = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}


def open_backend(settings: Settings, endpoint: str | None) -> ObjectStore:
    """The store of the settings, with `endpoint` as the address of an S3 server."""
    url = settings.resolved_store_url
    scheme = url.partition(":")[0]
    if scheme == "memory":
        return MemoryStore()
    if scheme == "file":
        return LocalStore.from_url(url, mkdir=True, automatic_cleanup=True)
    plain = bool(endpoint and endpoint.startswith("http://"))
    options: Any = {"client_options": {**_CLIENT, "allow_http": plain}, "retry_config": _RETRY}
    if scheme != "s3":
        return from_url(url, **options)
    given = {
        "endpoint": endpoint,
        "region": settings.store_region,
        "access_key_id": settings.store_access_key and settings.store_access_key.get_secret_value(),
        "secret_access_key": settings.store_secret_key and settings.store_secret_key.get_secret_value(),
    }
    config: Any = {name: value for name, value in given.items() if value}
    return S3Store.from_url(url, config=config, **options)
