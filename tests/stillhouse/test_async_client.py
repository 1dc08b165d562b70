"""The asynchronous client against the real service, with answers lost and cut on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from stillhouse import AsyncClient, Client, ServiceError, TransferError, local_files
from tests.stillhouse.conftest import LiveService, answer, cut_off, job_document, spoil

WEIGHTS = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
async def remote(service: LiveService) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.url, service.key) as client:
        yield client


@pytest.fixture
def job_id(client: Client, data_file: Path) -> str:
    """A queued job."""
    return client.submit(job_document(str(data_file))).id


async def test_local_data_is_sent_and_the_job_made_once(
    service: LiveService, remote: AsyncClient, data_file: Path
) -> None:
    service.faults.next("/v1/jobs", cut_off(-1))
    job = await remote.submit(job_document(data_file.name), folder=data_file.parent)
    assert [item.id async for item in remote.jobs()] == [job.id]
    assert (await remote.cancel(job.id)).status == "cancelled"
    with pytest.raises(ServiceError) as refused:
        await remote.resume(job.id)
    assert refused.value.status == 409


async def test_watching_misses_nothing_and_leaves_the_loop_free(
    service: LiveService, remote: AsyncClient, job_id: str
) -> None:
    lease = await asyncio.to_thread(service.start, job_id)
    service.faults.next("/events", cut_off(500))
    service.faults.next("/events", answer(503, Retry_After="0"))
    seen: list[int] = []
    running = asyncio.Event()

    async def watch() -> None:
        async for event in remote.watch(job_id):
            seen.append(event.seq)
            if event.seq == 3:  # queued, leased and running
                running.set()

    watching = asyncio.create_task(watch())
    await running.wait()
    await asyncio.to_thread(service.succeed, lease, {"config.json": b"{}"})
    await watching
    assert seen == [event.seq for event in await remote.events(job_id)] == list(range(1, len(seen) + 1))
    assert (await remote.wait(job_id)).status == "succeeded"


async def test_waiting_ends_at_its_limit_and_when_it_is_cancelled(remote: AsyncClient, job_id: str) -> None:
    with pytest.raises(TimeoutError):
        await remote.wait(job_id, timeout_seconds=0.2)
    waiting = asyncio.create_task(remote.wait(job_id))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await remote.job(job_id)).status == "queued"


async def test_a_broken_upload_is_resumed_without_its_first_parts(
    service: LiveService, remote: AsyncClient, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_files, "PART_BYTES", 1000)
    service.faults.next("/parts/3", cut_off(-1))
    async with AsyncClient(service.url, service.key, outage_seconds=0.0) as impatient:
        with pytest.raises(TransferError) as broken:
            await impatient.upload(data_file)
    before = len(service.faults.seen)
    file = await remote.upload(data_file, resume=broken.value.upload_id)
    assert file.sha256 == local_files.sha256_of(data_file)
    sent = [path for method, path, _ in service.faults.seen[before:] if method == "PUT"]
    assert sent
    assert not any(path.endswith(("/1", "/2")) for path in sent)


async def test_a_download_is_resumed_and_verified(
    service: LiveService, remote: AsyncClient, job_id: str, tmp_path: Path
) -> None:
    lease = await asyncio.to_thread(service.start, job_id)
    await asyncio.to_thread(service.succeed, lease, {"model.safetensors": WEIGHTS})
    service.faults.next("/artifacts/model", cut_off(1_000_000))
    path = await remote.download(job_id, "model.safetensors", tmp_path / "out")
    assert path.read_bytes() == WEIGHTS
    assert service.faults.seen[-1][2]["range"].startswith("bytes=")
    service.faults.next("/artifacts/model", spoil)
    with pytest.raises(TransferError, match="sha256"):
        await remote.download(job_id, "model.safetensors", tmp_path / "spoiled")
    assert not list((tmp_path / "spoiled").iterdir())
