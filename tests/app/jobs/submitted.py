"""Jobs that are submitted to the endpoints."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np

from app.jobs import leases
from app.jobs.leases import Lease
from tests.app.conftest import Api


def archive(images: int = 20) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((images, 8, 8), np.uint8), y=np.arange(images) % 10)
    return buffer.getvalue()


def document(data: str, **fields: Any) -> dict[str, Any]:
    recipe = {"losses": [{"kind": "cross-entropy"}], "batch_size": 8, "epochs": 2}
    return {"data": {"train": data}, "student": {"architecture": "mlp"}, "recipe": recipe, **fields}


async def submit(api: Api, data: str, **fields: Any) -> dict[str, Any]:
    answer = await api.client.post("/v1/jobs", json=document(data, **fields))
    assert answer.status_code == 201, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def claim(api: Api) -> Lease:
    async with api.services.database.write() as session:
        lease = await leases.claim(session, owner="worker", queues=["any"], lease_seconds=60.0)
        assert lease is not None
        await leases.start(session, lease)
    return lease


def error_of(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    return error
