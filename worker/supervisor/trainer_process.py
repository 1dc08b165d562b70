"""The trainer as its supervisor sees it: a process of its own, with no credentials, that speaks `trainer.protocol`.

Torch takes more than a second to import, so one spare process waits warm for the next job.
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
LOOK_SECONDS = 0.5
PASSED = frozenset(
    {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    | {"PYTHONPATH", "PYTHONHASHSEED"}
)
PASSED_PREFIXES = ("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "PYTORCH_", "TORCH", "TRITON_")

logger = logging.getLogger(__name__)


class NotStarted(Exception):
    """No trainer could be brought up; `killed`: because somebody killed it while it warmed up."""

    def __init__(self, reason: str, *, killed: bool = False) -> None:
        super().__init__(reason)
        self.killed = killed


class ProtocolError(Exception):
    """The trainer said something that is no report."""


def trainer_command() -> tuple[str, ...]:
    """Starts a trainer that dies with this process; -P, so that a file in its folder is never taken for a module."""
    return (sys.executable, "-P", "-m", "worker.trainer", "--spare", "--parent", str(os.getpid()))


@dataclass(frozen=True)
class Launch:
    """How trainers are started; `gpus` are those that they see, none hides all."""

    command: tuple[str, ...] = field(default_factory=trainer_command)
    gpus: tuple[Gpu, ...] = ()
    caches: Path | None = None
    """Where compiled kernels outlive the trainer that compiled them; none: they go with its folder."""
    ready_seconds: float = 120.0
    """Longest time that a trainer may take to warm up."""

    def environment(self, environ: Mapping[str, str], home: Path) -> dict[str, str]:
        """The trainer's environment: an allow-list, so that no credential of the service can slip through."""
        caches = self.caches or home
        compiled = {"TRITON_CACHE_DIR": str(caches / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor")}
        passed = {name: value for name, value in environ.items() if name in PASSED or name.startswith(PASSED_PREFIXES)}
        own = {"HOME": str(home), "TMPDIR": str(home), "HF_HUB_OFFLINE": "1"}
        return compiled | passed | own | {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in self.gpus)}


class TrainerProcess:
    """One trainer, leader of its own session, in a folder that goes with it."""

    def __init__(self, process: Process, folder: Path) -> None:
        self._process, self._folder = process, folder
        self._oom_kills = oom_kills()
        self.pid = process.pid
        self._exit = asyncio.create_task(self._bury())

    @classmethod
    async def spawn(cls, launch: Launch, folder: Path) -> Self:
        """Start one; it is warm once `ready` returns."""
        with (folder / "stderr.log").open("wb") as stderr:
            process = await asyncio.create_subprocess_exec(
                *launch.command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=stderr,
                cwd=folder,
                env=launch.environment(os.environ, folder),
                start_new_session=True,  # a signal to the worker's group is the supervisor's to handle
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
            raise NotStarted(f"{error or 'no answer'}; stderr: {self.tail()}") from error
        if not isinstance(report, Ready):
            killed = report is None and await self._was_killed()
            raise NotStarted(f"it said {report!r} where it should be ready; stderr: {self.tail()}", killed=killed)

    async def _was_killed(self) -> bool:
        """Whether it was ended from outside, and not by the kernel for want of memory."""
        status = await self.exited(2 * LOOK_SECONDS)
        return status is not None and killed_from_outside(status) and oom_kills() == self._oom_kills

    @property
    def alive(self) -> bool:
        """Asked of the kernel where it can be, since the event loop may not have heard yet."""
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self._process.returncode is None
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    async def send(self, command: Command) -> None:
        """Say something to it. A trainer that no longer listens is no error: its end is noticed where it is read."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):
            self._process.stdin.write(command.model_dump_json().encode() + b"\n")
            await self._process.stdin.drain()

    async def read(self) -> Report | None:
        """The next report; none when there will be no more. Raises `ProtocolError`. May be cancelled without loss."""
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
            return REPORTS.validate_json(line) if line.endswith(b"\n") else None
        except ValidationError as error:
            raise ProtocolError(f"not a report: {line[:200]!r}") from error
        except ValueError as error:
            raise ProtocolError(f"a line of more than {LINE_BYTES} bytes") from error

    def kill(self) -> None:
        """End it and all that it started, at once."""
        if self._process.returncode is None:  # else its number may be another's by now
            self._signal(signal.SIGKILL)

    async def end(self, grace_seconds: float = 0.0) -> int:
        """Ask it to leave, then make it; returns its exit status, negative for a signal."""
        if grace_seconds > 0 and self._process.returncode is None:
            self._signal(signal.SIGTERM)
            await self.exited(grace_seconds)
        self.kill()
        await asyncio.wait([self._exit])
        return self._exit.result()

    async def exited(self, seconds: float) -> int | None:
        """Its exit status if it leaves by itself within the time."""
        await asyncio.wait([self._exit], timeout=seconds)
        return self._exit.result() if self._exit.done() else None

    async def close(self) -> None:
        """End it and remove its folder."""
        await self.end()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def tail(self) -> str:
        """The end of what it wrote to stderr; for the operator's log, not for users."""
        with (self._folder / "stderr.log").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode(errors="replace")

    async def _bury(self) -> int:
        """What it started must not outlive it, nor keep its pipe open.

        `wait` may last until the pipes are closed too, which such a child prevents: hence the looks in between.
        """
        waiting = asyncio.create_task(self._process.wait())
        while self._process.returncode is None:
            await asyncio.wait([waiting], timeout=LOOK_SECONDS)
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
        """Begin to warm a spare up, unless there is one or will be."""
        if self._spare is None or _failed(self._spare):
            self._spare = asyncio.create_task(self._warm())

    async def take(self) -> TrainerProcess:
        """A warm trainer: the spare, or a new one when there is none or it has died. Raises `NotStarted`."""
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
        trainer = await asyncio.shield(self._spare)  # a job that is cancelled leaves it for the next
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
