"""Recommendations as clients see them: learned from the project's own jobs, or defaults with the reason."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app.core.clock import now
from app.core.ids import new_id
from app.jobs import leases, publishing
from app.models.tables import ModelRow
from app.recommendations import process
from tests.app.conftest import Api
from tests.app.jobs.builders import CONFIG

Document = dict[str, Any]
RATIOS = {"kd": 0.95, "dkd": 0.9, "logit-mse": 0.8, "nkd": 0.6}
TEACHER_SCORE = 0.9
URL = "/v1/recommendations"


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """SQLite alone: most of a test is the fit; `test_repository` has the queries on both databases."""
    return sqlite_url


async def add_model(api: Api, project_id: str) -> str:
    model = new_id("model")
    fields = {"config": CONFIG.model_dump(mode="json"), "parameters": 650, "files": [], "created_at": now()}
    async with api.services.database.write() as session:
        session.add(ModelRow(id=model, project_id=project_id, **fields))
    return model


async def upload(client: httpx.AsyncClient, index: int) -> str:
    """A file of its own for each index."""
    buffer = io.BytesIO()
    images = np.full((30 + 10 * index, 8, 8), index, np.uint8)
    np.savez(buffer, x=images, y=np.arange(len(images)) % 10)
    answer = await client.post("/v1/files", params={"name": f"{index}.npz"}, content=buffer.getvalue())
    return str(answer.json()["id"])


def job(data: str, teacher: str, **fields: Any) -> Document:
    return {"data": {"train": data}, "teacher": {"model": teacher}, "student": {"architecture": "mlp"}, **fields}


def recipe(kind: str) -> Document:
    return {"losses": [{"kind": "cross-entropy"}, {"kind": kind}], "batch_size": 8, "epochs": 2}


async def finish(api: Api, client: httpx.AsyncClient, document: Document, accuracy: float) -> str:
    """Submit a job, and end it with a report as a worker publishes it."""
    answer = await client.post("/v1/jobs", json=document)
    assert answer.status_code == 201, answer.text
    report = {
        "samples": {"train": 27, "eval": 3},
        "classes": 10,
        "targets": None,
        "student": {"accuracy": accuracy, "parameters": 300},
        "teacher": {"accuracy": TEACHER_SCORE, "parameters": 650},
        "teachers": {"teacher": {"accuracy": TEACHER_SCORE}},
        "epochs": {"by": "accuracy"},
        "data": {"embedding": {"values": [0.1] * 50}},
    }
    async with api.services.database.write() as session:
        lease = await leases.claim(session, owner="worker", queues=["any"], lease_seconds=60.0)
        assert lease is not None
        await leases.start(session, lease)
    async with api.services.database.write() as session:
        await publishing.succeed(session, lease, [], CONFIG, 300, report)
    return lease.job_id


async def run_past(api: Api, client: httpx.AsyncClient, teacher: str, sets: int = 4) -> list[str]:
    """Jobs on several data sets whose scores depend on the loss alone."""
    done = []
    for index in range(sets):
        data = await upload(client, index)
        for kind, ratio in RATIOS.items():
            done.append(await finish(api, client, job(data, teacher, recipe=recipe(kind)), ratio * TEACHER_SCORE))
    return done


async def recommended(client: httpx.AsyncClient, document: Document, top: int = 3) -> Document:
    answer = await client.post(URL, json=document, params={"top": top})
    assert answer.status_code == 200, answer.text
    found: Document = answer.json()
    return found


def kinds(found: Document) -> list[str]:
    return [each["recipe"]["losses"][-1]["kind"] for each in found["recipes"]]


async def test_recipes_of_past_jobs_are_recommended_in_the_order_of_what_they_gave(api: Api) -> None:
    teacher = await add_model(api, api.project_id)
    done = await run_past(api, api.client, teacher)
    new = job(await upload(api.client, 7), teacher)
    found = await recommended(api.client, new, top=4)
    assert (found["basis"], kinds(found)) == ("past_jobs", list(RATIOS)), found["reason"]
    assert [each["expected_ratio"] for each in found["recipes"]] == pytest.approx(list(RATIOS.values()), abs=0.08)
    for each in found["recipes"]:
        assert each["lowest_ratio"] <= each["expected_ratio"] <= each["highest_ratio"]
        assert len(each["job_ids"]) == 4
        assert (await api.client.post("/v1/jobs/validate", json=new | {"recipe": each["recipe"]})).json()["valid"]
    learned = found["learned_from"]
    assert (learned["jobs"], learned["data_sets"], learned["job_ids"]) == (16, 4, done[::-1])
    assert learned["rank_correlation"] > 0.9
    assert learned["mean_absolute_error"] < 0.1
    assert any("embedding" in note for note in found["notes"])
    assert len((await recommended(api.client, new, top=1))["recipes"]) == 1
    known = await recommended(api.client, job(await upload(api.client, 1), teacher))
    assert known["notes"] == []  # this data, with this teacher, was in a past job


async def test_recipes_that_the_job_would_be_refused_with_are_left_out(api: Api) -> None:
    teacher = await add_model(api, api.project_id)
    await run_past(api, api.client, teacher)
    feature = {"kind": "hint", "pairs": [{"teacher": "1", "student": "1"}]}
    data = await upload(api.client, 0)
    for accuracy in (0.99, 0.98):
        losses = [{"kind": "cross-entropy"}, feature]
        await finish(api, api.client, job(data, teacher, recipe={"losses": losses, "batch_size": 8}), accuracy)
    same = await recommended(api.client, job(data, teacher), top=20)
    assert "hint" in kinds(same)
    other = job(data, teacher) | {"student": {"architecture": "wide-resnet", "depth": 10, "widen": 1}}
    assert kinds(await recommended(api.client, other, top=20)) == list(RATIOS)


async def test_jobs_of_other_projects_teach_nothing(api: Api) -> None:
    foreigner = await api.foreigner()
    projects = (await foreigner.get("/v1/projects")).json()["data"]
    await run_past(api, foreigner, await add_model(api, projects[0]["id"]))
    teacher = await add_model(api, api.project_id)
    found = await recommended(api.client, job(await upload(api.client, 1), teacher))
    assert (found["basis"], found["learned_from"]["jobs"], found["learned_from"]["job_ids"]) == ("defaults", 0, [])


async def test_deleted_jobs_teach_nothing(api: Api) -> None:
    teacher = await add_model(api, api.project_id)
    for job_id in await run_past(api, api.client, teacher):
        assert (await api.client.delete(f"/v1/jobs/{job_id}")).status_code == 200
    found = await recommended(api.client, job(await upload(api.client, 1), teacher))
    assert (found["basis"], found["learned_from"]["jobs"]) == ("defaults", 0)


async def test_with_too_little_to_learn_from_there_are_defaults_with_the_reason(api: Api) -> None:
    teacher = await add_model(api, api.project_id)
    await run_past(api, api.client, teacher, sets=2)
    new = job(await upload(api.client, 7), teacher)
    found = await recommended(api.client, new)
    assert (found["basis"], found["learned_from"]["jobs"], found["learned_from"]["data_sets"]) == ("defaults", 8, 2)
    assert "8 past jobs" in found["reason"]
    assert "2 data sets" in found["reason"]
    assert kinds(found) == ["kd", "logit-mse", "dkd"]
    for each in found["recipes"]:
        assert each["expected_ratio"] is None
        assert each["reason"]
        assert (await api.client.post("/v1/jobs/validate", json=new | {"recipe": each["recipe"]})).json()["valid"]


async def test_an_order_that_does_not_carry_over_to_other_data_is_not_recommended(api: Api) -> None:
    teacher = await add_model(api, api.project_id)
    for index in range(4):
        data = await upload(api.client, index)
        turned = [*RATIOS.values()][index:] + [*RATIOS.values()][:index]
        for kind, ratio in zip(RATIOS, turned, strict=True):
            await finish(api, api.client, job(data, teacher, recipe=recipe(kind)), ratio * TEACHER_SCORE)
    found = await recommended(api.client, job(await upload(api.client, 7), teacher))
    assert found["basis"] == "defaults"
    assert "no better than chance" in found["reason"]
    assert found["learned_from"]["rank_correlation"] <= 0


async def test_a_regression_that_dies_leaves_the_defaults(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = await add_model(api, api.project_id)
    await run_past(api, api.client, teacher, sets=3)
    monkeypatch.setattr(process, "ONE_THREAD", {"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"})
    found = await recommended(api.client, job(await upload(api.client, 7), teacher))
    assert found["basis"] == "defaults"
    assert "it ended with code" in found["reason"]


async def test_a_job_that_no_recipe_makes_valid_is_refused_by_its_fields(api: Api) -> None:
    teacher, data = await add_model(api, api.project_id), await upload(api.client, 1)
    wrong: dict[str, Document] = {
        "recipe": job(data, teacher, recipe=recipe("kd")),
        "teacher": {key: value for key, value in job(data, teacher).items() if key != "teacher"},
        "colour": job(data, teacher, colour="red"),
        "data.train": job("file_unknown", teacher),
        "teacher.model": job(data, "model_unknown"),
        "student.depth": job(data, teacher) | {"student": {"architecture": "wide-resnet", "depth": 11}},
    }
    for param, document in wrong.items():
        answer = await api.client.post(URL, json=document)
        assert answer.status_code == 422, param
        assert param in [error["param"] for error in answer.json()["error"]["errors"]], answer.text
    for top in (0, 21):
        answer = await api.client.post(URL, json=job(data, teacher), params={"top": top})
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "top")


async def test_a_key_that_may_read_is_enough_and_another_projects_inputs_are_unknown(api: Api) -> None:
    teacher, data = await add_model(api, api.project_id), await upload(api.client, 1)
    assert (await (await api.with_scopes("read")).post(URL, json=job(data, teacher))).status_code == 200
    assert (await (await api.with_scopes("write")).post(URL, json=job(data, teacher))).status_code == 403
    assert (await (await api.foreigner()).post(URL, json=job(data, teacher))).status_code == 422


def test_the_api_does_not_import_scikit_learn() -> None:
    heavy = ("sklearn", "scipy", "torch")
    code = f"import json, sys, app.main; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    root = Path(__file__).parents[3]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert json.loads(output.stdout) == []
