"""Reading of responses: their errors, and `Retry-After`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from stillhouse.errors import FieldProblem, ServiceError

LONGEST_ASKED_SECONDS = 60.0
"""Longest `Retry-After` that is honoured."""


def checked(response: httpx.Response) -> httpx.Response:
    """Return the response if it is a success. Raises the `ServiceError` that its body describes otherwise."""
    if not response.is_error:
        return response
    try:
        body = response.json()["error"]
        errors = [FieldProblem.model_validate(problem) for problem in body.get("errors") or []]
        known = {name: body.get(name) for name in ("param", "request_id")}
        error = ServiceError(
            response.status_code, type=body["type"], code=body["code"], message=body["message"], errors=errors, **known
        )
    except (ValueError, KeyError, TypeError):
        message = f"{response.status_code} {response.reason_phrase}"
        error = ServiceError(response.status_code, type="http", code="unexpected_answer", message=message)
    error.retry_after = retry_after(response)
    raise error


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the service asks to wait, at most a minute; None if it does not."""
    asked = response.headers.get("Retry-After")
    if asked is None:
        return None
    try:
        seconds = float(asked) if asked.isdecimal() else _seconds_until(parsedate_to_datetime(asked))
    except ValueError:
        return 1.0
    return min(LONGEST_ASKED_SECONDS, max(0.0, seconds))


def _seconds_until(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time()
