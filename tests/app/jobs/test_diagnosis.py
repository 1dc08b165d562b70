"""Diagnostics of a stored model over HTTP."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from tests.app.conftest import Api
from tests.app.files.uploads import send
from tests.app.models.test_endpoints import registered


async def data_file(api: Api) -> str:
    content = BytesIO()
    np.savez(content, x=np.zeros((200, 8, 8), np.uint8), y=np.arange(200) % 10)
    found: str = (await send(api, content.getvalue(), "digits.npz"))["id"]
    return found


async def asked(api: Api, model: str, **changes: Any) -> Any:
    wanted = {
        "data": {"train": await data_file(api)},
        "evaluation": {"diagnostics": [{"kind": "widedeep"}]},
        **changes,
    }
    return await api.client.post(f"/v1/models/{model}/diagnostics", json=wanted)


async def test_a_model_s_diagnostics_are_a_job_that_trains_nothing(api: Api) -> None:
    model = (await registered(api))["id"]
    answer = await asked(api, model, name="mine, diagnosed", seed=3)
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    spec = job["spec"]
    assert spec["student"] == {"architecture": "pretrained", "model": model, "hub": None, "uri": None} | {
        key: value for key, value in spec["student"].items() if key not in ("architecture", "model", "hub", "uri")
    }
    assert (spec["recipe"]["method"], spec["recipe"]["losses"]) == ({"kind": "untrained"}, [])
    assert (spec["data"]["classes"], spec["export"], spec["seed"]) == (10, ["safetensors"], 3)
    assert (job["status"], job["name"]) == ("queued", "mine, diagnosed")


async def test_a_repeated_request_makes_one_job(api: Api) -> None:
    model = (await registered(api))["id"]
    wanted = {"data": {"train": await data_file(api)}, "evaluation": {"diagnostics": [{"kind": "widedeep"}]}}
    answers = [
        await api.client.post(f"/v1/models/{model}/diagnostics", json=wanted, headers={"Idempotency-Key": "one"})
        for _ in range(2)
    ]
    assert len({answer.json()["id"] for answer in answers}) == 1


async def test_fields_that_are_wrong_are_named_as_they_were_given(api: Api) -> None:
    model = (await registered(api))["id"]
    wrong = {"diagnostics": [{"kind": "decision-boundary"}]}
    answer = await asked(api, model, evaluation=wrong)
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "evaluation.diagnostics[0].kind"
    answer = await asked(api, model, recipe={})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "recipe"


async def test_a_model_that_is_not_there_is_not_found(api: Api) -> None:
    assert (await asked(api, "model_none")).status_code == 404
