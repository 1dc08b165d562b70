"""Models over HTTP."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from app.core.clock import now
from app.core.ids import new_id
from app.models.tables import ModelRow
from tests.app.conftest import Api
from tests.app.files.uploads import DATA, code_of, keys_in_store, send, settle

CONFIG: dict[str, Any] = {
    "architecture": {"architecture": "mlp", "hidden": [16]},
    "input": {"channels": 1, "height": 8, "width": 8},
    "preprocessing": {"mean": [0.5], "std": [0.25], "scale": 0.004},
    "classes": 10,
}


def weights(hidden: int = 16) -> bytes:
    shapes = {"0.weight": (hidden, 64), "0.bias": (hidden,), "2.weight": (10, hidden), "2.bias": (10,)}
    return save({name: np.ones(shape, np.float32) for name, shape in shapes.items()})


async def register(api: Api, file: str, **changes: Any) -> httpx.Response:
    return await api.client.post("/v1/models", json={"file": file, "config": {**CONFIG, **changes}, "name": "mine"})


async def registered(api: Api) -> dict[str, Any]:
    file = await send(api, weights(), "teacher.safetensors")
    answer = await register(api, file["id"])
    assert answer.status_code == 201, answer.text
    return {**answer.json(), "content": weights()}


async def test_uploaded_weights_become_a_model_with_a_bundle(api: Api) -> None:
    model = await registered(api)
    assert (model["parameters"], model["job_id"], model["teacher_id"]) == (16 * 64 + 16 + 160 + 10, None, None)
    shown = (await api.client.get(f"/v1/models/{model['id']}")).json()
    assert (shown["children"], shown["report"], shown["name"]) == ([], None, "mine")
    config, loaded = [
        (await api.client.get(f"/v1/models/{model['id']}/files/{file['name']}")).content for file in shown["files"]
    ]
    assert loaded == model["content"]
    assert json.loads(config)["architecture"] == CONFIG["architecture"]
    assert [file["name"] for file in shown["files"]] == ["config.json", "model.safetensors"]


async def test_measured_statistics_are_not_counted_as_weights(api: Api) -> None:
    tensors = {
        "0.weight": np.ones((10, 64), np.float32),
        "0.bias": np.ones(10, np.float32),
        "1.running_mean": np.ones(10, np.float32),
        "1.num_batches_tracked": np.array(3),
    }
    file = await send(api, save(tensors), "linear.safetensors")
    answer = await register(api, file["id"], architecture={"architecture": "mlp", "hidden": []})
    assert answer.json()["parameters"] == 650


async def test_a_model_can_teach_at_once_and_is_then_kept(api: Api) -> None:
    model, data = await registered(api), await send(api)
    spec = {
        "data": {"train": data["id"]},
        "teacher": {"model": model["id"]},
        "student": {"architecture": "mlp", "hidden": []},
        "recipe": {"losses": [{"kind": "kd"}]},
    }
    job = await api.client.post("/v1/jobs", json=spec)
    assert job.status_code == 201, job.text
    assert code_of(await api.client.delete(f"/v1/models/{model['id']}")) == (409, "model_in_use")
    await api.client.post(f"/v1/jobs/{job.json()['id']}/cancel")
    assert (await api.client.delete(f"/v1/models/{model['id']}")).status_code == 200


@pytest.mark.parametrize(
    ("changes", "params"),
    [
        ({"architecture": {"architecture": "mlp", "hidden": [17]}}, ["config.architecture"]),
        ({"classes": 11}, ["config.architecture"]),
        (
            {"preprocessing": {"mean": [0.5] * 3, "std": [1.0] * 2}},
            ["config.preprocessing.mean", "config.preprocessing.std"],
        ),
        ({"architecture": {"architecture": "vgg"}}, ["config.architecture.architecture"]),
        ({"preprocessing": {"mean": [0.5], "std": [0.0]}}, ["config.preprocessing.std[0]"]),
        ({"input": {"channels": 1, "height": 8}}, ["config.input.width"]),
    ],
)
async def test_a_description_that_does_not_fit_the_weights_is_refused(
    api: Api, changes: dict[str, Any], params: list[str]
) -> None:
    file = await send(api, weights(), "teacher.safetensors")
    before = await keys_in_store(api)
    answer = await register(api, file["id"], **changes)
    assert answer.status_code == 422
    assert [error["param"] for error in answer.json()["error"]["errors"]] == params
    assert await keys_in_store(api) == before


async def test_only_a_safetensors_file_of_the_project_will_do(api: Api) -> None:
    archive = await send(api, DATA)
    stranger = await api.foreigner()
    foreign = await stranger.post("/v1/files?name=a", content=weights())
    for file in (archive["id"], foreign.json()["id"], "file_nothing"):
        answer = await register(api, file)
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "file")


async def test_a_file_that_is_a_models_weights_can_not_be_deleted_before_the_model(api: Api) -> None:
    model = await registered(api)
    assert code_of(await api.client.delete(f"/v1/files/{model['file_id']}")) == (409, "file_in_use")
    assert (await api.client.delete(f"/v1/models/{model['id']}")).json()["deleted"]
    assert code_of(await api.client.get(f"/v1/models/{model['id']}")) == (404, "model_not_found")
    await settle(api)
    assert len(await keys_in_store(api)) == 1  # the uploaded file itself
    assert (await api.client.delete(f"/v1/files/{model['file_id']}")).status_code == 200


async def test_a_registration_and_a_deletion_at_once_leave_no_model_without_weights(api: Api) -> None:
    for _ in range(5):
        file = (await send(api, weights(), "teacher.safetensors"))["id"]
        made, deleted = await asyncio.gather(register(api, file), api.client.delete(f"/v1/files/{file}"))
        assert (made.status_code, deleted.status_code) in {(201, 409), (422, 200)}


async def test_lineage_is_shown_both_ways(api: Api) -> None:
    teacher = await registered(api)
    child = new_id("model")
    row = {"config": CONFIG, "parameters": 1, "files": [], "report": {"accuracy": 0.5}}
    async with api.services.database.write() as session:
        session.add(ModelRow(id=child, project_id=api.project_id, teacher_id=teacher["id"], created_at=now(), **row))
    assert (await api.client.get(f"/v1/models/{teacher['id']}")).json()["children"] == [child]
    shown = (await api.client.get(f"/v1/models/{child}")).json()
    assert (shown["teacher_id"], shown["report"]) == (teacher["id"], {"accuracy": 0.5})
    listed = (await api.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == [child, teacher["id"]]
    assert "report" not in listed[0]


async def test_a_file_that_the_bundle_does_not_have_is_404(api: Api) -> None:
    model = await registered(api)
    assert (await api.client.get(f"/v1/models/{model['id']}/files/model.pkl")).status_code == 404


async def test_modules_of_a_network_of_the_zoo_are_all_listed(api: Api) -> None:
    model = await registered(api)
    found = (await api.client.get(f"/v1/models/{model['id']}/modules")).json()
    assert (found["model_id"], found["source"], found["complete"]) == (model["id"], "architecture", True)
    assert found["paths"] == ["0", "1", "2", "3"]


async def test_modules_of_a_folder_are_told_by_its_tensors(api: Api) -> None:
    names = ("bert.embeddings.norm.weight", "bert.layer.10.out.weight", "bert.layer.9.out.weight", "classifier.bias")
    tensors = save({name: np.ones(2, np.float32) for name in names})
    sent = {"model.safetensors": tensors, "config.json": b'{"model_type": "bert"}'}
    files = {name: (await send(api, content, name))["id"] for name, content in sent.items()}
    made = await api.client.post("/v1/models", json={"files": files})
    assert made.status_code == 201, made.text
    found = (await api.client.get(f"/v1/models/{made.json()['id']}/modules")).json()
    assert (found["source"], found["complete"]) == ("tensors", False)
    assert found["paths"] == [
        *("bert", "bert.embeddings", "bert.embeddings.norm", "bert.layer", "bert.layer.9", "bert.layer.9.out"),
        *("bert.layer.10", "bert.layer.10.out", "classifier"),
    ]
