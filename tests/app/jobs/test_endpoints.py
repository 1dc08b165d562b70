"""The jobs resource as its clients see it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from app.jobs import reporting
from tests.app.conftest import Api
from tests.app.jobs.submitted import claim, document, error_of, submit
from worker.protocol import StepProgress


async def test_a_job_is_answered_as_it_was_resolved(api: Api, data: str) -> None:
    answer = await api.client.post("/v1/jobs", json=document(data, name="first", labels={"team": "vision"}))
    job = answer.json()
    assert (answer.status_code, answer.headers["Location"]) == (201, f"/v1/jobs/{job['id']}")
    assert (job["object"], job["status"], job["is_final"], job["queue_position"]) == ("job", "queued", False, 0)
    assert isinstance(job["spec"]["seed"], int)
    assert (await api.client.get(f"/v1/jobs/{job['id']}")).json() == job


async def test_every_wrong_field_is_named_with_what_would_be_accepted(api: Api, data: str) -> None:
    wrong = document(data, colour="red")
    wrong["recipe"] = {"losses": [{"kind": "kdd"}, {"kind": "nkd", "gama": 1}], "epochs": 0}
    answer = await api.client.post("/v1/jobs", json=wrong)
    assert answer.status_code == 422
    found = {error["param"]: error["accepted"] for error in error_of(answer)["errors"]}
    assert set(found) == {"colour", "recipe.losses[0].kind", "recipe.losses[1].gama", "recipe.epochs"}
    assert "cross-entropy" in found["recipe.losses[0].kind"]
    assert "gamma" in found["recipe.losses[1].gama"]
    assert ">= 1" in found["recipe.epochs"]


async def test_a_job_with_missing_inputs_is_refused_at_the_door(api: Api, data: str) -> None:
    answer = await api.client.post("/v1/jobs", json=document("file_0", teacher={"model": "model_0"}))
    assert answer.status_code == 422
    assert [error["param"] for error in error_of(answer)["errors"]][:2] == ["data.train", "teacher.model"]


async def test_the_same_request_with_one_key_is_one_job(api: Api, data: str) -> None:
    headers = {"Idempotency-Key": "only-once"}
    first, second = [await api.client.post("/v1/jobs", json=document(data), headers=headers) for _ in range(2)]
    assert first.json()["id"] == second.json()["id"]
    other = await api.client.post("/v1/jobs", json=document(data, name="other"), headers=headers)
    assert (other.status_code, error_of(other)["code"]) == (422, "idempotency_key_reused")
    foreigner = await api.foreigner()
    assert (await foreigner.post("/v1/jobs", json=document(data), headers=headers)).status_code == 422


async def test_validation_tells_steps_parameters_memory_and_time(api: Api, data: str) -> None:
    view = (await api.client.post("/v1/jobs/validate", json=document(data))).json()
    assert (view["valid"], view["errors"]) == (True, [])
    assert (view["steps_per_epoch"], view["total_steps"]) == (2, 4)
    assert view["parameters"] == 64 * 64 + 64 + 64 * 10 + 10
    assert view["estimate"]["memory_bytes"] > 0
    assert view["estimate"]["seconds"] > 0
    assert view["estimate"]["basis"].startswith("assumed")
    listed = (await api.client.get("/v1/jobs")).json()
    assert listed["data"] == []


async def test_validation_tells_all_errors_and_is_no_error_itself(api: Api, data: str) -> None:
    answer = await api.client.post("/v1/jobs/validate", json={**document("file_0"), "student": {"architecture": "x"}})
    assert answer.status_code == 200
    assert [error["param"] for error in answer.json()["errors"]] == ["student.architecture"]
    answer = await api.client.post("/v1/jobs/validate", json=document("file_0"))
    assert [error["param"] for error in answer.json()["errors"]] == ["data.train"]


async def test_lists_are_filtered_before_the_limit(api: Api, data: str) -> None:
    wanted = await submit(api, data, name="wanted", labels={"team": "vision", "run": "1"})
    for _ in range(3):
        await submit(api, data, name="noise", labels={"team": "audio"})

    async def found(**params: Any) -> list[str]:
        listed = (await api.client.get("/v1/jobs", params={"limit": 1, **params})).json()
        assert listed["has_more"] is False
        return [job["id"] for job in listed["data"]]

    assert await found(name="wanted") == [wanted["id"]]
    assert await found(label=["team:vision", "run:1"]) == [wanted["id"]]
    assert await found(label=["team:vision", "run:2"]) == []
    assert await found(created_before=wanted["created_at"]) == []
    await api.client.post(f"/v1/jobs/{wanted['id']}/cancel")
    assert await found(status="cancelled") == [wanted["id"]]
    assert await found(status=["failed", "cancelled"]) == [wanted["id"]]


async def test_pages_lead_through_all_jobs_newest_first(api: Api, data: str) -> None:
    made = [(await submit(api, data))["id"] for _ in range(5)]
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 2}
    while True:
        listed = (await api.client.get("/v1/jobs", params=params)).json()
        seen += [job["id"] for job in listed["data"]]
        if not listed["has_more"]:
            break
        params["after"] = listed["last_id"]
    assert sorted(seen, reverse=True) == seen
    assert set(seen) == set(made)


@pytest.mark.parametrize(
    "params",
    [{"status": "done"}, {"limit": 0}, {"limit": 101}, {"label": "novalue"}, {"created_after": "yesterday"}, {"x": 1}]
    + [{"created_before": moment} for moment in ("0.5", "1767225600", "2026-01-31T12:00:00")],
)
async def test_filters_that_mean_nothing_are_refused(api: Api, params: dict[str, Any]) -> None:
    answer = await api.client.get("/v1/jobs", params=params)
    assert answer.status_code == 422
    assert error_of(answer)["errors"][0]["param"].startswith(next(iter(params)))


async def test_verbs_move_a_job_and_a_wrong_state_is_a_conflict(api: Api, data: str) -> None:
    job = await submit(api, data)
    url = f"/v1/jobs/{job['id']}"
    assert (await api.client.post(f"{url}/pause")).json()["status"] == "paused"
    assert (await api.client.post(f"{url}/resume")).json()["status"] == "queued"
    assert (await api.client.patch(url, json={"priority": 90})).json()["priority"] == 90
    assert (await api.client.post(f"{url}/cancel")).json()["status"] == "cancelled"
    for verb in ("pause", "resume"):
        answer = await api.client.post(f"{url}/{verb}")
        assert (answer.status_code, error_of(answer)["code"]) == (409, "wrong_state")
    assert (await api.client.patch(url, json={"priority": 1})).status_code == 409


async def test_a_running_job_is_asked_to_stop(api: Api, data: str) -> None:
    job = await submit(api, data)
    await claim(api)
    assert (await api.client.post(f"/v1/jobs/{job['id']}/cancel")).json()["status"] == "cancelling"


async def test_a_clone_repeats_the_job_but_for_what_is_overridden(api: Api, data: str) -> None:
    job = await submit(api, data, name="original", seed=7)
    same = (await api.client.post(f"/v1/jobs/{job['id']}/clone")).json()
    assert (same["spec"], same["cloned_from"]) == (job["spec"], job["id"])
    other = (await api.client.post(f"/v1/jobs/{job['id']}/clone", json={"name": "other", "seed": None})).json()
    assert other["spec"]["name"] == "other"
    assert other["spec"]["seed"] != 7
    assert other["spec"]["recipe"] == job["spec"]["recipe"]
    wrong = await api.client.post(f"/v1/jobs/{job['id']}/clone", json={"data": {"train": "file_0"}})
    assert error_of(wrong)["errors"][0]["param"] == "data.train"


async def test_a_clone_s_field_can_not_be_null(api: Api, data: str) -> None:
    job = await submit(api, data)
    answer = await api.client.post(f"/v1/jobs/{job['id']}/clone", json={"data": None})
    assert (answer.status_code, error_of(answer)["param"]) == (422, "data")


async def test_progress_is_seen_as_it_is_recorded(api: Api, data: str) -> None:
    """A reader that remembers answers must notice every change."""
    job = await submit(api, data)
    url = f"/v1/jobs/{job['id']}"
    assert (await api.client.get(url)).json()["status"] == "queued"
    lease = await claim(api)
    assert (await api.client.get(url)).json()["status"] == "running"
    for step in (1, 2):
        report = StepProgress(step=step, total_steps=4, epoch=0.5, samples_per_second=9.0, seconds_left=1.0)
        async with api.services.database.write() as session:
            await reporting.record(session, lease, report, [])
        assert (await api.client.get(url)).json()["progress"]["step"] == step
    async with api.services.database.write() as session:
        await reporting.begin_phase(session, lease, "training")
    assert [phase["phase"] for phase in (await api.client.get(url)).json()["phases"]] == ["training"]


async def test_a_queue_position_follows_the_queue(api: Api, data: str) -> None:
    first, second = await submit(api, data), await submit(api, data)
    url = f"/v1/jobs/{second['id']}"
    assert (await api.client.get(url)).json()["queue_position"] == 1
    await api.client.post(f"/v1/jobs/{first['id']}/cancel")
    assert (await api.client.get(url)).json()["queue_position"] == 0


async def test_many_readers_at_once_all_get_their_own_job(api: Api, data: str) -> None:
    jobs = [await submit(api, data, name=f"job-{n}") for n in range(5)]
    asked = [job["id"] for job in jobs for _ in range(8)] + ["job_missing"]
    answers = await asyncio.gather(*(api.client.get(f"/v1/jobs/{job_id}") for job_id in asked))
    assert [answer.status_code for answer in answers] == [200] * 40 + [404]
    assert [answer.json()["id"] for answer in answers[:-1]] == asked[:-1]
