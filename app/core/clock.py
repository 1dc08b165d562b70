"""The one clock: the database's. Times are seconds since 1970 (UTC) as double precision numbers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import PlainSerializer, WithJsonSchema
from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class now(FunctionElement[float]):
    """The database's current time. Workers' own clocks may be wrong, so no decision depends on them."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: Any, **kwargs: Any) -> str:
    # unixepoch('subsec') would be NULL before SQLite 3.42; a Julian day keeps 0.04 ms as a double.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: Any, **kwargs: Any) -> str:
    # clock_timestamp advances within a transaction; now() would be the time of its begin.
    return "(extract(epoch from clock_timestamp())::double precision)"


def rfc3339(seconds: float) -> str:
    """Write a time as RFC 3339 with milliseconds, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_SCHEMA = {"type": "string", "format": "date-time"}
Time = Annotated[
    float,
    PlainSerializer(rfc3339, return_type=str, when_used="json-unless-none"),
    WithJsonSchema(_SCHEMA, mode="serialization"),
]
"""A time in a response."""
