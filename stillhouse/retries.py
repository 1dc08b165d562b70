"""The retry policy of requests, implemented with Tenacity.

Tenacity and not Stamina, whose time limit runs from the start of a call: the call that awaits the next event of a job
may last for an hour before its connection breaks, and an outage begins only then.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import TypedDict

import httpx
from tenacity import RetryCallState, retry_if_exception, stop_after_attempt, wait_exponential
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from stillhouse.errors import ServiceError

REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
BUSY = frozenset({429, 503})
AWAY = BUSY | {500, 502, 504}
"""Statuses of a service, or of a proxy before it, that is being restarted."""
OUTAGE_SECONDS = 300.0
"""Default for the longest outage of the service through which a client continues."""


class RetryStrategies(TypedDict):
    """Arguments of `tenacity.Retrying` and `tenacity.AsyncRetrying`."""

    retry: retry_base
    wait: wait_base
    stop: stop_base
    reraise: bool


@dataclass(frozen=True)
class RetryPolicy:
    """Which requests are retried, after which errors, and for how long.

    A request is retried up to `retries` times, with a patient policy without such a limit; in both cases no later than
    `outage_seconds` after its first failure, nor after `until`, a time of `time.monotonic()`.
    """

    retries: int = 3
    outage_seconds: float = OUTAGE_SECONDS
    patient: bool = False
    until: float | None = None

    def of_request(self, method: str, headers: Mapping[str, str], repeatable: bool | None) -> RetryStrategies:
        """Strategies for one request.

        A request that must not happen twice (a POST or PATCH without an idempotency key, unless `repeatable` overrides
        this) is retried only while no connection can be made, when nothing was sent.
        """
        if repeatable is None:
            repeatable = method in REPEATABLE or "Idempotency-Key" in headers
        if self.patient and repeatable:
            return self.of_outage()
        passing = _is_busy if repeatable else _is_unsent
        return self._strategies(passing, stop_after_attempt(self.retries + 1) | OutageLimit(self))

    def of_outage(self) -> RetryStrategies:
        """Strategies for an operation that continues after an outage."""
        return self._strategies(_is_away, OutageLimit(self))

    def _strategies(self, passing: Callable[[BaseException], bool], stop: stop_base) -> RetryStrategies:
        return {"retry": retry_if_exception(passing), "wait": Pause(), "stop": stop, "reraise": True}


class OutageLimit(stop_base):
    """Stops before a try that would be too long after the first failure."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._seconds = policy.outage_seconds
        self._until = inf if policy.until is None else policy.until
        self._began: float | None = None

    def __call__(self, retry_state: RetryCallState) -> bool:
        failed = retry_state.outcome_timestamp or 0.0
        self._began = failed if self._began is None else self._began
        return failed + retry_state.upcoming_sleep > min(self._began + self._seconds, self._until)


class Pause(wait_base):
    """Waits as long as `Retry-After`, else 0.2 s, 0.4 s, … up to 5 s, with jitter between clients."""

    _growing = wait_exponential(multiplier=0.2, max=5.0)

    def __call__(self, retry_state: RetryCallState) -> float:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        asked = error.retry_after if isinstance(error, ServiceError) else None
        return self._growing(retry_state) * random.uniform(0.75, 1.25) if asked is None else asked  # noqa: S311 - no secret


def _is_unsent(error: BaseException) -> bool:
    return isinstance(error, httpx.ConnectError)


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, httpx.TransportError) or (isinstance(error, ServiceError) and error.status in BUSY)


def _is_away(error: BaseException) -> bool:
    return isinstance(error, httpx.TransportError) or (isinstance(error, ServiceError) and error.status in AWAY)
