"""The trainer's process and the spare one, with a scripted trainer."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worker.supervisor.stage import alive, eventually, processes_in, scripted
from worker.protocol import Finished, Log, Ready, Report, Start, StepProgress, Stop, Stopped
from worker.supervisor.gpus import Gpu
from worker.supervisor.staging import Scratch, try_lock
from worker.supervisor.trainer_process import Launch, NotStarted, ProtocolError, SparePool, TrainerProcess


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Scratch]:
    with Scratch(tmp_path / "scratch") as scratch:
        yield scratch


async def spawn(scratch: Scratch, *acts: str) -> TrainerProcess:
    return await TrainerProcess.spawn(Launch(scripted(*acts)), scratch.folder("trainer"))


async def started(scratch: Scratch, *acts: str) -> TrainerProcess:
    """A trainer that has been given an empty assignment."""
    trainer = await spawn(scratch, "start", *acts)
    await trainer.ready(30)
    folder = scratch.folder("job")
    (folder / "assignment.json").write_text(json.dumps({"inputs": {}, "resume": None}))
    await trainer.send(Start(folder=str(folder)))
    return trainer


async def gone(pid: int) -> bool:
    return not alive(pid)


async def said(trainer: TrainerProcess) -> list[Report]:
    reports = []
    while (report := await trainer.read()) is not None:
        reports.append(report)
    return reports


async def test_reports_come_in_order_and_end_with_the_process(scratch: Scratch) -> None:
    trainer = await started(scratch, "steps=2", "finish")
    reports = await said(trainer)
    assert [report.step for report in reports if isinstance(report, StepProgress)] == [1, 2]
    assert isinstance(reports[-1], Finished)
    assert await trainer.exited(30) == 0
    await trainer.close()


async def test_stop_reaches_the_trainer(scratch: Scratch) -> None:
    trainer = await started(scratch, "await_stop", "stopped")
    await trainer.send(Stop())
    assert await said(trainer) == [Stopped(step=0)]
    await trainer.close()


async def test_the_environment_holds_no_credentials(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("STILLHOUSE_SECRET", "STILLHOUSE_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PGPASSWORD", "X")
    for name in secrets:
        monkeypatch.setenv(name, "hush")
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)  # torch sets them in a process that has compiled something
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    trainer = await started(scratch, "environ")
    (report,) = await said(trainer)
    assert isinstance(report, Log)
    environment = json.loads(report.message)
    assert "hush" not in environment.values()
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == "", "a worker without a GPU of its own must not use any"
    for name in ("HOME", "TMPDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert Path(environment[name]).is_relative_to(scratch.path)
    await trainer.close()


async def test_a_trainer_sees_its_gpus_and_holds_them_for_as_long_as_it_lives(scratch: Scratch, tmp_path: Path) -> None:
    names = ("GPU-1", "GPU-2")
    locks = [lock for name in names if (lock := try_lock(tmp_path / name)) is not None]
    gpus = tuple(Gpu(name, lock) for name, lock in zip(names, locks, strict=True))
    launch = Launch(scripted("environ", "start", "hang"), gpus)
    trainer = await TrainerProcess.spawn(launch, scratch.folder("trainer"))
    for lock in locks:
        lock.close()
    report = await trainer.read()
    assert isinstance(report, Log)
    assert json.loads(report.message)["CUDA_VISIBLE_DEVICES"] == "GPU-1,GPU-2"
    assert [try_lock(tmp_path / name) for name in names] == [None, None]
    await trainer.close()
    assert None not in [try_lock(tmp_path / name) for name in names]


async def test_a_line_that_is_no_report_is_an_error(scratch: Scratch) -> None:
    trainer = await started(scratch, "garble", "hang")
    with pytest.raises(ProtocolError):
        await trainer.read()
    await trainer.close()


async def test_a_line_without_end_is_an_error(scratch: Scratch) -> None:
    trainer = await started(scratch, "shout", "hang")
    with pytest.raises(ProtocolError):
        await trainer.read()
    await trainer.close()


async def test_reading_can_be_cancelled_without_loss(scratch: Scratch) -> None:
    trainer = await started(scratch, "await_stop", "steps=1", "finish")
    for _ in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await trainer.read()
    await trainer.send(Stop())
    assert [type(report).__name__ for report in await said(trainer)] == ["Metrics", "StepProgress", "Finished"]
    await trainer.close()


async def test_end_lets_a_trainer_leave_by_itself(scratch: Scratch) -> None:
    trainer = await started(scratch, "hang")
    assert await trainer.end(grace_seconds=30) == -signal.SIGTERM
    await trainer.close()


async def test_end_kills_a_trainer_that_ignores_sigterm(scratch: Scratch) -> None:
    trainer = await started(scratch, "ignore_sigterm", "log=ready", "hang")
    await trainer.read()
    assert await trainer.end(grace_seconds=0.1) == -signal.SIGKILL
    await trainer.close()


async def test_what_the_trainer_started_dies_with_it(scratch: Scratch) -> None:
    trainer = await started(scratch, "child", "hang")
    report = await trainer.read()
    assert isinstance(report, Log)
    child = int(report.message)
    assert alive(child)
    await trainer.end()
    await eventually(lambda: gone(child))
    await trainer.close()


async def test_a_child_that_keeps_the_pipe_open_does_not_hide_the_trainers_death(scratch: Scratch) -> None:
    trainer = await started(scratch, "child", "exit=3")
    reports = await said(trainer)
    assert len(reports) == 1
    assert await trainer.exited(30) == 3
    await trainer.close()


async def test_stderr_is_kept_for_the_log(scratch: Scratch) -> None:
    trainer = await started(scratch, "grumble=" + "a" * 10_000 + "out of luck", "exit=1")
    await said(trainer)
    assert trainer.tail().endswith("out of luck\n")
    assert len(trainer.tail()) == 4096
    await trainer.close()


async def test_a_trainer_that_never_gets_ready_is_not_started(scratch: Scratch) -> None:
    trainer = await spawn(scratch, "hang")
    with pytest.raises(NotStarted):
        await trainer.ready(0.1)
    await trainer.close()


async def test_a_trainer_that_dies_before_it_is_ready_says_why(scratch: Scratch) -> None:
    trainer = await spawn(scratch, "grumble=no torch here", "exit=1")
    with pytest.raises(NotStarted, match="no torch here"):
        await trainer.ready(30)
    await trainer.close()


async def test_the_pool_gives_its_spare_away_once(scratch: Scratch) -> None:
    pool = SparePool(Launch(scripted("start", "hang")), scratch)
    pool.refill()
    first = await pool.take()
    pool.refill()
    second = await pool.take()
    assert first.pid != second.pid
    for trainer in (first, second):
        assert trainer.alive
        await trainer.close()
    await pool.close()


async def test_the_pool_starts_a_trainer_when_it_has_no_spare(scratch: Scratch) -> None:
    pool = SparePool(Launch(scripted("start", "hang")), scratch)
    trainer = await pool.take()
    assert trainer.alive
    await trainer.close()


async def test_the_pool_warms_only_one_spare(scratch: Scratch) -> None:
    pool = SparePool(Launch(scripted("start", "hang")), scratch)
    for _ in range(3):
        pool.refill()
    await (await pool.take()).close()
    assert len(list((scratch.path / "trainers").iterdir())) == 0, "one was made, and its folder went with it"


async def test_the_pool_replaces_a_spare_that_has_died(scratch: Scratch) -> None:
    pool = SparePool(Launch(scripted("start", "hang")), scratch)
    pool.refill()
    assert pool._spare is not None
    dead = await asyncio.shield(pool._spare)
    dead.kill()
    await eventually(lambda: gone(dead.pid))
    living = await pool.take()
    assert living.pid != dead.pid
    assert living.alive
    await living.close()


async def test_the_pool_tries_again_after_a_spare_that_did_not_start(scratch: Scratch, tmp_path: Path) -> None:
    program = tmp_path / "trainer"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    pool = SparePool(Launch((str(program),)), scratch)
    pool.refill()
    with pytest.raises(NotStarted):
        await pool.take()
    program.write_text('#!/bin/sh\necho \'{"type": "ready"}\'\nsleep 600\n')
    trainer = await pool.take()
    assert trainer.alive
    await trainer.close()


async def test_a_program_that_does_not_exist_is_not_started(scratch: Scratch) -> None:
    pool = SparePool(Launch(("/nowhere/trainer",)), scratch)
    with pytest.raises(NotStarted):
        await pool.take()


async def test_taking_can_be_cancelled_without_losing_the_spare(scratch: Scratch) -> None:
    pool = SparePool(Launch(scripted("start", "hang")), scratch)
    taking = asyncio.create_task(pool.take())
    await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    trainer = await pool.take()
    await trainer.close()
    assert trainer._folder.name == "1", "the spare that was under way"


async def test_closing_the_pool_ends_a_spare_that_is_still_warming(scratch: Scratch) -> None:
    pool = SparePool(Launch(scripted("child", "hang")), scratch)
    pool.refill()
    await eventually(lambda: inhabited(scratch.path))
    await pool.close()
    assert processes_in(scratch.path) == []


async def inhabited(folder: Path) -> bool:
    return bool(processes_in(folder))


async def test_ready_is_a_report(scratch: Scratch) -> None:
    trainer = await spawn(scratch, "start")
    assert isinstance(await trainer.read(), Ready)
    await trainer.close()
