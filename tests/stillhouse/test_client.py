"""The client against the real service, with answers lost and cut on purpose."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from app.catalog.endpoints import GROUPS
from app.recipe.losses import LOSSES
from stillhouse import BadRequest, Client, Job, ServiceError, Unreachable
from tests.stillhouse.conftest import LiveService, answer, cut_off, job_document, tell


@pytest.fixture
def spec(client: Client, data_file: Path) -> dict[str, Any]:
    """A job over an uploaded file."""
    return job_document(client.upload(data_file).id, name="one")


def test_a_job_is_submitted_found_and_listed(client: Client, spec: dict[str, Any]) -> None:
    job = client.submit(spec)
    assert job.status == "queued"
    assert client.job(job.id).spec["recipe"]["epochs"] == 2
    assert [item.id for item in client.jobs()] == [job.id]


def test_lists_go_through_all_pages_and_stop_at_the_limit(client: Client, spec: dict[str, Any]) -> None:
    made = [client.submit(spec | {"seed": seed}).id for seed in range(5)]
    listed = [job.id for job in client._pages(Job, "/v1/jobs", {}, None, page_size=2)]
    assert listed == made[::-1]
    assert [job.id for job in client.jobs(limit=3)] == made[::-1][:3]


def test_filters_are_the_services(client: Client, spec: dict[str, Any]) -> None:
    wanted = client.submit(spec | {"name": "two", "labels": {"team": "vision", "run": "1"}})
    client.submit(spec | {"labels": {"team": "vision"}})
    assert [job.id for job in client.jobs(labels=["team:vision", "run:1"])] == [wanted.id]
    assert [job.id for job in client.jobs(name="two")] == [wanted.id]
    assert list(client.jobs(status="failed")) == []


def test_a_submit_whose_answer_is_lost_makes_one_job(
    service: LiveService, client: Client, spec: dict[str, Any]
) -> None:
    service.faults.next("/v1/jobs", cut_off(-1))
    job = client.submit(spec)
    assert [item.id for item in client.jobs()] == [job.id]
    keys = [headers["idempotency-key"] for method, path, headers in service.faults.seen if (method, path) == POST_JOB]
    assert len(keys) == 2
    assert len(set(keys)) == 1


POST_JOB = ("POST", "/v1/jobs")


def test_requests_are_repeated_when_the_service_is_busy(
    service: LiveService, client: Client, spec: dict[str, Any]
) -> None:
    job = client.submit(spec)
    service.faults.next("/v1/jobs/", answer(503, Retry_After="0"))
    service.faults.next("/v1/jobs/", answer(429, Retry_After="0"))
    assert client.job(job.id).id == job.id


def test_what_must_not_happen_twice_is_not_repeated(service: LiveService, client: Client, spec: dict[str, Any]) -> None:
    job = client.submit(spec)
    service.faults.next("cancel", answer(503, Retry_After="0"))
    with pytest.raises(ServiceError) as error:
        client.cancel(job.id)
    assert error.value.status == 503
    assert client.job(job.id).status == "queued"


def test_a_service_that_stays_busy_is_given_up(service: LiveService, client: Client) -> None:
    service.faults.next("/v1/jobs", answer(503, Retry_After="0"), times=4)
    with pytest.raises(ServiceError, match="503"):
        list(client.jobs())
    assert not service.faults.plan


def test_errors_carry_every_wrong_field_and_the_request(client: Client) -> None:
    wrong = job_document("file_none", student={"architecture": "mlp", "hidden": [0]}, colour="red")
    with pytest.raises(ServiceError) as caught:
        client.submit(wrong)
    error = caught.value
    assert (error.status, error.type) == (422, "invalid_request")
    assert {problem.param for problem in error.errors} == {"student.hidden[0]", "colour"}
    assert error.param == error.errors[0].param
    assert error.request_id is not None
    assert error.request_id.startswith("req_")


def test_an_answer_that_is_not_the_services_is_an_error(service: LiveService, client: Client) -> None:
    service.faults.next("/v1/version", answer(502))
    with pytest.raises(ServiceError) as error:
        client.version()
    assert (error.value.status, error.value.code) == (502, "unexpected_answer")


def test_a_wrong_key_says_so(service: LiveService) -> None:
    with Client(service.url, "still_wrong") as client, pytest.raises(ServiceError) as error:
        list(client.jobs())
    assert error.value.status == 401
    assert "STILLHOUSE_API_KEY" in str(error.value.hint)


def test_no_service_is_unreachable() -> None:
    with (
        Client("http://127.0.0.1:1", "still_x", retries=0) as client,
        pytest.raises(Unreachable, match="does not respond"),
    ):
        client.version()


@pytest.mark.parametrize("job_id", ["", "..", "."])
def test_ids_that_would_change_the_address_are_refused(client: Client, job_id: str) -> None:
    with pytest.raises(BadRequest):
        client.job(job_id)


def test_ids_cannot_lead_to_another_resource(client: Client) -> None:
    with pytest.raises(ServiceError) as error:
        client.job("x/../../models?limit=1#")
    assert error.value.status == 404


def test_validate_names_everything_or_estimates(client: Client, spec: dict[str, Any]) -> None:
    good = client.validate(spec)
    assert good.valid
    assert good.parameters == 64 * 4 + 4 + 4 * 10 + 10
    assert good.estimate is not None
    bad = client.validate(spec | {"recipe": {"losses": [{"kind": "kd"}], "epochs": 0}})
    assert not bad.valid
    assert "recipe.epochs" in {problem.param for problem in bad.errors}


def test_the_life_of_a_job_can_be_steered(client: Client, spec: dict[str, Any]) -> None:
    job = client.submit(spec)
    assert client.prioritise(job.id, 90).priority == 90
    assert client.pause(job.id).status == "paused"
    assert client.resume(job.id).status == "queued"
    assert client.cancel(job.id).status == "cancelled"
    with pytest.raises(ServiceError) as error:
        client.resume(job.id)
    assert error.value.status == 409
    twin = client.clone(job.id, {"name": "twin"})
    assert (twin.name, twin.cloned_from, twin.spec["seed"]) == ("twin", job.id, client.job(job.id).spec["seed"])


def test_wait_returns_the_job_as_it_ended(service: LiveService, client: Client, spec: dict[str, Any]) -> None:
    job = client.submit(spec)
    lease = service.start(job.id)
    ended: list[str] = []
    waiter = threading.Thread(target=lambda: ended.append(client.wait(job.id, timeout_seconds=20).status))
    waiter.start()
    service.report(lease, 3)
    service.fail(lease, "the loss is NaN")
    waiter.join(20)
    assert ended == ["failed"]
    error = client.job(job.id).error
    assert error is not None
    assert (error.fault, error.code, error.step) == ("user", "nan_loss", 3)


def test_wait_gives_up_at_its_time_limit(client: Client, spec: dict[str, Any]) -> None:
    with pytest.raises(TimeoutError):
        client.wait(client.submit(spec).id, timeout_seconds=0.2)


def test_watch_misses_nothing_over_a_lost_connection(
    service: LiveService, client: Client, spec: dict[str, Any]
) -> None:
    job = client.submit(spec)
    lease = service.start(job.id)
    again = threading.Event()
    service.faults.next("/events", cut_off(500))
    service.faults.next("/events", answer(503, Retry_After="0"))
    service.faults.next("/events", tell(again))
    seen: list[int] = []
    watcher = threading.Thread(target=lambda: seen.extend(event.seq for event in client.watch(job.id)))
    watcher.start()
    assert again.wait(20)
    service.succeed(lease, {"config.json": b"{}"})
    watcher.join(20)
    assert seen == [event.seq for event in client.events(job.id)] == list(range(1, len(seen) + 1))
    streams = [headers for _, path, headers in service.faults.seen if "event-stream" in headers["accept"]]
    assert "last-event-id" not in streams[0]
    assert int(streams[2]["last-event-id"]) > 0


def test_watch_goes_on_after_an_event(service: LiveService, client: Client, spec: dict[str, Any]) -> None:
    job = client.submit(spec)
    service.succeed(service.start(job.id), {"config.json": b"{}"})
    events = client.events(job.id)
    assert [event.seq for event in client.watch(job.id, after=2)] == [event.seq for event in events[2:]]


def test_watching_an_ended_job_from_its_last_event_ends_at_once(client: Client, spec: dict[str, Any]) -> None:
    job = client.cancel(client.submit(spec).id)
    last = client.events(job.id)[-1].seq
    assert list(client.watch(job.id, after=last)) == []


def test_metrics_come_as_series(service: LiveService, client: Client, spec: dict[str, Any]) -> None:
    job = client.submit(spec)
    lease = service.start(job.id)
    for step in range(1, 9):
        service.report(lease, step, loss=1 / step)
    [series] = client.metrics(job.id, "train/loss")
    assert series.steps == list(range(1, 9))
    assert series.values[-1] == 1 / 8
    [thin] = client.metrics(job.id, "train/loss", points=2)
    assert len(thin.steps) < 8
    assert thin.steps[-1] == 8


def test_keys_can_be_made_listed_and_revoked(service: LiveService, client: Client) -> None:
    made = client.create_key("reader", ["read"])
    assert made.key is not None
    with Client(service.url, made.key) as reader:
        assert list(reader.jobs()) == []
        with pytest.raises(ServiceError) as error:
            reader.create_key("more")
    assert error.value.status == 403
    assert client.revoke_key(made.id).revoked_at is not None
    assert {key.name for key in client.api_keys()} == {"first", "reader"}
    with Client(service.url, made.key) as reader, pytest.raises(ServiceError):
        list(reader.jobs())


def test_the_catalogue_lists_every_loss(client: Client) -> None:
    assert {option.kind for option in client.catalog("losses")} == {
        spec.model_fields["kind"].default for spec in LOSSES
    }
    assert {option.group for option in client.catalog()} == set(GROUPS)


def test_health_and_version(client: Client) -> None:
    assert client.health()["status"] == "ok"
    assert client.version()["version"]


def test_address_and_key_come_from_the_environment(service: LiveService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_URL", service.url + "/")
    monkeypatch.setenv("STILLHOUSE_API_KEY", service.key)
    with Client() as client:
        assert client.url == service.url
        assert list(client.jobs()) == []
