"""Runs a job on several processes by torch's elastic launcher; this process trains nothing itself.

Every rank has a pipe to this process: the first rank sends its reports, the others a failure at most. Another pipe
leads to the first rank and carries the request to stop. When a process fails or dies, the launcher ends the others at
once, and the job's result is that of the first process that failed; a process that only lost another one sends
nothing. With several machines (see `worker.distributed.nodes`) each has a launcher, and the head's reports the result.
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
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from worker.distributed.failures import RANK_LOST, failed
from worker.distributed.group import join, leave
from worker.distributed.nodes import (
    JOIN_SECONDS,
    Heartbeats,
    Node,
    RendezvousSpec,
    all_joined,
    broadcast_files,
    ending_processes,
    rendezvous,
    report_failure,
    send_done,
    send_heartbeat,
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

POLL_SECONDS = 0.05
"""Interval at which the request to stop is polled."""
LOST_SECONDS = 30.0
"""Time that a rank which lost another one waits to be ended, before it reports that itself."""
LOST_NODE_SECONDS = 5.0
"""The same with several machines, whose launchers don't end each other's processes."""
END_SECONDS = 5
"""Time from SIGTERM to SIGKILL for the remaining ranks when one has failed."""
Died = ChildFailedError | DistError | None
Work = Callable[[Assignment, Path, Send, ShouldStop, SingleProcess], TrainerResult]
"""Function that every process runs; it must be importable, since processes receive its name and not its code."""
LOOPBACK_INTERFACE = {"linux": "lo", "darwin": "lo0"}


class RankArgs(NamedTuple):
    """Arguments that all ranks are started with."""

    work: Work
    assignment: str
    folder: str
    launcher: int
    reports: list[Connection]
    """Pipe of every rank, for writing."""
    stop: Connection
    """Pipe of the first rank, for reading: a message means that the job shall stop."""
    place: RendezvousSpec


def launch(work: Work, assignment: Assignment, folder: Path, send: Send, stop: ShouldStop) -> TrainerResult:
    """Run `work` on the job's number of processes; must be called in the main thread."""
    try:
        with rendezvous(assignment) as (place, store):
            if place.nodes == 1:
                return _launch(work, assignment, folder, send, stop, place)
            if not all_joined(place, store, JOIN_SECONDS):
                return _too_few_nodes()
            with ending_processes((heartbeats := Heartbeats(store, place.nodes)).job_over):
                result = _launch(work, assignment, folder, send, stop, place)
            return (heartbeats.failure() if isinstance(result, Failed) else None) or result
    except JobError as error:
        return failed(error)


def assist(work: Work, node: Node, folder: Path) -> Failed | None:
    """Run `work` on this machine's processes of a job whose head is another machine; returns a failure on this one."""
    with ending_processes(partial(send_heartbeat, node)):
        result = _launch(work, node.assignment, folder, _ignore, lambda: False, node.place, partial(_forward, node))
    _forward(node, result)
    send_done(node)
    return result if isinstance(result, Failed) else None


def _ignore(report: Report) -> None:
    """Discard a report."""


def _forward(node: Node, report: Report) -> None:
    """Send the head the cause of a failure on this machine; other reports are discarded."""
    if isinstance(report, Failed) and report.code != RANK_LOST:
        report_failure(node.store, report)


def _launch(
    work: Work,
    assignment: Assignment,
    folder: Path,
    send: Send,
    stop: ShouldStop,
    place: RendezvousSpec,
    on_result: Send = _ignore,
) -> TrainerResult:
    """`on_result` is called with the result as soon as it is received."""
    size, gpus = assignment.spec.resources.processes, assignment.spec.resources.queue == "gpu"
    if gpus and 0 < torch.cuda.device_count() < size:
        message = f"{size} processes need a GPU each, and this machine has {torch.cuda.device_count()}"
        return Failed(fault="capacity", code="too_few_gpus", message=message, param="resources.processes")
    context, kills = get_context("spawn"), oom_kills()
    pipes = [context.Pipe(duplex=False) for _ in range(size)]
    stop_reader, stop_writer = context.Pipe(duplex=False)
    writers = [writer for _, writer in pipes]
    args = RankArgs(work, assignment.model_dump_json(), str(folder), os.getpid(), writers, stop_reader, place)
    relay = _Relay([reader for reader, _ in pipes], send, on_result)
    with closing(stop_writer), relay.running(), _forwarding_stop(stop, stop_writer):
        died = _start(size, args, gpus=gpus)
        for end in (*args.reports, stop_reader):
            end.close()
    return relay.result or _explain(died, place, folder, killed_for_memory=oom_kills() > kills)


def _start(size: int, args: RankArgs, *, gpus: bool) -> Died:
    """Run all ranks to their end; returns the launcher's error, which has the first rank that died, if one did."""
    place = args.place
    if place.nodes == 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK_INTERFACE.get(sys.platform, "lo"))
    if not gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    config = LaunchConfig(
        min_nodes=place.nodes,
        max_nodes=place.nodes,
        nproc_per_node=size,
        run_id=place.run,
        rdzv_backend="static",  # ordered by seat; "c10d" takes a machine that is slow for some seconds for a dead one
        rdzv_endpoint=place.endpoint,
        # Those that have a seat wait for the head, which begins when all seats are taken.
        rdzv_configs={"rank": place.seat, "timeout": int(JOIN_SECONDS) * (2 if place.seat else 1)},
        local_addr=place.address,  # else the name of this machine is resolved, which may fail
        max_restarts=0,  # the supervisor starts another attempt, from the last checkpoint
        signals_to_handle="SIGTERM",  # SIGINT is a request to stop, from a terminal
        shutdown_timeout=END_SECONDS,
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        elastic_launch(config, _run_rank)(args)
    except (ChildFailedError, DistError) as error:
        return error
    except Exception:
        traceback.print_exc(file=sys.stderr)
    finally:
        signal.signal(signal.SIGTERM, before)  # the launcher does not restore it
    return None


def _run_rank(args: RankArgs) -> None:
    """Main function of a rank; it exits with status 1 unless its share of the job is done."""
    die_with_parent(args.launcher)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    number, local = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    make_deterministic()
    _divide_the_machine(number, local)
    assignment, pipe = Assignment.model_validate_json(args.assignment), args.reports[number]
    ranks = join(choose_device(), assignment.spec.resources.sharding)

    def send(report: BaseModel) -> None:
        if ranks.first:
            pipe.send_bytes(report.model_dump_json().encode())

    try:
        if args.place.nodes > 1:
            broadcast_files(assignment, Path(args.folder), local)
        result = args.work(assignment, Path(args.folder), send, args.stop.poll, ranks)
    except Exception as error:
        result = failed(error)
    if isinstance(result, Failed) and result.code == RANK_LOST:
        time.sleep(LOST_SECONDS if args.place.nodes == 1 else LOST_NODE_SECONDS)
    if number == 0 or isinstance(result, Failed):
        pipe.send_bytes(result.model_dump_json().encode())
    sys.stderr.flush()
    if isinstance(result, Failed):
        os._exit(1)
    leave()


def _divide_the_machine(number: int, size: int) -> None:
    """Assign a GPU to each rank, or its share of the cores."""
    if torch.cuda.is_available():
        torch.cuda.set_device(number)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // size))


class _Relay:
    """Forwards the reports of the ranks; `result` is the first result received, none before that."""

    def __init__(self, readers: list[Connection], send: Send, on_result: Send) -> None:
        self._readers, self._send, self._on_result = readers, send, on_result
        self.result: TrainerResult | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Forward reports within the context; it ends when all ranks and this process have closed their write ends."""
        thread = threading.Thread(target=self._relay, daemon=True)
        thread.start()
        yield
        thread.join()

    def _relay(self) -> None:
        left = list(self._readers)
        while left:
            for reader in connection.wait(left):
                assert isinstance(reader, Connection)
                try:
                    self._receive(REPORTS.validate_json(reader.recv_bytes()))
                except (EOFError, OSError):  # the latter if a rank was killed while it was writing
                    left.remove(reader)
                    reader.close()

    def _receive(self, report: Report) -> None:
        if not isinstance(report, Finished | Stopped | Failed):
            self._send(report)
        elif self.result is None:
            self.result = report
            self._on_result(report)


@contextmanager
def _forwarding_stop(stop: ShouldStop, writer: Connection) -> Iterator[None]:
    """Send the first rank the request to stop, within the context."""
    over = threading.Event()
    thread = threading.Thread(target=_forward_stop, args=(stop, over.wait, writer), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _forward_stop(stop: ShouldStop, over: Callable[[float], bool], writer: Connection) -> None:
    while not over(POLL_SECONDS):
        if stop():
            with suppress(OSError):  # the rank has just ended
                writer.send_bytes(b"stop")
            return


def _explain(died: Died, place: RendezvousSpec, folder: Path, *, killed_for_memory: bool) -> Failed:
    """The failure of a job whose processes ended without a result."""
    if isinstance(died, DistError) and place.seat:  # the head gave up first, and reports the reason
        return Failed(fault="system", code=RANK_LOST, message="the job's machines stopped waiting for this one")
    if isinstance(died, DistError) and place.nodes > 1:
        return _too_few_nodes()
    if isinstance(died, DistError):
        return Failed(fault="system", code="trainer_died", message="the trainer's processes could not be started")
    if died is None:
        return Failed(fault="system", code="trainer_died", message="the trainer's processes ended without a result")
    number, failure = died.get_first_failure()
    if failure.exitcode == -signal.SIGKILL and killed_for_memory:
        message = "a process of the job was killed: the machine ran out of memory"
        return Failed(fault="capacity", code="out_of_memory", message=message)
    if (note := note_of(folder, failure.pid)) and (cause := note.explain(failure.exitcode)):
        return cause
    how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"exited with status {failure.exitcode}"
    code = TRAINER_KILLED if killed_from_outside(failure.exitcode) else "trainer_died"
    return Failed(fault="system", code=code, message=f"process {number} of the job {how}")


def _too_few_nodes() -> Failed:
    message = f"not all of the job's machines joined within {JOIN_SECONDS:g} s"
    return Failed(fault="capacity", code="too_few_nodes", message=message, param="resources.nodes")
