"""Paged lists: newest first, from a cursor that is the id of the last item seen.

Ids sort by creation time, so page one thousand costs as much as page one: both are one index lookup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, Literal, Protocol, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from app.core.errors import FieldError, Invalid
from app.core.views import View

MAX_LIMIT = 100


class HasId(Protocol):
    @property
    def id(self) -> str: ...


Shown = TypeVar("Shown", bound=BaseModel)
Row = TypeVar("Row", bound=HasId)


class Page(View, Generic[Shown]):
    """One page of a list. The next page has `after` = `last_id` if `has_more`."""

    object: Literal["list"] = "list"
    data: list[Shown]
    """The items of this page, newest first."""
    has_more: bool
    """Whether there are older items."""
    first_id: str | None
    """Id of the first item; null on an empty page."""
    last_id: str | None
    """Id of the last item, the cursor of the next page; null on an empty page."""


@dataclass(frozen=True)
class Cursor:
    """Start and length of a page."""

    after: str | None = None
    limit: int = 20


@dataclass(frozen=True)
class Slice(Generic[Row]):
    """The rows of one page."""

    rows: Sequence[Row]
    has_more: bool

    def view(self, views: Sequence[Shown]) -> Page[Shown]:
        """The page with `views` of these rows."""
        first, last = (self.rows[0].id, self.rows[-1].id) if self.rows else (None, None)
        return Page(data=list(views), has_more=self.has_more, first_id=first, last_id=last)

    def map(self, show: Callable[[Row], Shown]) -> Page[Shown]:
        """The page with a view of each row."""
        return self.view([show(row) for row in self.rows])


async def _cursor(
    after: Annotated[
        str | None, Query(description="Id of the last item seen.", pattern="^[a-z]+_[0-9a-z]+$", max_length=64)
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Length of the page.")] = 20,
) -> Cursor:
    return Cursor(after, limit)


Paging = Annotated[Cursor, Depends(_cursor)]


async def page(
    session: AsyncSession,
    statement: Select[Row],
    id: InstrumentedAttribute[str],
    cursor: Cursor,
    mine: ColumnElement[bool],
) -> Slice[Row]:
    """The rows of `statement` after the cursor, newest first. `id` is their primary key.

    `mine` is the condition on everything that the caller may see, filtered or deleted rows included: a cursor that is
    no id of these rows raises `Invalid`.
    """
    if cursor.after is not None:
        await _require_known(session, id, cursor.after, mine)
        statement = statement.where(id < cursor.after)
    # One extra row shows whether there is another page.
    rows = (await session.scalars(statement.order_by(id.desc()).limit(cursor.limit + 1))).all()
    return Slice(rows[: cursor.limit], len(rows) > cursor.limit)


async def _require_known(
    session: AsyncSession, id: InstrumentedAttribute[str], after: str, mine: ColumnElement[bool]
) -> None:
    if await session.scalar(select(id).where(id == after, mine)) is None:
        message = f"{after!r} is not the id of an item of this list"
        raise Invalid.fields(
            [FieldError(param="after", message=message, accepted="the last_id of a page of this list")]
        )
