"""Files and folders that only the service's own user may access."""

from __future__ import annotations

from pathlib import Path


def make_folder(path: Path) -> None:
    """Create a folder for its owner only; an existing one is unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def make_file(path: Path) -> None:
    """Create an empty file for its owner only, and its folder; remove the permissions of others on an existing one."""
    make_folder(path.parent)
    path.touch(mode=0o600)
    path.chmod(0o600)


def make_sqlite_file(database: str | None) -> None:
    """As `make_file`, for the database of a URL: SQLite gives the files beside it the same permissions."""
    if database and database != ":memory:" and not database.startswith("file:"):
        make_file(Path(database))
        for beside in ("-wal", "-shm"):
            if (path := Path(database + beside)).exists():
                path.chmod(0o600)
