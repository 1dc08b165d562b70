"""Files and folders that the service's own user alone may look into."""

from __future__ import annotations

from pathlib import Path


def make_folder(path: Path) -> None:
    """Make a folder, for its owner alone; one that is there stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def make_file(path: Path) -> None:
    """Make an empty file, for its owner alone, and its folder; of one that is there, take the others' rights."""
    make_folder(path.parent)
    path.touch(mode=0o600)
    path.chmod(0o600)


def make_sqlite_file(database: str | None) -> None:
    """As `make_file`, for the database that a URL names: SQLite gives the files beside it the same rights."""
    if database and database != ":memory:" and not database.startswith("file:"):
        make_file(Path(database))
        for beside in ("-wal", "-shm"):
            if (path := Path(database + beside)).exists():
                path.chmod(0o600)
