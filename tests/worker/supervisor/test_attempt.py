"""One attempt at a job, with a scripted trainer, on a real database and a real store: all the ways that it can go."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import delete, select

from app.core.database import Database
from app.core.settings import Settings
from app.files.tables import FileRow
from app.jobs import service
from app.jobs.tables import ArtifactRow, Metric, PhaseRow
from app.models.tables import ModelRow
from tests.app.jobs.builders import events, let_backoff_pass, load
from tests.worker.supervisor.attempt_scene import (
    TRAIN,
    attempts,
    checkpoints,
    nothing_is_left,
    objects,
    published,
    running,
    say_go,
)
from tests.worker.supervisor.stage import (
    HASTE,
    PROJECT,
    ask,
    eventually,
    submit,
    worker,
)
from worker.memory import oom_kills
from worker.supervisor.attempt import run_next
from worker.supervisor.publisher import Publisher


async def test_a_job_goes_from_the_queue_to_its_artifacts(settings: Settings, database: Database) -> None:
    job_id = await submit(database)
    acts = (*TRAIN, "steps=3", "save", "steps=2", "phase=evaluating", "phase=exporting", "finish")
    async with worker(settings, *acts) as context:
        assert await run_next(context)
        assert nothing_is_left(context)
    job = await load(database, job_id)
    assert (job.status, job.step, job.total_steps, job.attempt) == ("succeeded", 5, 1000, 1)
    async with database.read() as session:
        artifacts = list(await session.scalars(select(ArtifactRow).where(ArtifactRow.job_id == job_id)))
        model = (await session.scalars(select(ModelRow).where(ModelRow.id == job.model_id))).one()
        losses = {metric.step: metric.value for metric in await session.scalars(select(Metric))}
        phases = set(await session.scalars(select(PhaseRow.phase).where(PhaseRow.ended_at.is_not(None))))
    assert losses == {step: 1.0 / step for step in range(1, 6)}
    assert phases == {"staging", "training", "evaluating", "exporting", "publishing"}
    assert sorted(artifact.name for artifact in artifacts) == ["config.json", "model.safetensors", "report.json"]
    for artifact in artifacts:
        content = (settings.data_dir / "store" / artifact.key).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (artifact.size, artifact.sha256)
        assert artifact.key.startswith(f"projects/{PROJECT}/jobs/{job_id}/a1/artifacts/")
    assert (model.parameters, model.config["classes"]) == (650, 10)


async def test_nothing_to_claim_is_no_attempt(settings: Settings, database: Database) -> None:
    async with worker(settings, *TRAIN) as context:
        assert not await run_next(context)
        assert not await run_next(context, "job_unknown")


async def test_a_job_that_another_worker_holds_is_left_alone(settings: Settings, database: Database) -> None:
    async with (
        worker(settings, *TRAIN, "work_until_stop") as first,
        worker(settings, *TRAIN) as second,
        running(first, database) as job_id,
    ):
        assert not await run_next(second, job_id)
        first.stop.set()
    assert [attempt.outcome for attempt in await attempts(database, job_id)] == ["released"]


async def test_values_that_are_no_numbers_are_left_out(settings: Settings, database: Database) -> None:
    job_id = await submit(database)
    async with worker(settings, *TRAIN, "nan", "finish") as context:
        await run_next(context)
    async with database.read() as session:
        names = list(await session.scalars(select(Metric.name)))
    assert names == ["train/lr"]
    assert (await load(database, job_id)).status == "succeeded"


async def test_what_was_said_before_the_end_is_written_before_it(settings: Settings, database: Database) -> None:
    timeouts = replace(HASTE, flush=600.0)
    job_id = await submit(database)
    acts = (*TRAIN, "steps=50", "log=half", "steps=50", "save", "steps=7", "fail=user")
    async with worker(settings, *acts, timeouts=timeouts) as context:
        await run_next(context)
    async with database.read() as session:
        steps = list(await session.scalars(select(Metric.step).order_by(Metric.step)))
    assert steps == list(range(1, 108))
    told = [(event.type, event.message) for event in await events(database, job_id)]
    assert [type for type, message in told[-3:]] == ["log", "checkpoint", "status"]


@pytest.mark.parametrize("ends", ["after", "before"])
async def test_old_checkpoints_are_deleted_from_the_store(
    settings: Settings, database: Database, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that the attempt's end came before."""
    if ends == "before":
        monkeypatch.setattr(Publisher, "_remove_up_to", Waiting(4))
    job_id = await submit(database)
    saves = [act for _ in range(4) for act in ("steps=1", "save", "await_go")]
    async with worker(settings, *TRAIN, *saves, "fail=user") as context:
        attempt = asyncio.create_task(run_next(context))
        for number in range(1, 5):
            await eventually(lambda n=number: published(database, job_id, n))
            await say_go(context)
        await attempt
    kept = await checkpoints(database, job_id)
    assert [checkpoint.step for checkpoint in kept] == [3, 4]
    prefix = f"projects/{PROJECT}/jobs/{job_id}/a1/checkpoints"
    names = [f"{prefix}/step-{step}/{name}" for step in (3, 4) for name in ("state.json", "weights.bin")]
    assert await objects(settings) == names


class Waiting:
    """Does nothing, but waits in call `number` until it is cancelled."""

    def __init__(self, number: int) -> None:
        self._left = number

    async def __call__(self, step: int) -> None:
        self._left -= 1
        if self._left == 0:
            await asyncio.Future()


async def test_the_users_fault_ends_the_job_with_its_step_and_keeps_the_checkpoint(
    settings: Settings, database: Database
) -> None:
    job_id = await submit(database)
    async with worker(settings, *TRAIN, "steps=4", "save", "steps=2", "fail=user") as context:
        await run_next(context)
    job = await load(database, job_id)
    assert job.status == "failed"
    message = "the loss is NaN at step 6"
    assert job.error == {"fault": "user", "code": "nan_loss", "message": message, "param": "recipe", "step": 6}
    assert [checkpoint.step for checkpoint in await checkpoints(database, job_id)] == [4]


@pytest.mark.parametrize(
    ("act", "word", "failures"),
    [
        *(("die=SIGSEGV", "SIGSEGV", 1), ("die=SIGABRT", "SIGABRT", 1), ("exit=3", "status 3", 1)),
        *(("die=SIGKILL", "SIGKILL", 0), ("die=SIGTERM", "SIGTERM", 0)),
    ],
)
async def test_a_dead_trainer_is_tried_again_from_its_checkpoint_and_only_its_own_death_is_a_failure(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture, act: str, word: str, failures: int
) -> None:
    job_id = await submit(database)
    async with worker(settings, *TRAIN, "grumble=CUDA said no", "steps=3", "save", "steps=1", act) as context:
        await run_next(context)
    job = await load(database, job_id)
    assert (job.status, job.failures, job.interruptions) == ("queued", failures, 1 - failures)
    assert word in (await events(database, job_id))[-1].message
    assert "CUDA said no" in caplog.text
    assert all("CUDA" not in event.message for event in await events(database, job_id)), "stderr is not for users"
    await let_backoff_pass(database, job_id)
    async with worker(settings, *TRAIN, "steps=1", "finish") as context:
        await run_next(context)
    first, second = await attempts(database, job_id)
    ended = "failed" if failures else "interrupted"
    assert (first.outcome, second.outcome, second.start_step) == (ended, "succeeded", 3)
    assert (await load(database, job_id)).step == 4


async def test_a_job_that_is_only_killed_and_paused_never_fails(settings: Settings, database: Database) -> None:
    """Killed at one step again and again with no new checkpoint, with a pause in between."""
    job_id = await submit(database, resources={"max_attempts": 1})
    for number in range(6):
        async with worker(settings, *TRAIN, "steps=4", "die=SIGKILL") as context:
            await run_next(context)
        if number == 3:
            await ask(database, service.pause, job_id, 20.0)
            await ask(database, service.resume, job_id)
        await let_backoff_pass(database, job_id)
    job = await load(database, job_id)
    assert (job.status, job.failures, job.interruptions, job.attempt) == ("queued", 0, 6, 6)


async def test_a_trainer_that_is_killed_while_it_warms_up_counts_no_failure(
    settings: Settings, database: Database
) -> None:
    job_id = await submit(database, resources={"max_attempts": 1})
    async with worker(settings, "die=SIGKILL") as context:
        await run_next(context)
    job = await load(database, job_id)
    assert (job.status, job.failures, job.interruptions) == ("queued", 0, 1)


@pytest.mark.parametrize(("code", "failures"), [("trainer_killed", 0), ("node_lost", 0), ("trainer_died", 1)])
async def test_a_trainer_tells_whether_its_processes_were_killed(
    settings: Settings, database: Database, code: str, failures: int
) -> None:
    job_id = await submit(database)
    async with worker(settings, *TRAIN, "steps=1", f"fail_with={code}") as context:
        await run_next(context)
    job = await load(database, job_id)
    assert (job.status, job.failures, job.interruptions) == ("queued", failures, 1 - failures)


async def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(settings: Settings, database: Database) -> None:
    job_id = await submit(database)
    saves = ("steps=3", "save", "await_go", "steps=2", "save", "await_go")
    async with worker(settings, *TRAIN, *saves, "exit=3") as context:
        attempt = asyncio.create_task(run_next(context))
        for number in (3, 5):
            await eventually(lambda step=number: published(database, job_id, step))
            await say_go(context)
        await attempt
    older, newer = await checkpoints(database, job_id)
    for file in newer.files:
        (settings.data_dir / "store" / file["key"]).write_bytes(b"damaged")
    async with worker(settings, *TRAIN, "steps=1", "finish") as context:
        for _ in range(2):
            await let_backoff_pass(database, job_id)
            await run_next(context)
    assert [attempt.start_step for attempt in await attempts(database, job_id)] == [0, newer.step, older.step]
    job = await load(database, job_id)
    assert (job.status, job.step) == ("succeeded", older.step + 1)
    assert "the checkpoint at step 5 can't be used" in [event.message for event in await events(database, job_id)]


async def test_a_trainer_that_leaves_unasked_has_failed(settings: Settings, database: Database) -> None:
    job_id = await submit(database)
    async with worker(settings, *TRAIN, "stopped") as context:
        await run_next(context)
    (attempt,) = await attempts(database, job_id)
    assert attempt.outcome == "failed"


async def test_a_trainer_that_hangs_is_killed(settings: Settings, database: Database) -> None:
    job_id = await submit(database)
    async with worker(settings, *TRAIN, "steps=1", "hang", timeouts=replace(HASTE, hang=0.3)) as context:
        await run_next(context)
        assert nothing_is_left(context)
    assert "sent no report" in (await events(database, job_id))[-1].message


@pytest.mark.parametrize("act", ["garble", "shout", "finish_with_link", "finish_outside"])
async def test_a_trainer_that_breaks_the_rules_publishes_nothing(
    settings: Settings, database: Database, act: str
) -> None:
    job_id = await submit(database, resources={"max_attempts": 1})
    async with worker(settings, *TRAIN, act, "hang") as context:
        await run_next(context)
    job = await load(database, job_id)
    assert job.error is not None
    assert (job.status, job.error["code"]) == ("failed", "trainer_protocol")
    assert "passwd" not in job.error["message"]
    assert await objects(settings) == []


async def test_a_trainer_that_does_not_start_fails_the_attempt(settings: Settings, database: Database) -> None:
    job_id = await submit(database, resources={"max_attempts": 1})
    async with worker(settings, "exit=1") as context:
        await run_next(context)
    job = await load(database, job_id)
    assert job.error is not None
    assert (job.error["fault"], job.error["code"]) == ("system", "trainer_not_started")


async def test_an_input_that_is_gone_is_named(settings: Settings, database: Database) -> None:
    job_id = await submit(database)
    async with database.write() as session:
        await session.execute(delete(FileRow))
    async with worker(settings, *TRAIN) as context:
        await run_next(context)
    job = await load(database, job_id)
    assert job.error is not None
    assert (job.error["fault"], job.error["param"]) == ("user", "data.train")


async def test_a_damaged_input_never_reaches_the_trainer(settings: Settings, database: Database) -> None:
    job_id = await submit(database, resources={"max_attempts": 1})
    (settings.data_dir / "store" / "files" / "data").write_bytes(b"something else")
    async with worker(settings, *TRAIN, "steps=1", "finish") as context:
        await run_next(context)
    job = await load(database, job_id)
    assert job.error is not None
    assert (job.error["code"], job.step) == ("damaged_object", 0)


def test_oom_kills_are_counted_where_the_kernel_counts_them(tmp_path: Path) -> None:
    counters = tmp_path / "vmstat"
    counters.write_text("nr_free_pages 100\noom_kill 7\ndrop_pagecache 0\n")
    assert oom_kills(counters) == 7
    assert oom_kills(tmp_path / "missing") == 0
    assert oom_kills() >= 0


@pytest.mark.parametrize(("act", "word"), [("die=SIGABRT", "SIGABRT"), ("exit=1", "takes longer than 60 s")])
async def test_a_file_that_ends_its_reader_is_its_owners_fault_and_is_not_read_again(
    settings: Settings, database: Database, act: str, word: str
) -> None:
    job_id = await submit(database)
    async with worker(settings, *TRAIN, "read=a tokenizer", act) as context:
        await run_next(context)
    job = await load(database, job_id)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error["fault"], job.error["code"], job.error["param"]) == ("user", "invalid_teacher", "teacher")
    assert job.error["message"].startswith("a tokenizer ")
    assert word in job.error["message"]


async def test_a_trainer_that_is_killed_while_it_reads_is_tried_again(settings: Settings, database: Database) -> None:
    job_id = await submit(database)
    async with worker(settings, *TRAIN, "read=a tokenizer", "die=SIGKILL") as context:
        await run_next(context)
    assert (await load(database, job_id)).status == "queued"


async def test_a_trainer_killed_for_want_of_memory_is_a_fault_of_capacity(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = count(7)
    monkeypatch.setattr("worker.supervisor.attempt.oom_kills", lambda: next(kills))
    job_id = await submit(database, resources={"max_attempts": 1})
    async with worker(settings, *TRAIN, "die=SIGKILL") as context:
        await run_next(context)
    job = await load(database, job_id)
    assert job.error is not None
    assert (job.error["fault"], job.error["code"]) == ("capacity", "out_of_memory")
