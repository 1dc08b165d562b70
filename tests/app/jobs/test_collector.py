"""Objects without a row go, after a while; what a row speaks of, or a live attempt writes, stays."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import update

from app.core.clock import now
from app.core.database import Database
from app.core.settings import Settings
from app.core.store import Store
from app.files.tables import FileRow, UploadPart, UploadRow
from app.jobs import collector as collector_module
from app.jobs import leases, publishing
from app.jobs.collector import MARK, Collector
from app.jobs.leases import Lease, StoredFile
from app.jobs.tables import SweepLease
from app.models.tables import ModelRow
from app.projects.tables import Project
from tests.app.jobs.builders import CONFIG, PROJECT, let_lease_run_out, must_claim, running, submit
from tests.servers import S3

INPUTS = (f"files/{PROJECT}", "bundle/config.json")
HEX = "0123456789abcdef" * 2


@pytest.fixture(params=["disk", "s3_moto", "s3_rclone"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """An empty store of each kind."""
    if request.param != "disk":
        server: S3 = request.getfixturevalue(request.param)
        for name, value in server.settings(prefix=f"collector-{os.getpid()}-{time.monotonic_ns()}").items():
            monkeypatch.setenv(name, value)
    return Store.from_settings(Settings(data_dir=tmp_path))


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the collector's clock on, which stands still otherwise."""
    clock = [0.0]
    monkeypatch.setattr(collector_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def pass_by(seconds: float) -> None:
        clock[0] += seconds

    return pass_by


@pytest.fixture
async def ours(database: Database, store: Store) -> Database:
    """The database, with the objects of the inputs that jobs may name in the store."""
    await put(store, *INPUTS)
    return database


def collecting(database: Database, store: Store, owner: str = "collector") -> Collector:
    return Collector(database, store, owner, grace_seconds=300.0)


async def put(store: Store, *keys: str) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"x"

    for key in keys:
        await store.write(key, content())


async def all_keys(store: Store) -> list[str]:
    found = [key for folder in collector_module.FOLDERS for key in await store.keys(folder, "", 1000)]
    return [key for key in found if key not in INPUTS]


def folder_of(lease: Lease) -> str:
    return f"projects/{PROJECT}/jobs/{lease.job_id}/a{lease.attempt}"


async def published(database: Database, store: Store, lease: Lease, step: int) -> list[str]:
    """A published checkpoint; keys that it makes superfluous."""
    key = f"{folder_of(lease)}/checkpoints/step-{step}/state"
    await put(store, key)
    async with database.write() as session:
        return await publishing.publish_checkpoint(session, lease, step, [StoredFile("state", key, 1, "a" * 64)])


async def a_job_that_ran(database: Database, store: Store) -> tuple[set[str], set[str]]:
    """Two attempts that left litter; keys that rows speak of, and those of the litter."""
    first = await running(database, name="ran")
    for step in (1, 2, 3):
        await published(database, store, first, step)  # the first of them is superseded, and stays in the store
    litter = {f"{folder_of(first)}/checkpoints/step-1/state", f"{folder_of(first)}/checkpoints/step-9/state"}
    await put(store, f"{folder_of(first)}/checkpoints/step-9/state")
    async with database.write() as session:
        await leases.release(session, first, "its worker stops")
    second = await must_claim(database)
    async with database.write() as session:
        await leases.start(session, second)
    weights = f"{folder_of(second)}/artifacts/model.safetensors"
    zombies = f"{folder_of(first)}/artifacts/model.safetensors"
    await put(store, weights, zombies)
    async with database.write() as session:
        file = StoredFile("model.safetensors", weights, 1, "a" * 64)
        await publishing.succeed(session, second, [file], CONFIG, 1, {})
    kept = {f"{folder_of(first)}/checkpoints/step-{step}/state" for step in (2, 3)} | {weights}
    return kept, litter | {zombies}


async def files_and_parts(database: Database, store: Store) -> tuple[set[str], set[str]]:
    """A file, an upload under way and an uploaded model, and what was left of others."""
    kept = {f"files/{HEX}", "uploads/upload_a/1111", f"models/{HEX}/stillhouse.json"}
    litter = {f"files/{HEX[::-1]}", "uploads/upload_a/2222", f"models/{HEX[::-1]}/stillhouse.json"}
    await put(store, *kept, *litter)
    about = {"size": 1, "sha256": "a" * 64}
    times = {"created_at": now(), "deleted_at": None}
    async with database.write() as session:
        upload = {"id": "upload_a", "project_id": PROJECT, "name": "a", "status": "pending"}
        session.add(UploadRow(**upload, created_at=now(), expires_at=now() + 1000))
        await session.flush()
        session.add(UploadPart(upload_id="upload_a", number=1, key="uploads/upload_a/1111", **about))
        file = {"id": "file_a", "project_id": PROJECT, "name": "a", "format": "npz", "key": f"files/{HEX}"}
        session.add(FileRow(**file, **about, summary={}, **times))
        bundle = [{"name": "stillhouse.json", "key": f"models/{HEX}/stillhouse.json", **about}]
        model = {"id": "model_a", "project_id": PROJECT, "config": CONFIG.model_dump(mode="json")}
        session.add(ModelRow(**model, parameters=1, files=bundle, **times))
    return kept, litter


async def test_what_no_row_speaks_of_goes_after_the_grace_period_and_nothing_else(
    ours: Database, store: Store, moment: Callable[[float], None]
) -> None:
    kept, litter = await a_job_that_ran(ours, store)
    more_kept, more_litter = await files_and_parts(ours, store)
    foreign = {"uploads/upload_of_another/1111", "projects/README", f"files/{HEX}.bak", "models/other"}
    await put(store, *foreign)
    collector = collecting(ours, store)
    counts = await collector.round()
    assert counts is not None
    assert (counts.deleted, counts.waiting, counts.gone) == (0, 6, 0)
    moment(299.0)
    assert (await collector.round() or counts).deleted == 0
    moment(2.0)
    counts = await collector.round()
    assert counts is not None
    assert (counts.deleted, counts.waiting, counts.gone) == (6, 0, 0)
    assert set(await all_keys(store)) == kept | more_kept | foreign
    assert len(litter | more_litter) == 6


async def test_what_goes_with_a_deleted_model_or_file_is_collected_if_its_message_was_lost(
    ours: Database, store: Store, moment: Callable[[float], None]
) -> None:
    kept, _ = await a_job_that_ran(ours, store)
    await files_and_parts(ours, store)
    async with ours.write() as session:
        await session.execute(update(ModelRow).values(deleted_at=now()))
        await session.execute(update(FileRow).values(deleted_at=now()))
    collector = collecting(ours, store)
    await collector.round()
    moment(301.0)
    await collector.round()
    checkpoints = {key for key in kept if "/checkpoints/" in key}
    assert set(await all_keys(store)) == checkpoints | {"uploads/upload_a/1111"}


async def test_a_live_attempt_s_folder_is_left_alone_until_it_ends(
    ours: Database, store: Store, moment: Callable[[float], None]
) -> None:
    lease = await running(ours)
    key = f"{folder_of(lease)}/artifacts/model.safetensors"
    await put(store, key)
    collector = collecting(ours, store)
    for _ in range(3):
        counts = await collector.round()
        moment(301.0)
    assert counts is not None
    assert (counts.waiting, await all_keys(store)) == (0, [key])
    await let_lease_run_out(ours, lease.job_id)
    async with ours.write() as session:
        await leases.fail(session, lease, fault="user", code="c", message="m")
    await collector.round()
    moment(301.0)
    await collector.round()
    assert await all_keys(store) == []


async def test_a_row_that_comes_late_saves_its_object(
    ours: Database, store: Store, moment: Callable[[float], None]
) -> None:
    key = f"files/{HEX}"
    await put(store, key)
    collector = collecting(ours, store)
    await collector.round()
    await files_and_parts_row(ours, key)
    moment(301.0)
    counts = await collector.round()
    assert counts is not None
    assert (counts.deleted, counts.waiting, await all_keys(store)) == (0, 0, [key])


async def files_and_parts_row(database: Database, key: str) -> None:
    async with database.write() as session:
        file: dict[str, Any] = {"id": "file_late", "project_id": PROJECT, "name": "a", "format": "npz", "key": key}
        session.add(FileRow(**file, size=1, sha256="a" * 64, summary={}, created_at=now(), deleted_at=None))


async def test_a_round_is_bounded_and_the_next_goes_on(
    ours: Database, store: Store, moment: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector_module, "PAGE", 3)
    lease = await running(ours)
    async with ours.write() as session:
        await leases.fail(session, lease, fault="user", code="c", message="m")
    litter = [f"{folder_of(lease)}/checkpoints/step-{step}/state" for step in range(4)]
    litter += [f"files/{number:032x}" for number in range(4)]
    await put(store, *litter)
    collector = collecting(ours, store)
    looked = [(await collector.round() or collector_module.Counts()).objects for _ in range(3)]
    assert looked == [3, 3, 3]
    moment(301.0)
    for _ in range(6):
        await collector.round()
    assert await all_keys(store) == []


async def test_rows_whose_object_is_gone_are_told_of_once(
    ours: Database, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    lease = await running(ours)
    await published(ours, store, lease, 1)
    await files_and_parts(ours, store)
    await store.delete([f"files/{HEX}", f"{folder_of(lease)}/checkpoints/step-1/state"])
    collector = collecting(ours, store)
    with caplog.at_level(logging.ERROR):
        for _ in range(2):
            counts = await collector.round()
            assert counts is not None
            assert counts.gone == 2
    alarms = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert sorted(alarm.split()[0].partition("_")[0] for alarm in alarms) == ["ckpt", "file"]


async def test_the_store_of_another_database_is_not_touched(
    ours: Database, store: Store, moment: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    await put(store, f"files/{HEX}", "projects/proj_other/jobs/job_1/a1/artifacts/model.safetensors")
    collector = collecting(ours, store)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert await collector.round() is None
            moment(301.0)
    assert len(await all_keys(store)) == 2
    assert [record.getMessage() for record in caplog.records if "another database" in record.getMessage()] != []
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    assert not await store.exists(MARK)


async def test_a_store_that_was_marked_stays_its_database_s(ours: Database, store: Store) -> None:
    assert await collecting(ours, store).round() is not None
    async with ours.write() as session:  # as in another database that was pointed at this store
        await session.execute(update(Project).where(Project.id != PROJECT).values(name="x"))
    assert await collecting(ours, store).round() is not None, "the same process name keeps its turn"
    await store.delete([MARK])

    async def other() -> AsyncIterator[bytes]:
        yield b"proj_other"

    await store.write(MARK, other())
    assert await collecting(ours, store).round() is None


async def test_one_process_collects_at_a_time_and_a_dead_one_is_replaced(ours: Database, store: Store) -> None:
    first, second = collecting(ours, store, "first"), collecting(ours, store, "second")
    rounds = await asyncio.gather(first.round(), second.round())
    assert sum(counts is not None for counts in rounds) == 1
    async with ours.write() as session:
        await session.execute(update(SweepLease).values(expires_at=now() - 1.0))
    assert await second.round() is not None
    assert await first.round() is None


async def test_a_job_that_waits_has_no_folder_to_lose(ours: Database, store: Store) -> None:
    await submit(ours)
    counts = await collecting(ours, store).round()
    assert counts == collector_module.Counts(objects=1)


async def test_what_dead_writers_left_on_disk_is_removed(tmp_path: Path) -> None:
    store = Store.from_settings(Settings(data_dir=tmp_path))
    await put(store, "files/a")
    folder = tmp_path / "store" / "files"
    for name, age in (("b#1", 90_000), ("c#2", 10), ("a#b", 90_000)):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - age, time.time() - age))
    assert await store.remove_unfinished(86_400.0) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["a", "a#b", "c#2"]
