"""Address and key of the service: from the environment, or from what `stillhouse up` left on this machine."""

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

    The kept key goes to the kept address only. Raises `Unreachable` when no service or no key is known.
    """
    url, key = url or os.environ.get("STILLHOUSE_URL"), key or os.environ.get("STILLHOUSE_API_KEY")
    kept = None if url and key else read(data_dir())
    if kept is not None and url in (None, kept.url):
        url, key = kept.url, key or kept.key
    if not url:
        raise Unreachable("no Stillhouse is known here")
    if not key:
        raise Unreachable(f"no key for {url} is known here")
    return Connection(url=url.rstrip("/"), key=key)


def data_dir() -> Path:
    """Data folder of this machine's service, as the service's own settings find it.

    Read without them, since they belong to the service; a test holds both together.
    """
    return Path(os.environ.get("STILLHOUSE_DATA_DIR") or Path.home() / ".stillhouse")


def read(data_dir: Path) -> Connection | None:
    """The connection that `stillhouse up` last left in its data folder; None if there is none."""
    try:
        return Connection.model_validate_json(_path(data_dir).read_bytes())
    except (OSError, ValidationError):
        return None


def write(data_dir: Path, connection: Connection) -> None:
    """Leave address and key in the data folder, readable by this user alone."""
    path = _path(data_dir)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)  # an old one may be readable by others
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(connection.model_dump_json())
    new.replace(path)


def _path(data_dir: Path) -> Path:
    return data_dir.expanduser() / "client.json"
