"""The log as programs and operators read it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator

import pytest

from app.core import logs
from app.core.logs import JsonFormatter
from tests.app.conftest import Api


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """The log of this process as JSON; it goes where it went before, afterwards."""
    root = logging.getLogger()
    kept = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs.OURS}
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    yield stream
    root.handlers[:], root.level = kept
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def records(stream: io.StringIO) -> list[dict[str, str]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_object_on_one_line(lines: io.StringIO) -> None:
    logging.getLogger("worker.supervisor.attempt").info("two\nlines of %s", "text")
    [record] = records(lines)
    assert record.pop("time").endswith("Z")
    assert record == {"level": "info", "logger": "worker.supervisor.attempt", "message": "two\nlines of text"}


def test_an_exception_is_a_field(lines: io.StringIO) -> None:
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger("app.x").exception("failed")
    [record] = records(lines)
    assert record["exception"].endswith("KeyError: 'x'")


def test_libraries_speak_up_from_warnings_on(lines: io.StringIO) -> None:
    logging.getLogger("sqlalchemy.engine").info("said in passing")
    logging.getLogger("sqlalchemy.engine").warning("worth a line")
    assert [record["message"] for record in records(lines)] == ["worth a line"]


async def test_records_carry_the_job_of_their_task(lines: io.StringIO) -> None:
    async def attempt(name: str) -> None:
        logs.job_id.set(name)
        await asyncio.sleep(0)
        logging.getLogger("worker.x").info("said")

    await asyncio.gather(asyncio.create_task(attempt("job_1")), asyncio.create_task(attempt("job_2")))
    assert [record["job_id"] for record in records(lines)] == ["job_1", "job_2"]


async def test_a_refused_request_is_one_line_with_its_id(api: Api, lines: io.StringIO) -> None:
    answer = await api.client.get("/v1/jobs/job_none", headers={"X-Request-Id": "my-request"})
    assert answer.status_code == 404
    [record] = [record for record in records(lines) if record["logger"] == "stillhouse.http"]
    assert (record["level"], record["request_id"]) == ("info", "my-request")
    assert "exception" not in record


def test_the_text_of_other_writing_systems_stays_readable() -> None:
    record = logging.LogRecord("x", logging.INFO, "x", 1, "Größe 大きさ", None, None)
    assert "Größe 大きさ" in JsonFormatter().format(record)
