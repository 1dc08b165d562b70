"""Uploads by the endpoints."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from typing import Any

import httpx
import numpy as np
from sqlalchemy import select

from app.core.outbox import OutboxMessage
from tests.app.conftest import Api


def archive(samples: int = 30) -> bytes:
    buffer = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 255, (samples, 8, 8), np.uint8)
    np.savez(buffer, x=images, y=np.arange(samples) % 10)
    return buffer.getvalue()


DATA = archive()


PARTS = [DATA[start : start + 1000] for start in range(0, len(DATA), 1000)]


async def send(api: Api, content: bytes = DATA, name: str = "digits.npz") -> dict[str, Any]:
    answer = await api.client.post("/v1/files", params={"name": name}, content=content)
    assert answer.status_code == 201, answer.text
    sent: dict[str, Any] = answer.json()
    return sent


async def begin(api: Api, **fields: Any) -> str:
    answer = await api.client.post("/v1/uploads", json={"name": "digits.npz", **fields})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def send_part(api: Api, upload: str, number: int, content: bytes, **headers: str) -> httpx.Response:
    return await api.client.put(f"/v1/uploads/{upload}/parts/{number}", content=content, headers=headers)


async def send_parts(api: Api, upload: str) -> None:
    for number, part in enumerate(PARTS, 1):
        assert (await send_part(api, upload, number, part)).status_code == 200


async def complete(api: Api, upload: str, **body: Any) -> httpx.Response:
    return await api.client.post(f"/v1/uploads/{upload}/complete", json=body)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def keys_in_store(api: Api) -> set[str]:
    listed = await api.services.store._backend.list().collect_async()
    return {entry["path"] for entry in listed} - {"healthz"}


async def settle(api: Api) -> None:
    """Wait until the relay has sent everything, so that given-up objects are gone."""
    while True:
        async with api.services.database.read() as session:
            if await session.scalar(select(OutboxMessage.id).limit(1)) is None:
                return
        await asyncio.sleep(0.02)


def content_digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"
