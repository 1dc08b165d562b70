"""One job on several processes of this machine, by torch's elastic launcher; this process trains nothing itself.

Every rank has a pipe to here: the first one's carries what it reports, the others' a failure at most. Another pipe
leads to the first one and carries the wish to stop. When a process fails or dies, the launcher ends the rest at once,
and the job's last word is what the first to fail has said: whoever only misses another one keeps quiet.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from worker.memory import oom_kills
from worker.protocol import REPORTS, Assignment, Failed, Finished, Report, Stopped
from worker.trainer.machine import choose_device, make_deterministic
from worker.trainer.parent import die_with_parent
from worker.trainer.ranks import join
from worker.trainer.run import RANK_LOST, Word, run
from worker.trainer.watch import Send, Stop

LOOK_SECONDS = 0.05
"""Between two looks whether the job shall stop."""
QUIET_SECONDS = 30.0
"""How long a rank that misses another one waits to be ended, before it says so itself."""
END_SECONDS = 5
"""From SIGTERM to SIGKILL, for the ranks that are left when one has failed."""
LOOPBACK = {"linux": "lo", "darwin": "lo0"}


class Ends(NamedTuple):
    """What all ranks are started with."""

    assignment: str
    folder: str
    launcher: int
    reports: list[Connection]
    """Of every rank, to write to."""
    wish: Connection
    """Of the first rank, to read from: something comes when the job shall stop."""


def launch(assignment: Assignment, folder: Path, send: Send, stop: Stop) -> Word:
    """As `run`, on as many processes as the job says; must be called in the main thread."""
    size, gpus = assignment.spec.resources.processes, assignment.spec.resources.queue == "gpu"
    if gpus and 0 < torch.cuda.device_count() < size:
        message = f"{size} processes need a GPU each, and this worker has {torch.cuda.device_count()}"
        return Failed(fault="capacity", code="too_few_gpus", message=message, param="resources.processes")
    context, kills = get_context("spawn"), oom_kills()
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    wish, wisher = context.Pipe(duplex=False)
    ends = Ends(assignment.model_dump_json(), str(folder), os.getpid(), [out for _, out in pipes], wish)
    relay = _Relay([end for end, _ in pipes], send)
    with closing(wisher), relay.running(), _minding(stop, wisher):
        died = _start(size, ends, gpus=gpus)
        for end in (*ends.reports, wish):
            end.close()
    return relay.word or _explain(died, killed_for_memory=oom_kills() > kills)


def _start(size: int, ends: Ends, *, gpus: bool) -> ChildFailedError | None:
    """See all ranks to their end; which of them died first, if one did."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK.get(sys.platform, "lo"))
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=size,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",  # else the name of this machine is looked up, which may lead nowhere
        max_restarts=0,  # another attempt is the supervisor's to make, from the last checkpoint
        signals_to_handle="SIGTERM",  # SIGINT asks for a stop where a person looks on
        shutdown_timeout=END_SECONDS,
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        elastic_launch(config, _be_a_rank)(ends)
    except ChildFailedError as error:
        return error
    except Exception:
        traceback.print_exc(file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)  # the launcher leaves its own behind
    return None


def _be_a_rank(ends: Ends) -> None:
    """What each process does; it leaves with status 1 unless its share of the job is done."""
    die_with_parent(ends.launcher)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    make_deterministic()
    _divide_the_machine(number, size)
    assignment, out = Assignment.model_validate_json(ends.assignment), ends.reports[number]
    ranks = join(choose_device(), assignment.spec.resources.sharding)

    def send(report: BaseModel) -> None:
        if ranks.first:
            out.send_bytes(report.model_dump_json().encode())

    word = run(assignment, Path(ends.folder), send, ends.wish.poll, ranks)
    if isinstance(word, Failed) and word.code == RANK_LOST:
        time.sleep(QUIET_SECONDS)
    if ranks.first or isinstance(word, Failed):
        out.send_bytes(word.model_dump_json().encode())
    sys.stderr.flush()
    if isinstance(word, Failed):
        os._exit(1)


def _divide_the_machine(number: int, size: int) -> None:
    """A GPU for each rank, or its share of the cores."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))


class _Relay:
    """Passes on what the ranks say; `word` is the last word, once there is one."""

    def __init__(self, ends: list[Connection], send: Send) -> None:
        self._ends, self._send = ends, send
        self.word: Word | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ends with the last rank, when this process has closed its copies of their ends."""
        thread = threading.Thread(target=self._relay, daemon=True)
        thread.start()
        yield
        thread.join()

    def _relay(self) -> None:
        left = list(self._ends)
        while left:
            for end in connection.wait(left):
                assert isinstance(end, Connection)
                try:
                    self._hear(REPORTS.validate_json(end.recv_bytes()))
                except (EOFError, OSError):  # the latter where one was killed in the middle of a word
                    left.remove(end)
                    end.close()

    def _hear(self, report: Report) -> None:
        if not isinstance(report, Finished | Stopped | Failed):
            self._send(report)
        elif self.word is None:
            self.word = report


@contextmanager
def _minding(stop: Stop, wisher: Connection) -> Iterator[None]:
    """Tell the first rank as soon as the job shall stop."""
    over = threading.Event()
    thread = threading.Thread(target=_tell, args=(stop, over.wait, wisher), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _tell(stop: Stop, over: Callable[[float], bool], wisher: Connection) -> None:
    while not over(LOOK_SECONDS):
        if stop():
            with suppress(OSError):  # it has just left
                wisher.send_bytes(b"stop")
            return


def _explain(died: ChildFailedError | None, *, killed_for_memory: bool) -> Failed:
    """A process ended without a last word."""
    if died is None:
        return Failed(fault="system", code="trainer_died", message="the trainer's processes left without a last word")
    number, failure = died.get_first_failure()
    if failure.exitcode == -signal.SIGKILL and killed_for_memory:
        message = "a process of the job was killed: the machine ran out of memory"
        return Failed(fault="capacity", code="out_of_memory", message=message)
    how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"exited with status {failure.exitcode}"
    return Failed(fault="system", code="trainer_died", message=f"process {number} of the job {how}")
