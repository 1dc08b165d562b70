"""Where the service is, and the key that opens it: from the environment, or from what `stillhouse up` left here."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ValidationError

from app.core import private
from stillhouse.errors import Unreachable


class Connection(BaseModel):
    """Address and key of a service."""

    url: str
    key: str


def find(url: str | None = None, key: str | None = None) -> Connection:
    """Complete what is given from STILLHOUSE_URL and STILLHOUSE_API_KEY, then from this machine's own service.

    The kept key goes to the kept address only. Raises `Unreachable` when no service or no key is known.
    """
    url, key = url or os.environ.get("STILLHOUSE_URL"), key or os.environ.get("STILLHOUSE_API_KEY")
    kept = None if url and key else read(_data_dir())
    if kept is not None and url in (None, kept.url):
        url, key = kept.url, key or kept.key
    if not url:
        raise Unreachable("no Stillhouse is known here")
    if not key:
        raise Unreachable(f"no key for {url} is known here")
    return Connection(url=url.rstrip("/"), key=key)


def read(data_dir: Path) -> Connection | None:
    """What `stillhouse up` last left in its data folder."""
    try:
        return Connection.model_validate_json(_path(data_dir).read_bytes())
    except (OSError, ValidationError):
        return None


def write(data_dir: Path, connection: Connection) -> None:
    """Leave address and key for this user's clients alone."""
    path = _path(data_dir)
    new = path.with_suffix(".new")
    private.make_file(new)
    new.write_text(connection.model_dump_json())
    new.replace(path)


def _path(data_dir: Path) -> Path:
    return data_dir.expanduser() / "client.json"


def _data_dir() -> Path:
    from app.core.settings import Settings  # costs 0.1 s, and is seldom needed

    return Settings().data_dir
