"""What is repeated, how often, after what pause, and for how long; no test sleeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
from tenacity import Retrying

from stillhouse import ServiceError
from stillhouse.replies import checked
from stillhouse.retries import RetryPolicy


class Clock:
    """A clock that sleeping moves, and a request that always fails after some seconds."""

    def __init__(self, failure: Callable[[], Exception], seconds: float = 0.0) -> None:
        self.now, self.pauses, self.tries = 1000.0, list[float](), 0
        self._failure, self._seconds = failure, seconds

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def send(self) -> None:
        self.tries += 1
        self.now += self._seconds
        raise self._failure()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Clock]:
    def run(strategies: Any, failure: Callable[[], Exception], seconds: float = 0.0) -> Clock:
        clock = Clock(failure, seconds)
        monkeypatch.setattr("tenacity.time.monotonic", lambda: clock.now)
        with pytest.raises((httpx.TransportError, ServiceError)):
            Retrying(**strategies, sleep=clock.sleep)(clock.send)
        monkeypatch.undo()
        return clock

    return run


def refusal(status: int, **headers: str) -> Callable[[], Exception]:
    def make() -> Exception:
        try:
            checked(httpx.Response(status, headers={name.replace("_", "-"): value for name, value in headers.items()}))
        except ServiceError as error:
            return error
        raise AssertionError

    return make


def lost() -> Exception:
    return httpx.ReadError("lost")


def unsent() -> Exception:
    return httpx.ConnectError("refused")


KEY = {"Idempotency-Key": "one"}


@pytest.mark.parametrize(
    ("method", "headers", "repeatable", "tries"),
    [
        ("GET", {}, None, 4),
        ("PUT", {}, None, 4),
        ("DELETE", {}, None, 4),
        ("POST", KEY, None, 4),
        ("POST", {}, True, 4),
        ("POST", {}, None, 1),
        ("PATCH", {}, None, 1),
        ("GET", {}, False, 1),
    ],
)
@pytest.mark.parametrize("patient", [False, True])
def test_only_what_may_happen_twice_is_repeated(
    failing: Callable[..., Clock],
    patient: bool,
    method: str,
    headers: dict[str, str],
    repeatable: bool | None,
    tries: int,
) -> None:
    policy = RetryPolicy(retries=3, outage_seconds=60.0, patient=patient)
    for failure in (lost, refusal(429), refusal(503)):
        clock = failing(policy.of_request(method, headers, repeatable), failure)
        assert clock.tries == tries if tries == 1 or not patient else clock.tries > tries


def test_what_was_not_sent_is_sent_again(failing: Callable[..., Clock]) -> None:
    assert failing(RetryPolicy(retries=2).of_request("POST", {}, None), unsent).tries == 3


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500, 502])
def test_a_refusal_is_not_repeated(failing: Callable[..., Clock], status: int) -> None:
    assert failing(RetryPolicy().of_request("GET", {}, None), refusal(status)).tries == 1


@pytest.mark.parametrize(("status", "again"), [(401, False), (404, False), (500, True), (502, True), (504, True)])
def test_a_patient_policy_outlasts_what_a_restart_answers(
    failing: Callable[..., Clock], status: int, again: bool
) -> None:
    clock = failing(RetryPolicy(patient=True).of_request("GET", {}, None), refusal(status))
    assert (clock.tries > 1) is again


def test_pauses_grow_to_five_seconds_unless_the_service_asks(failing: Callable[..., Clock]) -> None:
    grown = failing(RetryPolicy(retries=8).of_request("GET", {}, None), lost).pauses
    expected = [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert all(0.75 * base <= pause <= 1.25 * base for pause, base in zip(grown, expected, strict=True))
    asked = failing(RetryPolicy(retries=2).of_request("GET", {}, None), refusal(503, Retry_After="7")).pauses
    assert asked == [7.0, 7.0]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("999999", 60.0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", 1.0)],
    ids=["seconds", "too long", "date", "no time"],
)
def test_what_the_service_asks_is_read(text: str, seconds: float) -> None:
    error = refusal(503, Retry_After=text)()
    assert isinstance(error, ServiceError)
    assert error.retry_after == seconds


def test_an_outage_begins_with_its_first_failure(failing: Callable[..., Clock]) -> None:
    policy = RetryPolicy(outage_seconds=10.0, patient=True)
    clock = failing(policy.of_outage(), lost, 3600.0)
    assert clock.tries == 2, "the first try lasted for an hour, and the outage had not begun"
    assert 10.0 - 5.0 * 1.25 < sum(failing(policy.of_outage(), lost).pauses) <= 10.0
    assert failing(RetryPolicy(retries=99, outage_seconds=0.0).of_request("GET", {}, None), lost).tries == 1


def test_nothing_is_tried_after_the_deadline(failing: Callable[..., Clock]) -> None:
    clock = failing(RetryPolicy(patient=True, until=1002.0).of_outage(), lost)
    assert 1.0 < clock.now - 1000.0 <= 2.0
