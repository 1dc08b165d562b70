"""Lists, a page at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select, true

from app.core.clock import now
from app.core.database import Database
from app.core.errors import Invalid
from app.core.ids import new_id
from app.core.paging import Cursor, page
from app.projects.schemas import ProjectView
from app.projects.tables import Project


@pytest.fixture
async def stored(database_url: str) -> AsyncIterator[tuple[Database, list[str]]]:
    database = Database(database_url)
    names = [f"project {index}" for index in range(25)]
    async with database.write() as session:
        for name in names:
            session.add(Project(id=new_id("proj"), name=name, created_at=now()))
    yield database, names
    await database.close()


async def test_pages_together_show_everything_once_newest_first(stored: tuple[Database, list[str]]) -> None:
    database, names = stored
    seen: list[str] = []
    cursor, more = Cursor(None, 10), True
    sizes = []
    while more:
        async with database.read() as session:
            found = await page(session, select(Project), Project.id, cursor, true())
        shown = found.map(ProjectView.of)
        assert (shown.first_id, shown.last_id) == (shown.data[0].id, shown.data[-1].id)
        seen += [project.id for project in shown.data]
        sizes.append(len(shown.data))
        cursor, more = Cursor(shown.last_id, 10), shown.has_more
    assert sizes == [10, 10, 5]
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == len(names)


async def test_a_page_that_ends_exactly_at_the_end_says_so(stored: tuple[Database, list[str]]) -> None:
    database, _ = stored
    async with database.read() as session:
        assert not (await page(session, select(Project), Project.id, Cursor(None, 25), true())).has_more
        assert (await page(session, select(Project), Project.id, Cursor(None, 24), true())).has_more


async def test_after_the_last_comes_an_empty_page(stored: tuple[Database, list[str]]) -> None:
    database, _ = stored
    async with database.read() as session:
        oldest = await session.scalar(select(func.min(Project.id)))
        empty = (await page(session, select(Project), Project.id, Cursor(oldest), true())).map(ProjectView.of)
    assert empty.model_dump() == {"object": "list", "data": [], "has_more": False, "first_id": None, "last_id": None}


async def test_what_is_made_meanwhile_does_not_shift_the_pages(stored: tuple[Database, list[str]]) -> None:
    database, _ = stored
    async with database.read() as session:
        first = await page(session, select(Project), Project.id, Cursor(None, 10), true())
    async with database.write() as session:
        session.add(Project(id=new_id("proj"), name="newcomer", created_at=now()))
    async with database.read() as session:
        second = await page(session, select(Project), Project.id, Cursor(first.rows[-1].id, 10), true())
    ids = [row.id for row in (*first.rows, *second.rows)]
    assert ids == sorted(ids, reverse=True)
    assert len(set(ids)) == 20


@pytest.mark.parametrize("after", ["proj_0", "file_01m8", "proj_"])
async def test_a_cursor_that_is_the_id_of_nothing_in_the_list_is_refused(
    stored: tuple[Database, list[str]], after: str
) -> None:
    database, _ = stored
    async with database.read() as session:
        with pytest.raises(Invalid, match=after) as caught:
            await page(session, select(Project), Project.id, Cursor(after), true())
    assert caught.value.param == "after"


async def test_a_cursor_of_others_is_refused_and_one_that_a_filter_leaves_out_is_not(
    stored: tuple[Database, list[str]],
) -> None:
    database, _ = stored
    async with database.read() as session:
        newest, oldest = await session.scalar(select(func.max(Project.id))), select(func.min(Project.id))
        filtered = select(Project).where(Project.id == oldest.scalar_subquery())
        found = await page(session, filtered, Project.id, Cursor(newest), true())
        assert [project.id for project in found.rows] == [await session.scalar(oldest)]
        with pytest.raises(Invalid):
            await page(session, select(Project), Project.id, Cursor(newest), Project.id != newest)
