"""Events as they happen, as server-sent events. The rows are the source: a client that reconnects misses none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from app.core.database import Database
from app.jobs import repository
from app.jobs.schemas import EventView

POLL_SECONDS = 0.3
KEEPALIVE_POLLS = 50
"""Polls without an event after which a comment is sent, so that proxies keep the connection."""
PAGE = 200


async def event_stream(database: Database, job_id: str, seq: int) -> AsyncIterator[bytes]:
    """Server-sent events after number `seq`; ends when the job is final and the client has seen that."""
    idle = 0
    while True:
        async with database.read() as session:
            over = await repository.is_final(session, job_id)
            events = await repository.events_after(session, job_id, seq, PAGE)
        if over and not events:
            return  # the client has seen all that there will be
        for event in events:
            seq = event.seq
            body = EventView.of(event).model_dump_json()
            yield format_sse_event(data_str=body, event=event.type, id=str(seq))
        idle = 0 if events else idle + 1
        if idle and idle % KEEPALIVE_POLLS == 0:
            yield KEEPALIVE_COMMENT
        if not events:
            await asyncio.sleep(POLL_SECONDS)
