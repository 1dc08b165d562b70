"""The supervisor's side of a trainer: a separate process, without credentials, that speaks `worker.protocol`.

Importing torch takes more than a second, so one spare process is kept warm for the next job.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from worker.memory import killed_from_outside, oom_kills
from worker.protocol import REPORTS, Command, Ready, Report
from worker.supervisor.gpus import Gpu
from worker.supervisor.staging import Scratch

LINE_BYTES = 1 << 20
"""Longest line that is read from a trainer."""
TAIL_BYTES = 4096
POLL_SECONDS = 0.5
PASSED = frozenset(
    {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    | {"PYTHONPATH", "PYTHONHASHSEED"}
)
PASSED_PREFIXES = ("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "PYTORCH_", "TORCH", "TRITON_")

logger = logging.getLogger(__name__)


class NotStarted(Exception):
    """No trainer could be started; `killed`: because it was killed while it warmed up."""

    def __init__(self, reason: str, *, killed: bool = False) -> None:
        super().__init__(reason)
        self.killed = killed


class ProtocolError(Exception):
    """The trainer sent something that is not a report."""


def trainer_command() -> tuple[str, ...]:
    """Command of a trainer that dies with this process; -P, so that a file in its folder is never imported."""
    return (sys.executable, "-P", "-m", "worker.trainer", "--spare", "--parent", str(os.getpid()))


@dataclass(frozen=True)
class Launch:
    """Settings for starting trainers; `gpus` are those visible to them, none hides all."""

    command: tuple[str, ...] = field(default_factory=trainer_command)
    gpus: tuple[Gpu, ...] = ()
    caches: Path | None = None
    """Folder of compiled kernels for later trainers; none: they are deleted with the trainer's folder."""
    ready_seconds: float = 120.0
    """Longest time that a trainer may take to warm up."""

    def environment(self, environ: Mapping[str, str], home: Path) -> dict[str, str]:
        """The trainer's environment: an allow-list, so that it has no credentials of the service."""
        caches = self.caches or home
        compiled = {"TRITON_CACHE_DIR": str(caches / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor")}
        passed = {name: value for name, value in environ.items() if name in PASSED or name.startswith(PASSED_PREFIXES)}
        own = {"HOME": str(home), "TMPDIR": str(home), "HF_HUB_OFFLINE": "1"}
        return compiled | passed | own | {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in self.gpus)}


class TrainerProcess:
    """One trainer, leader of its own session, with its own folder."""

    def __init__(self, process: Process, folder: Path) -> None:
        self._process, self._folder = process, folder
        self._oom_kills = oom_kills()
        self.pid = process.pid
        self._exit = asyncio.create_task(self._reap())

    @classmethod
    async def spawn(cls, launch: Launch, folder: Path) -> Self:
        """Start a trainer; it is warm once `ready` returns."""
        with (folder / "stderr.log").open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *launch.command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=stderr,
                cwd=folder,
                env=launch.environment(os.environ, folder),
                start_new_session=True,  # a signal to the worker's group is handled by the supervisor
                pass_fds=[gpu.lock.fileno() for gpu in launch.gpus],
                limit=LINE_BYTES,
            )
        return cls(process, folder)

    async def ready(self, seconds: float) -> None:
        """Wait until it is warm; raises `NotStarted`."""
        try:
            async with asyncio.timeout(seconds):
                report = await self.read()
        except (TimeoutError, ProtocolError) as error:
            raise NotStarted(f"{error or 'no response'}; stderr: {self.tail()}") from error
        if not isinstance(report, Ready):
            killed = report is None and await self._was_killed()
            raise NotStarted(f"it sent {report!r} instead of Ready; stderr: {self.tail()}", killed=killed)

    async def _was_killed(self) -> bool:
        """Whether it was killed from outside, and not by the kernel because memory ran out."""
        status = await self.exited(2 * POLL_SECONDS)
        return status is not None and killed_from_outside(status) and oom_kills() == self._oom_kills

    @property
    def alive(self) -> bool:
        """Whether it is alive, by the kernel where possible, since the event loop may not have been notified yet."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self._process.returncode is None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    async def send(self, command: Command) -> None:
        """Send a command. A trainer that no longer reads is no error here: its end is noticed when reading."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):
            self._process.stdin.write(command.model_dump_json().encode() + b"\n")
            await self._process.stdin.drain()

    async def read(self) -> Report | None:
        """The next report; none after the last one. Raises `ProtocolError`. May be cancelled without loss."""
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
            return REPORTS.validate_json(line) if line.endswith(b"\n") else None
        except ValidationError as error:
            raise ProtocolError(f"not a report: {line[:200]!r}") from error
        except ValueError as error:
            raise ProtocolError(f"a line of more than {LINE_BYTES} bytes") from error

    def kill(self) -> None:
        """Kill it and all its child processes."""
        if self._process.returncode is None:  # else its process id may have been reused
            self._signal(signal.SIGKILL)

    async def end(self, grace_seconds: float = 0.0) -> int:
        """Terminate it, then kill it; returns its exit status, negative for a signal."""
        if grace_seconds > 0 and self._process.returncode is None:
            self._signal(signal.SIGTERM)
            await self.exited(grace_seconds)
        self.kill()
        await asyncio.wait([self._exit])
        return self._exit.result()

    async def exited(self, seconds: float) -> int | None:
        """Its exit status if it exits by itself within the time."""
        await asyncio.wait([self._exit], timeout=seconds)
        return self._exit.result() if self._exit.done() else None

    async def close(self) -> None:
        """Kill it and remove its folder."""
        await self.end()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def tail(self) -> str:
        """The end of its stderr; for the operator's log, not for users."""
        with (self._folder / "stderr.log").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace")

    async def _reap(self) -> int:
        """Wait for its end and kill its child processes, which must not outlive it or keep its pipe open.

        `wait` may last until the pipes are closed too, which such a child prevents: hence the polling.
        """
        waiting = asyncio.create_task(self._process.wait())
        while self._process.returncode is None:
            await asyncio.wait([waiting], timeout=POLL_SECONDS)
        self._signal(signal.SIGKILL)
        return await waiting

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)


class SparePool:
    """Keeps one trainer warm for the next job."""

    def __init__(self, launch: Launch, scratch: Scratch) -> None:
        self._launch, self._scratch = launch, scratch
        self._spare: asyncio.Task[TrainerProcess] | None = None
        self._made = 0

    def refill(self) -> None:
        """Start to warm up a spare, unless there is one or one is starting."""
        if self._spare is None or _failed(self._spare):
            self._spare = asyncio.create_task(self._warm())

    async def take(self) -> TrainerProcess:
        """A warm trainer: the spare, or a new one if there is none or it has died. Raises `NotStarted`."""
        trainer = await self._next()
        if not trainer.alive:
            logger.warning("the spare trainer has died; starting another: %s", trainer.tail())
            await trainer.close()
            trainer = await self._next()
        return trainer

    async def close(self) -> None:
        """End the spare."""
        if self._spare is not None:
            self._spare.cancel()
            with suppress(asyncio.CancelledError, NotStarted):
                await (await self._spare).close()

    async def _next(self) -> TrainerProcess:
        self.refill()
        assert self._spare is not None
        trainer = await asyncio.shield(self._spare)  # after a cancelled job it is kept for the next
        self._spare = None
        return trainer

    async def _warm(self) -> TrainerProcess:
        self._made += 1
        folder = self._scratch.folder("trainers", str(self._made))
        try:
            trainer = await TrainerProcess.spawn(self._launch, folder)
        except OSError as error:
            raise NotStarted(str(error)) from error
        try:
            await trainer.ready(self._launch.ready_seconds)
        except BaseException:
            await trainer.close()
            raise
        return trainer


def _failed(task: asyncio.Task[TrainerProcess]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
