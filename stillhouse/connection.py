"""Address and key of the service: from the environment, or as stored by `stillhouse up` on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from stillhouse.errors import Unreachable


class Connection(BaseModel):
    """Address and key of a service."""

    url: str
    key: str


def find(url: str | None = None, key: str | None = None) -> Connection:
    """Complete the arguments from STILLHOUSE_URL and STILLHOUSE_API_KEY, then from this machine's own service.

    The stored key is used only with the stored address. Raises `Unreachable` if no service or no key is known.
    """
    url, key = url or os.environ.get("STILLHOUSE_URL"), key or os.environ.get("STILLHOUSE_API_KEY")
    kept = None if url and key else read(data_dir())
    if kept is not None and url in (None, kept.url):
        url, key = kept.url, key or kept.key
    if not url:
        raise Unreachable("no Stillhouse service is configured")
    if not key:
        raise Unreachable(f"no key for {url} is configured")
    return Connection(url=url.rstrip("/"), key=key)


def data_dir() -> Path:
    """Data folder of this machine's service, as in the service's own settings.

    Computed without them, since they are part of the service; a test compares both.
    """
    return Path(os.environ.get("STILLHOUSE_DATA_DIR") or Path.home() / ".stillhouse")


def read(data_dir: Path) -> Connection | None:
    """The connection that `stillhouse up` last stored in its data folder; None if there is none."""
    try:
        return Connection.model_validate_json(_path(data_dir).read_bytes())
    except (OSError, ValidationError):
        return None


def write(data_dir: Path, connection: Connection) -> None:
    """Store address and key in the data folder, readable only by this user."""
    path = _path(data_dir)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)  # an old one may be readable by others
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(connection.model_dump_json())
    new.replace(path)


def _path(data_dir: Path) -> Path:
    return data_dir.expanduser() / "client.json"
