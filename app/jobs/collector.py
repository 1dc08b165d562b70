"""Deletes objects without a row, and logs an error for rows without an object.

Such objects are left by processes that died between writing an object and its row, and by attempts that lost their
lease. Rows read after the object was seen decide whether it is safe to delete:

* Below `projects/` a key names its attempt. Objects of a live one are kept; any other can publish nothing more.
* Elsewhere an object precedes its row by at most the time of a request. So any object must have been seen without a
  row for a grace period, by this process's own clock, before it is deleted.
* Keys in another form, or below a project or upload that is not in this database, are kept. A store is marked with its
  database, and the collector of another database does not touch it.

A round examines a bounded number of objects and rows, and the next one continues from there.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database
from app.core.store import KeyTaken, Store
from app.files.tables import FileRow, UploadPart, UploadRow
from app.jobs.lifecycle import HELD
from app.jobs.tables import ArtifactRow, CheckpointRow, JobRow
from app.jobs.turns import take_turn
from app.models.tables import ModelRow
from app.projects.tables import Project

FOLDERS = ("files", "models", "projects", "uploads")
"""Folders of the service's objects, in the order of their names."""
MARK = "database"
"""Key of the object that identifies the database of a store."""
PAGE = 5000
"""Objects examined per round."""
ROWS = 50
"""Rows of each kind whose objects are checked per round."""
QUERY = 500
"""Values in one condition of a query."""
REMEMBERED = 100_000
"""Objects without a row that are remembered; others are found again in a later round."""
TURN_SECONDS = 300.0
"""Time without a round after which another process takes over."""
UNFINISHED_SECONDS = 86_400.0

ATTEMPT = re.compile(r"projects/(?P<project>[^/]+)/jobs/(?P<job>[^/]+)/a(?P<attempt>\d+)/.+")
PART = re.compile(r"uploads/(?P<upload>[^/]+)/[^/]+")
OTHER = re.compile(r"files/[0-9a-f]{32}|models/[0-9a-f]{32}/.+")

log = logging.getLogger("stillhouse.collector")
Row = TypeVar("Row", FileRow, ModelRow, CheckpointRow)


class Counts(NamedTuple):
    """Counts of one round."""

    objects: int = 0
    """Objects examined."""
    waiting: int = 0
    """Objects without a row, within the grace period."""
    deleted: int = 0
    gone: int = 0
    """Rows without their object."""


@dataclass
class Collector:
    """Collects for one database and its store, under the name `owner`."""

    database: Database
    store: Store
    owner: str
    grace_seconds: float
    _after: str = ""
    """Key at which the last round stopped; empty: it reached the end."""
    _seen: dict[str, float] = field(default_factory=dict)
    """Objects without a row, and when each was first seen, by the monotonic clock."""
    _rows_after: dict[str, str] = field(default_factory=dict)
    """Id at which the last check of the rows of each table stopped."""
    _reported: set[str] = field(default_factory=set)
    """Keys of missing objects that were logged."""
    _refused: bool = False

    async def round(self) -> Counts | None:
        """Do one round; none if another process does, or if the store belongs to another database."""
        async with self.database.write() as session:
            if not await take_turn(session, "collector", self.owner, TURN_SECONDS):
                return None
        if not await self._is_ours():
            return None
        keys = await self._page()
        orphans = await self._orphans(keys)
        expired = self._due(keys, orphans)
        if expired:  # rows may have been written meanwhile
            expired = sorted(await self._orphans(expired))
            await self.store.delete(expired)
            for key in expired:
                self._seen.pop(key, None)
        await self.store.remove_unfinished(UNFINISHED_SECONDS)
        counts = Counts(len(keys), len(self._seen), len(expired), await self._check_rows())
        level = logging.INFO if counts.deleted or counts.gone else logging.DEBUG
        log.log(
            level,
            "examined %d objects: %d without a row deleted, %d more in their grace period; %d rows lack their object",
            *(counts.objects, counts.deleted, counts.waiting, counts.gone),
        )
        return counts

    async def _is_ours(self) -> bool:
        """Whether the store is marked as this database's; an unmarked one without foreign objects is marked."""
        async with self.database.read() as session:
            projects = list(await session.scalars(select(Project.id).order_by(Project.id)))
        if not projects:
            return False
        if await self.store.exists(MARK):
            mark = b"".join([chunk async for chunk in self.store.stream(MARK)]).decode(errors="replace")
        else:
            foreign = await self.store.folders("projects") - set(projects)
            mark = next(iter(foreign), projects[0])
            if not foreign:
                await self._mark(projects[0])
        if mark not in projects and not self._refused:
            log.error("nothing is collected: the object store belongs to another database (project %s)", mark)
        self._refused = mark not in projects
        return not self._refused

    async def _mark(self, project: str) -> None:
        async def content() -> AsyncIterator[bytes]:
            yield project.encode()

        try:
            await self.store.write(MARK, content())
        except KeyTaken:
            log.warning("another process has marked the store at the same time")

    async def _page(self) -> list[str]:
        found: list[str] = []
        for folder in FOLDERS:
            if folder < self._after.partition("/")[0]:
                continue
            after = self._after if self._after.startswith(f"{folder}/") else ""
            found += await self.store.keys(folder, after, PAGE - len(found))
            if len(found) >= PAGE:
                self._after = found[-1]
                return found
        self._after = ""
        return found

    def _due(self, keys: Sequence[str], orphans: set[str]) -> list[str]:
        """Record when these were first seen without a row; returns those past the grace period."""
        moment = time.monotonic()
        for key in set(keys) - orphans:
            self._seen.pop(key, None)
        for key in orphans:
            if len(self._seen) < REMEMBERED:
                self._seen.setdefault(key, moment)
        return [key for key in orphans if moment - self._seen.get(key, moment) >= self.grace_seconds]

    async def _orphans(self, keys: Sequence[str]) -> set[str]:
        """The keys without a row, for which only a request in progress can still write one."""
        async with self.database.read() as session:
            ours = await _ours(session, keys)
            return ours - await _referenced(session, ours)

    async def _check_rows(self) -> int:
        """Check the objects of some rows of each kind; returns the number of rows without one."""
        return await self._lacking(FileRow) + await self._lacking(ModelRow) + await self._lacking(CheckpointRow)

    async def _lacking(self, table: type[Row]) -> int:
        gone = 0
        for row in await self._rows(table):
            lost = {key for key in _keys_of(row) if not await self.store.exists(key)}
            if lost and await self._still_there(table, row.id):
                gone += 1
                for key in lost - self._reported:
                    log.error("%s lacks its object %s: it was deleted, or lost by the store", row.id, key)
                self._reported |= lost
        return gone

    async def _rows(self, table: type[Row]) -> list[Row]:
        after = self._rows_after.get(table.__tablename__, "")
        statement = select(table).where(table.deleted_at.is_(None), table.id > after).order_by(table.id).limit(ROWS)
        async with self.database.read() as session:
            rows = list(await session.scalars(statement))
        self._rows_after[table.__tablename__] = rows[-1].id if len(rows) == ROWS else ""
        return rows

    async def _still_there(self, table: type[Row], id: str) -> bool:
        async with self.database.read() as session:
            row = await session.get(table, id)
            return row is not None and row.deleted_at is None


def _keys_of(row: FileRow | ModelRow | CheckpointRow) -> list[str]:
    return [row.key] if isinstance(row, FileRow) else [file["key"] for file in row.files]


async def _ours(session: AsyncSession, keys: Sequence[str]) -> set[str]:
    """The service's own keys, without those of live attempts. Read before the rows: a live one may publish."""
    attempts = {key: found for key in keys if (found := ATTEMPT.fullmatch(key))}
    parts = {key: found["upload"] for key in keys if (found := PART.fullmatch(key))}
    projects = set(await session.scalars(select(Project.id)))
    uploads: set[str] = set()
    jobs: dict[str, tuple[str, int]] = {}
    for some in _batches({*parts.values()}):
        uploads |= set(await session.scalars(select(UploadRow.id).where(UploadRow.id.in_(some))))
    for some in _batches({found["job"] for found in attempts.values()}):
        rows = await session.execute(select(JobRow.id, JobRow.status, JobRow.attempt).where(JobRow.id.in_(some)))
        jobs |= {id: (status, attempt) for id, status, attempt in rows}

    def is_over(found: re.Match[str]) -> bool:
        status, attempt = jobs.get(found["job"], ("", sys.maxsize))
        number = int(found["attempt"])
        return found["project"] in projects and (number < attempt or (number == attempt and status not in HELD))

    ended = {key for key, found in attempts.items() if is_over(found)}
    return ended | {key for key, upload in parts.items() if upload in uploads} | set(filter(OTHER.fullmatch, keys))


async def _referenced(session: AsyncSession, keys: set[str]) -> set[str]:
    """The keys that a row refers to."""
    found: set[str] = set()
    for some in _batches(keys):
        for table in (FileRow, UploadPart):
            wanted = select(table.key).where(table.key.in_(some))
            found |= set(
                await session.scalars(wanted.where(FileRow.deleted_at.is_(None)) if table is FileRow else wanted)
            )
    for some in _batches({match["job"] for key in keys if (match := ATTEMPT.fullmatch(key))}):
        alive = (CheckpointRow.job_id.in_(some), CheckpointRow.deleted_at.is_(None))
        for files in await session.scalars(select(CheckpointRow.files).where(*alive)):
            found |= {file["key"] for file in files}
        # A job's artifacts are deleted with its model.
        published = select(ArtifactRow.key).outerjoin(ModelRow, ModelRow.job_id == ArtifactRow.job_id)
        found |= set(
            await session.scalars(published.where(ArtifactRow.job_id.in_(some), ModelRow.deleted_at.is_(None)))
        )
    uploaded = select(ModelRow.files).where(ModelRow.job_id.is_(None), ModelRow.deleted_at.is_(None))
    for files in await session.scalars(uploaded):
        found |= {file["key"] for file in files}
    return keys & found


def _batches(values: Iterable[str]) -> Iterator[list[str]]:
    """Split the values into lists that fit into one condition of a query."""
    left = iter(values)
    while some := list(islice(left, QUERY)):
        yield some
