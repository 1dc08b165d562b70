"""What the endpoints give of a job: events, metrics, artifacts, estimates."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest

from app.jobs import publishing, reporting
from app.jobs.leases import Lease, StoredFile
from app.jobs.lifecycle import Status
from app.models.uploads import once
from tests.app.conftest import Api
from tests.app.jobs.builders import CONFIG
from tests.app.jobs.submitted import claim, document, error_of, submit


async def test_events_come_as_pages(api: Api, data: str) -> None:
    job = await submit(api, data)
    await api.client.post(f"/v1/jobs/{job['id']}/cancel")
    url = f"/v1/jobs/{job['id']}/events"
    first = (await api.client.get(url, params={"limit": 1})).json()
    assert ([event["seq"] for event in first["data"]], first["has_more"]) == ([1], True)
    rest = (await api.client.get(url, params={"after": 1})).json()
    assert ([event["data"]["to"] for event in rest["data"]], rest["has_more"]) == (["cancelled"], False)


async def test_a_stream_of_events_goes_on_where_the_client_was_and_ends_with_the_job(api: Api, data: str) -> None:
    job = await submit(api, data)
    await api.client.post(f"/v1/jobs/{job['id']}/cancel")
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "1"}
    answer = await api.client.get(f"/v1/jobs/{job['id']}/events", headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.splitlines()
    assert [line for line in lines if line.startswith(("id:", "event:"))] == ["event: status", "id: 2"]


@pytest.mark.parametrize("seen", [2, 99])
async def test_a_stream_for_a_client_that_has_seen_the_end_ends_at_once(api: Api, data: str, seen: int) -> None:
    job = await submit(api, data)
    await api.client.post(f"/v1/jobs/{job['id']}/cancel")
    headers = {"Accept": "text/event-stream", "Last-Event-ID": str(seen)}
    answer = await api.client.get(f"/v1/jobs/{job['id']}/events", headers=headers)
    assert (answer.status_code, answer.text) == (200, "")


async def test_metrics_are_thinned_and_keep_their_extremes(api: Api, data: str) -> None:
    job = await submit(api, data)
    lease = await claim(api)
    values = [(step, 1000.0 if step == 333 else -1000.0 if step == 444 else float(step % 7)) for step in range(1000)]
    async with api.services.database.write() as session:
        await reporting.record(session, lease, None, [("train/loss", step, value) for step, value in values])
    url = f"/v1/jobs/{job['id']}/metrics"
    (series,) = (await api.client.get(url, params={"points": 20})).json()["data"]
    assert 10 <= len(series["steps"]) <= 20
    points = list(zip(series["steps"], series["values"], strict=True))
    assert {(333, 1000.0), (444, -1000.0)} <= set(points)
    assert points == sorted(points)
    (whole,) = (await api.client.get(url, params={"points": 5000, "name": "train/loss"})).json()["data"]
    assert list(zip(whole["steps"], whole["values"], strict=True)) == values


async def finish(api: Api, lease: Lease, content: bytes) -> None:
    async def chunks() -> Any:
        yield content

    stored = await api.services.store.write(f"jobs/{lease.job_id}/report.json", chunks(), 1 << 20)
    artifact = StoredFile("report.json", stored.key, stored.size, stored.sha256, "application/json")
    async with api.services.database.write() as session:
        await publishing.succeed(session, lease, [artifact], CONFIG, 650, {"student": {"accuracy": 0.5}})


async def test_artifacts_are_listed_and_downloaded_with_their_digest(api: Api, data: str) -> None:
    job = await submit(api, data)
    await finish(api, await claim(api), b'{"accuracy": 0.5}')
    url = f"/v1/jobs/{job['id']}/artifacts"
    (artifact,) = (await api.client.get(url)).json()["data"]
    whole = await api.client.get(f"{url}/report.json")
    assert (whole.content, whole.headers["ETag"]) == (b'{"accuracy": 0.5}', f'"{artifact["sha256"]}"')
    part = await api.client.get(f"{url}/report.json", headers={"Range": "bytes=2-9"})
    assert (part.status_code, part.content) == (206, b"accuracy")
    assert (await api.client.get(f"{url}/none.json")).status_code == 404
    finished = (await api.client.get(f"/v1/jobs/{job['id']}")).json()
    assert (finished["status"], finished["is_final"]) == (Status.SUCCEEDED, True)
    model = (await api.client.get(f"/v1/models/{finished['model_id']}")).json()
    assert model["job_id"] == job["id"]


PATHS = ("", "/events", "/metrics", "/checkpoints", "/artifacts", "/artifacts/report.json")


@pytest.mark.parametrize("path", PATHS)
async def test_another_project_s_job_is_not_found(api: Api, data: str, path: str) -> None:
    job = await submit(api, data)
    await finish(api, await claim(api), b"{}")
    assert (await api.client.get(f"/v1/jobs/{job['id']}{path}")).status_code == 200
    foreigner = await api.foreigner()
    assert (await foreigner.get(f"/v1/jobs/{job['id']}{path}")).status_code == 404
    assert (await foreigner.get("/v1/jobs")).json()["data"] == []


async def test_a_file_is_not_deleted_under_a_job_that_needs_it(api: Api, data: str) -> None:
    job = await submit(api, data)
    assert (await api.client.delete(f"/v1/files/{data}")).status_code == 409
    await api.client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (await api.client.delete(f"/v1/files/{data}")).status_code in (200, 204)


@pytest.mark.parametrize(
    ("teacher", "param"),
    [
        ({"hub": "owner/name", "revision": "main"}, "teacher.revision"),
        ({"hub": "owner/name"}, "teacher"),
        ({"uri": "s3://bucket/elsewhere"}, "teacher.uri"),
        ({"uri": "http://127.0.0.1/teacher"}, "teacher.uri"),
    ],
)
async def test_a_teacher_from_outside_is_refused_by_the_field_that_names_it(
    api: Api, data: str, teacher: dict[str, str], param: str
) -> None:
    spec = document(data, teacher=teacher, recipe={"losses": [{"kind": "kd"}]})
    answer = await api.client.post("/v1/jobs", json=spec)
    assert answer.status_code == 422
    assert [error["param"] for error in error_of(answer)["errors"]] == [param]


async def test_a_teacher_from_a_hub_is_accepted_unseen(api: Api, data: str) -> None:
    teacher = {"hub": "owner/name", "revision": "0123456789abcdef0123456789abcdef01234567"}
    spec = document(data, teacher=teacher, recipe={"losses": [{"kind": "kd"}]})
    seen = (await api.client.post("/v1/jobs/validate", json=spec)).json()
    assert (seen["valid"], seen["estimate"]) == (True, None)
    job = (await api.client.post("/v1/jobs", json=spec)).json()
    assert job["spec"]["teacher"]["hub"] == "owner/name"
    assert (await claim(api)).spec.all_teachers[0].reference == f"owner/name@{teacher['revision']}"


PLACES = [
    (("name",), False),
    (("labels", "team"), False),
    (("labels",), True),
    (("data", "train"), False),
    (("data", "label_key"), False),
    (("data",), True),
    (("student", "config", "hidden_act"), False),
    (("student", "config"), True),
    (("student",), True),
    ((), True),
]
"""Where a text stands in a job, and whether it is a key there."""


@pytest.mark.parametrize("text", ["a\ud800", "a\0"])
async def test_what_is_no_character_is_refused_wherever_it_stands(api: Api, text: str) -> None:
    network = {"architecture": "transformers", "config": {"model_type": "vit"}}
    for place, key in PLACES:
        inner = wrong = json.loads(json.dumps(document("file_0", student=network)))
        for part in place if key else place[:-1]:
            inner = inner.setdefault(part, {})
        inner[text if key else place[-1]] = "x" if key else text
        sent = {"content": json.dumps(wrong), "headers": {"Content-Type": "application/json"}}
        assert (await api.client.post("/v1/jobs", **sent)).status_code == 422, place
        assert not (await api.client.post("/v1/jobs/validate", **sent)).json()["valid"], place


async def test_the_day_that_chats_are_told_is_recorded_once(api: Api) -> None:
    texts = await api.client.post("/v1/files", params={"name": "t.jsonl"}, content=b'{"text": "a"}\n' * 20)
    job = {
        "task": "causal-lm",
        "data": {"train": texts.json()["id"], "format": "jsonl", "input_columns": ["text"]},
        "student": {"architecture": "transformers", "config": {"model_type": "gpt2"}},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
        "export": ["safetensors"],
    }
    first = (await api.client.post("/v1/jobs", json=job)).json()
    day = date.fromisoformat(first["spec"]["data"]["chat_date"])
    assert abs((datetime.now(UTC).date() - day).days) <= 1
    told = {**job, "data": {**job["data"], "chat_date": "2024-02-29"}}  # type: ignore[dict-item]
    second = (await api.client.post("/v1/jobs", json=told)).json()
    assert second["spec"]["data"]["chat_date"] == "2024-02-29"
    again = (await api.client.post(f"/v1/jobs/{second['id']}/clone", json={})).json()
    assert again["spec"]["data"]["chat_date"] == "2024-02-29"
    told["data"] = {**job["data"], "chat_date": "2024-02-30"}  # type: ignore[dict-item]
    assert "data.chat_date" in (await api.client.post("/v1/jobs", json=told)).text


async def succeed(api: Api, accuracy: float, teacher: float | None = None, **report: Any) -> None:
    lease = await claim(api)
    teachers = {} if teacher is None else {"teacher": {"accuracy": teacher}}
    figures = {"student": {"accuracy": accuracy}, "teachers": teachers, "epochs": {"by": "accuracy"}, **report}
    key = f"jobs/{lease.job_id}/model.safetensors"
    await api.services.store.write(key, once(b"weights"))
    files = [StoredFile("model.safetensors", key, 7, "0" * 64)]
    async with api.services.database.write() as session:
        await publishing.succeed(session, lease, files, CONFIG, 650, figures)


async def teacher_of(api: Api, data: str) -> str:
    await submit(api, data)
    await succeed(api, 0.9)
    model_id: str = (await api.client.get("/v1/models")).json()["data"][0]["id"]
    return model_id


async def test_a_result_stands_beside_its_teacher_and_the_student_alone(api: Api, data: str) -> None:
    teacher = await teacher_of(api, data)
    kd = document(data, teacher={"model": teacher}, student={"architecture": "mlp", "hidden": [8]})
    kd["recipe"]["losses"].append({"kind": "kd"})
    job = (await api.client.post("/v1/jobs", json=kd)).json()
    path = f"/v1/jobs/{job['id']}/result"
    early = await api.client.get(path)
    assert (early.status_code, error_of(early)["code"]) == (409, "no_result")
    await succeed(api, 0.8, 0.9, warnings=[{"code": "weak_teacher", "message": "is near chance"}])
    result = (await api.client.get(path)).json()
    assert (result["metric"], result["value"], result["teachers"]) == ("accuracy", 0.8, {"teacher": 0.9})
    assert result["difference"] == pytest.approx(-0.1)
    assert (result["alone"], result["warnings"]) == (None, [{"code": "weak_teacher", "message": "is near chance"}])
    assert [file["name"] for file in result["artifacts"]] == ["model.safetensors"]
    shown = (await api.client.get(f"/v1/jobs/{job['id']}")).json()["result"]
    assert (shown["value"], shown["higher_is_better"]) == (0.8, True)
    plain = await submit(api, data, student={"architecture": "mlp", "hidden": [8]}, name="plain")
    await succeed(api, 0.7)
    alone = (await api.client.get(path)).json()["alone"]
    assert (alone["job_id"], alone["name"], alone["value"]) == (plain["id"], "plain", 0.7)
    assert alone["difference"] == pytest.approx(0.1)
    await submit(api, data, student={"architecture": "mlp", "hidden": [16]})
    await succeed(api, 0.1)
    assert (await api.client.get(path)).json()["alone"]["job_id"] == plain["id"]


async def test_a_deleted_job_is_gone_and_its_model_stays(api: Api, data: str) -> None:
    job = await submit(api, data, name="gone")
    path = f"/v1/jobs/{job['id']}"
    refused = await api.client.delete(path)
    assert (refused.status_code, error_of(refused)["code"]) == (409, "wrong_state")
    await succeed(api, 0.5)
    foreigner = await api.foreigner()
    assert (await foreigner.delete(path)).status_code == 404
    assert (await api.client.get(path)).status_code == 200
    assert (await api.client.delete(path)).json() == {"id": job["id"], "object": "job", "deleted": True}
    for address in (path, f"{path}/events", f"{path}/result", f"{path}/artifacts"):
        assert (await api.client.get(address)).status_code == 404
    assert (await api.client.delete(path)).status_code == 404
    assert (await api.client.get("/v1/jobs")).json()["data"] == []
    [model] = (await api.client.get("/v1/models")).json()["data"]
    file = await api.client.get(f"/v1/models/{model['id']}/files/model.safetensors")
    assert file.content == b"weights"
    assert (await api.client.delete(f"/v1/models/{model['id']}")).status_code == 200


async def test_the_key_of_a_deleted_job_makes_a_new_one(api: Api, data: str) -> None:
    headers = {"Idempotency-Key": "again"}
    first = (await api.client.post("/v1/jobs", json=document(data), headers=headers)).json()
    await api.client.post(f"/v1/jobs/{first['id']}/cancel")
    await api.client.delete(f"/v1/jobs/{first['id']}")
    second = await api.client.post("/v1/jobs", json=document(data), headers=headers)
    assert (second.status_code, second.json()["id"] != first["id"]) == (201, True)


async def test_validation_tells_what_was_chosen_what_is_remarkable_and_what_each_device_takes(
    api: Api, data: str
) -> None:
    asked = document(data, student={"architecture": "vit", "patch_size": 2}, resources={"queue": "gpu"})
    asked["recipe"] |= {"batch_size": 512, "schedule": {"kind": "cosine", "warmup_steps": 50}}
    view = (await api.client.post("/v1/jobs/validate", json=asked)).json()
    assert [each["param"] for each in view["defaults"]] == ["recipe.optimizer"]
    assert view["defaults"][0]["value"] == {"kind": "adamw", **view["spec"]["recipe"]["optimizer"]}
    assert view["defaults"][0]["reason"].startswith("a small vision transformer")
    assert {each["code"] for each in view["warnings"]} == {
        "batch_exceeds_data",
        "warmup_exceeds_training",
        "queue_unserved",
    }
    estimate = view["estimate"]
    gpu, cpu = estimate["devices"]
    assert (gpu["device"], cpu["device"], cpu["gpu_memory_bytes"]) == ("gpu", "cpu", None)
    assert estimate["memory_bytes"] == gpu["memory_bytes"] > 400 << 20
    parts = ("training_seconds", "evaluating_seconds", "exporting_seconds")
    assert estimate["seconds"] == pytest.approx(sum(estimate[part] for part in parts))
    made = (await api.client.post("/v1/jobs", json=asked)).json()
    assert {each["code"] for each in made["warnings"]} == {"batch_exceeds_data", "warmup_exceeds_training"}
    assert "no worker is running" in made["reason"]
    assert made["spec"]["recipe"]["optimizer"] == view["spec"]["recipe"]["optimizer"]


async def test_the_memory_of_a_model_of_texts_is_told_before_anybody_counts_its_texts(api: Api) -> None:
    sent = await api.client.post("/v1/files", params={"name": "a.jsonl"}, content=b'{"text": "a b"}\n{"text": "c"}\n')
    llama = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    data = {"train": sent.json()["id"], "format": "jsonl", "input_columns": ["text"], "tokenizer": {"kind": "bpe"}}
    recipe = {"losses": [{"kind": "cross-entropy"}]}
    asked = {
        "task": "causal-lm",
        "data": data,
        "student": {"architecture": "transformers", "config": llama},
        "recipe": recipe,
    }
    view = (await api.client.post("/v1/jobs/validate", json=asked)).json()
    assert (view["valid"], view["total_steps"], view["parameters"]) == (True, None, None)
    assert view["estimate"]["memory_bytes"] > 500 << 20
    assert view["estimate"]["seconds"] is None


@pytest.mark.parametrize(
    ("task", "loss"), [("regression", "mse"), ("multi-label-classification", "binary-cross-entropy")]
)
async def test_nothing_is_told_of_a_network_of_numbers_whose_table_nobody_has_read(
    api: Api, task: str, loss: str
) -> None:
    sent = await api.client.post("/v1/files", params={"name": "a.csv"}, content=b"a,b\n1,2\n3,4\n")
    data = {"train": sent.json()["id"], "format": "csv", "input_columns": ["a"], "label_columns": ["b"]}
    asked = {"task": task, "data": data, "student": {"architecture": "mlp"}, "recipe": {"losses": [{"kind": loss}]}}
    view = (await api.client.post("/v1/jobs/validate", json=asked)).json()
    assert (view["valid"], view["total_steps"], view["estimate"]) == (True, None, None)
