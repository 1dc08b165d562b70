"""One job on several processes, by torch's elastic launcher; this process trains nothing itself.

Every rank has a pipe to here: the first one's carries what it reports, the others' a failure at most. Another pipe
leads to the first one and carries the wish to stop. When a process fails or dies, the launcher ends the rest at once,
and the job's last word is what the first to fail has said: whoever only misses another one keeps quiet. Of several
machines (see `worker.distributed.nodes`) each has a launcher, and that of the head speaks.
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
from functools import partial
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousTimeoutError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from worker.distributed.failures import RANK_LOST, failed
from worker.distributed.group import join
from worker.distributed.nodes import (
    JOIN_SECONDS,
    Beats,
    Node,
    RendezvousSpec,
    beat,
    called,
    done,
    guarded,
    hand_out,
    number_of,
    tell,
)
from worker.distributed.ranks import SingleProcess
from worker.errors import JobError
from worker.limits import note_of
from worker.machine import choose_device, make_deterministic
from worker.memory import killed_from_outside, oom_kills
from worker.parent import die_with_parent
from worker.protocol import (
    REPORTS,
    TRAINER_KILLED,
    Assignment,
    Failed,
    Finished,
    Report,
    Send,
    ShouldStop,
    Stopped,
    TrainerResult,
)

LOOK_SECONDS = 0.05
"""Between two looks whether the job shall stop."""
QUIET_SECONDS = 30.0
"""How long a rank that misses another one waits to be ended, before it says so itself."""
QUIET_NODE_SECONDS = 5.0
"""The same with several machines, whose launchers don't end each other's processes."""
END_SECONDS = 5
"""From SIGTERM to SIGKILL, for the ranks that are left when one has failed."""
Died = ChildFailedError | RendezvousTimeoutError | RendezvousClosedError | None
Work = Callable[[Assignment, Path, Send, ShouldStop, SingleProcess], TrainerResult]
"""What every process does; a function of a module, for it is named to the processes and not sent."""
LOOPBACK = {"linux": "lo", "darwin": "lo0"}


class RankArgs(NamedTuple):
    """What all ranks are started with."""

    work: Work
    assignment: str
    folder: str
    launcher: int
    reports: list[Connection]
    """Of every rank, to write to."""
    wish: Connection
    """Of the first rank, to read from: something comes when the job shall stop."""
    place: RendezvousSpec


def launch(work: Work, assignment: Assignment, folder: Path, send: Send, stop: ShouldStop) -> TrainerResult:
    """`work` on as many processes as the job says; must be called in the main thread."""
    try:
        with called(assignment) as (place, store):
            if store is None:
                return _launch(work, assignment, folder, send, stop, place)
            with guarded((beats := Beats(store, place.nodes)).end):
                word = _launch(work, assignment, folder, send, stop, place)
            return (beats.word() if isinstance(word, Failed) else None) or word
    except JobError as error:
        return failed(error)


def assist(work: Work, node: Node, folder: Path) -> Failed | None:
    """`work` on this machine's processes of a job that another one is the head of; what has failed here, if something
    has."""
    with guarded(partial(beat, node)):
        word = _launch(work, node.assignment, folder, _ignore, lambda: False, node.place, partial(_pass_on, node))
    _pass_on(node, word)
    done(node)
    return word if isinstance(word, Failed) else None


def _ignore(report: Report) -> None:
    """For who has nobody to tell."""


def _pass_on(node: Node, report: Report) -> None:
    """Of what is said on a machine that helps, the head hears why it failed."""
    if isinstance(report, Failed) and report.code != RANK_LOST:
        tell(node.store, report)


def _launch(
    work: Work,
    assignment: Assignment,
    folder: Path,
    send: Send,
    stop: ShouldStop,
    place: RendezvousSpec,
    told: Send = _ignore,
) -> TrainerResult:
    """`told` hears the last word as soon as it is said."""
    size, gpus = assignment.spec.resources.processes, assignment.spec.resources.queue == "gpu"
    if gpus and 0 < torch.cuda.device_count() < size:
        message = f"{size} processes need a GPU each, and this machine has {torch.cuda.device_count()}"
        return Failed(fault="capacity", code="too_few_gpus", message=message, param="resources.processes")
    context, kills = get_context("spawn"), oom_kills()
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    wish, wisher = context.Pipe(duplex=False)
    reports = [out for _, out in pipes]
    ends = RankArgs(work, assignment.model_dump_json(), str(folder), os.getpid(), reports, wish, place)
    relay = _Relay([end for end, _ in pipes], send, told)
    with closing(wisher), relay.running(), _minding(stop, wisher):
        died = _start(size, ends, gpus=gpus)
        for end in (*ends.reports, wish):
            end.close()
    return relay.word or _explain(died, folder, killed_for_memory=oom_kills() > kills)


def _start(size: int, ends: RankArgs, *, gpus: bool) -> Died:
    """See all ranks to their end; which of them died first, if one did."""
    place = ends.place
    if place.nodes == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK.get(sys.platform, "lo"))
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    config = LaunchConfig(
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        nproc_per_node=size,
        run_id=place.run,
        rdzv_backend="c10d",
        rdzv_endpoint=place.endpoint,
        rdzv_configs={} if place.nodes == 1 else {"is_host": "false", "join_timeout": str(int(JOIN_SECONDS))},
        local_addr=place.address,  # else the name of this machine is looked up, which may lead nowhere
        max_restarts=0,  # another attempt is the supervisor's to make, from the last checkpoint
        signals_to_handle="SIGTERM",  # SIGINT asks for a stop where a person looks on
        shutdown_timeout=END_SECONDS,
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        elastic_launch(config, _be_a_rank)(ends)
    except (ChildFailedError, RendezvousTimeoutError, RendezvousClosedError) as error:
        return error
    except Exception:
        traceback.print_exc(file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)  # the launcher leaves its own behind
    return None


def _be_a_rank(ends: RankArgs) -> None:
    """What each process does; it leaves with status 1 unless its share of the job is done."""
    die_with_parent(ends.launcher)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    number, local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    make_deterministic()
    _divide_the_machine(number, local)
    assignment, out = Assignment.model_validate_json(ends.assignment), ends.reports[number]
    ranks = join(choose_device(), assignment.spec.resources.sharding, number_of(ends.place))

    def send(report: BaseModel) -> None:
        if ranks.first:
            out.send_bytes(report.model_dump_json().encode())

    try:
        if ends.place.nodes > 1:
            hand_out(assignment, Path(ends.folder), local)
        word = ends.work(assignment, Path(ends.folder), send, ends.wish.poll, ranks)
    except Exception as error:
        word = failed(error)
    if isinstance(word, Failed) and word.code == RANK_LOST:
        time.sleep(QUIET_SECONDS if ends.place.nodes == 1 else QUIET_NODE_SECONDS)
    if number == 0 or isinstance(word, Failed):
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

    def __init__(self, ends: list[Connection], send: Send, told: Send) -> None:
        self._ends, self._send, self._told = ends, send, told
        self.word: TrainerResult | None = None

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
            self._told(report)


@contextmanager
def _minding(stop: ShouldStop, wisher: Connection) -> Iterator[None]:
    """Tell the first rank as soon as the job shall stop."""
    over = threading.Event()
    thread = threading.Thread(target=_tell, args=(stop, over.wait, wisher), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _tell(stop: ShouldStop, over: Callable[[float], bool], wisher: Connection) -> None:
    while not over(LOOK_SECONDS):
        if stop():
            with suppress(OSError):  # it has just left
                wisher.send_bytes(b"stop")
            return


def _explain(died: Died, folder: Path, *, killed_for_memory: bool) -> Failed:
    """A process ended without a last word."""
    if isinstance(died, RendezvousClosedError):  # another machine gave up first, and says why
        return Failed(fault="system", code=RANK_LOST, message="the job's machines stopped waiting for this one")
    if isinstance(died, RendezvousTimeoutError):
        message = f"not all of the job's machines came within {JOIN_SECONDS:g} s"
        return Failed(fault="capacity", code="too_few_nodes", message=message, param="resources.nodes")
    if died is None:
        return Failed(fault="system", code="trainer_died", message="the trainer's processes left without a last word")
    number, failure = died.get_first_failure()
    if failure.exitcode == -signal.SIGKILL and killed_for_memory:
        message = "a process of the job was killed: the machine ran out of memory"
        return Failed(fault="capacity", code="out_of_memory", message=message)
    if (note := note_of(folder, failure.pid)) and (told := note.explain(failure.exitcode)):
        return told
    how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"exited with status {failure.exitcode}"
    code = TRAINER_KILLED if killed_from_outside(failure.exitcode) else "trainer_died"
    return Failed(fault="system", code=code, message=f"process {number} of the job {how}")
