"""Runs a job on several machines: the worker that claimed it is the head, the others (`stillhouse node`) join it.

They connect to the head's c10d store, which it opens for one job at the address that the operator has set. The store
has the job's assignment and its number of machines. A machine takes a seat, whose number orders its processes among
those of the others, and receives all files that the head has staged through the process group. It writes its own
failure to the store; all other reports are sent by the first process, which is the head's.

Neither torch's store nor its rendezvous authenticates: only these machines may be able to reach the address.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import active_children
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import torch
import torch.distributed as dist
from pydantic import BaseModel, ValidationError
from torch._C._distributed_c10d import Store, TCPStore  # torch.distributed has them, but not for type checkers

from worker.errors import SystemFault
from worker.protocol import NODE_LOST, REPORTS, Assignment, Failed

OFFER, SEATS, FAILURE, BEAT = (f"stillhouse/{name}" for name in ("offer", "seats", "failure", "beat"))
"""Keys in the store: the job, the number of machines that joined, a failure, and for each seat a growing heartbeat
counter."""
BEAT_SECONDS, TIMEOUT_SECONDS = 0.5, 20.0
"""Interval of a machine's heartbeats, and the time without one after which it counts as lost."""
DONE = 1 << 40
"""Added to the heartbeat counter of a machine that has done its share."""
JOIN_SECONDS = 60.0
"""Longest wait for missing machines."""
SEATS_SECONDS = 0.1
"""Interval at which the head counts the machines that joined."""
LOOPBACK = "127.0.0.1"
REPLY_SECONDS = 5.0
"""Longest wait for a reply of the head."""
CHUNK = 1 << 24
"""Bytes of a file that are sent at a time."""


class JobOffer(BaseModel):
    """The head's message to machines that connect."""

    run: str
    """Id of the attempt; a machine that has joined it does not join it again."""
    nodes: int
    """Number of machines, with the head."""
    assignment: Assignment


class RendezvousSpec(NamedTuple):
    """Address and number of a job's launchers."""

    run: str
    endpoint: str
    """Host and port of the store."""
    address: str
    """Address at which the other machines reach this one."""
    nodes: int = 1
    seat: int = 0
    """This machine's, from 0, which is the head's."""


class Node(NamedTuple):
    """A seat of this machine in a job."""

    place: RendezvousSpec
    assignment: Assignment
    store: Store


class Heartbeats:
    """The head's view of the other machines, each of which counts up a number in the store until its share is done."""

    def __init__(self, store: Store, nodes: int) -> None:
        self._store, self._lost = store, False

        self._counts = {f"{BEAT}/{seat}": (0, time.monotonic()) for seat in range(1, nodes)}

    def job_over(self) -> bool:
        """Whether another machine has ended the job: it reported a failure, or was lost."""
        self._lost = self._lost or any([self._timed_out(key) for key in self._counts])
        return self._lost or self._store.check([FAILURE])

    def failure(self) -> Failed | None:
        """The failure by which another machine has ended the job, if one has."""
        if self._store.check([FAILURE]):
            failure = REPORTS.validate_json(self._store.get(FAILURE))
            return failure if isinstance(failure, Failed) else None
        message = "another machine of the job stopped responding"
        return Failed(fault="system", code=NODE_LOST, message=message) if self._lost else None

    def _timed_out(self, key: str) -> bool:
        count, (before, since) = self._store.add(key, 0), self._counts[key]
        if count != before:
            self._counts[key] = count, time.monotonic()
        return 0 < count < DONE and count == before and time.monotonic() - since > TIMEOUT_SECONDS


@contextmanager
def ending_processes(job_over: Callable[[], bool]) -> Iterator[None]:
    """End this process's children when the job is over elsewhere, or when its store is lost with the head."""
    left = threading.Event()

    def poll() -> None:
        while not left.wait(BEAT_SECONDS):
            try:
                ended = job_over()
            except RuntimeError:
                ended = True
            if ended:
                for child in active_children():
                    child.terminate()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def send_heartbeat(node: Node) -> bool:
    """Count up this machine's heartbeat; always false: the job is not over."""
    node.store.add(f"{BEAT}/{node.place.seat}", 1)
    return False


def send_done(node: Node) -> None:
    """Mark this machine's share as done: no more heartbeats will come."""
    with suppress(RuntimeError):
        node.store.add(f"{BEAT}/{node.place.seat}", DONE)


@contextmanager
def rendezvous(assignment: Assignment) -> Iterator[tuple[RendezvousSpec, Store]]:
    """Open a job's store: at the worker's address if the job is for several machines, else on loopback.

    Raises SystemFault if the worker has no address, or can't listen on it.
    """
    nodes = assignment.spec.resources.nodes
    if nodes > 1 and assignment.rendezvous is None:
        raise SystemFault("no_rendezvous", "this worker has no address at which other machines could join it")
    offer = JobOffer(run=uuid4().hex, nodes=nodes, assignment=assignment)
    if nodes == 1 or assignment.rendezvous is None:
        with socket.create_server((LOOPBACK, 0)) as listener:
            store = _store_of(listener)
        yield RendezvousSpec(offer.run, f"{LOOPBACK}:{store.port}", LOOPBACK), store
        return
    host, port = split_address(assignment.rendezvous)
    try:
        with _listening_everywhere(port) as listener:
            store = _store_of(listener)
    except OSError as error:
        raise SystemFault("no_rendezvous", "the worker can't listen on the address of the rendezvous") from error
    store.set(OFFER, offer.model_dump_json())
    yield RendezvousSpec(offer.run, assignment.rendezvous, host, nodes), store


def _listening_everywhere(port: int) -> socket.socket:
    """A socket at all of this machine's addresses: the one that others use may be another machine's that forwards."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _store_of(listener: socket.socket) -> TCPStore:
    """A store that answers at `listener`; torch's launcher, in this process, finds it by its port."""
    return TCPStore(
        LOOPBACK,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listener.detach(),
    )


def all_joined(place: RendezvousSpec, store: Store, timeout: float) -> bool:
    """Wait, `timeout` seconds at most, until all other machines of a job have taken a seat."""
    end = time.monotonic() + timeout
    while store.add(SEATS, 0) < place.nodes - 1:
        if time.monotonic() > end:
            return False
        time.sleep(SEATS_SECONDS)
    return True


def join_job(address: str, joined: set[str]) -> Node | None:
    """Take a seat in the job that the head at `address` offers, and add its id to `joined`.

    None: there is no job, its id is in `joined`, or all seats are taken. Raises OSError if the address can't be
    resolved, SystemFault if something else listens there.
    """
    host, port = split_address(address)
    try:
        with socket.create_connection((host, port), timeout=REPLY_SECONDS) as connection:
            own = connection.getsockname()[0]
    except socket.gaierror:
        raise
    except OSError:  # no job yet, or no head
        return None
    try:
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=REPLY_SECONDS))
        offer = JobOffer.model_validate_json(store.get(OFFER))
        seat = 0 if offer.run in joined else store.add(SEATS, 1)
    except (RuntimeError, ValidationError) as error:
        message = f"the server at {address} does not answer as a worker of this version; trying again"
        raise SystemFault("no_rendezvous", message) from error
    joined.add(offer.run)
    place = RendezvousSpec(offer.run, address, own, offer.nodes, seat)
    return Node(place, offer.assignment, store) if 0 < seat < offer.nodes else None


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def report_failure(store: Store, failure: Failed) -> None:
    """Write this machine's failure to the store, unless the head is lost."""
    with suppress(RuntimeError):
        store.set(FAILURE, failure.model_dump_json())


def broadcast_files(assignment: Assignment, folder: Path, local: int) -> None:
    """Send all staged files from the first process to the first one of every other machine.

    Called by all processes, of which each machine has `local`. Raises SystemFault for a path outside of the folder.
    """
    number, size = dist.get_rank(), dist.get_world_size()
    leads = dist.new_group(list(range(0, size, local)), backend="gloo")
    if number % local == 0:
        for name, length in json.loads(_broadcast(json.dumps(list(_files(assignment, folder))), leads)):
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise SystemFault("invalid_assignment", "a staged file is outside of the job's folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb" if number == 0 else "wb") as file:
                for begin in range(0, length, CHUNK):
                    count = min(CHUNK, length - begin)
                    chunk = _bytes(file.read(count)) if number == 0 else torch.empty(count, dtype=torch.uint8)
                    dist.broadcast(chunk, src=0, group=leads)
                    if number:
                        file.write(chunk.numpy().data)
    dist.all_reduce(torch.zeros(()))  # the other processes of a machine wait for its first


def move_file(path: Path, number: int) -> None:
    """Move the file at `path` of process `number` to the same path on the first one's machine; called by both."""
    if dist.get_rank() == number:
        dist.send(torch.tensor(path.stat().st_size), 0)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                dist.send(_bytes(chunk), 0)
        path.unlink()
        return
    dist.recv(length := torch.tensor(0), number)
    with path.open("wb") as file:
        for begin in range(0, int(length), CHUNK):
            dist.recv(received := torch.empty(min(CHUNK, int(length) - begin), dtype=torch.uint8), number)
            file.write(received.numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _files(assignment: Assignment, folder: Path) -> Iterator[tuple[str, int]]:
    """Names and sizes in bytes of all files that a job reads; empty but on the first process."""
    if dist.get_rank() == 0:
        for path in _within(folder / name for name in (*assignment.inputs.values(), assignment.resume) if name):
            yield str(path.relative_to(folder)), path.stat().st_size


def _within(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield from ([path] if path.is_file() else (each for each in sorted(path.rglob("*")) if each.is_file()))


def _broadcast(text: str, group: dist.ProcessGroup) -> str:
    """`text` of the first process of `group`."""
    content = _bytes(text.encode())
    dist.broadcast(length := torch.tensor(len(content)), src=0, group=group)
    received = content if dist.get_rank() == 0 else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(received, src=0, group=group)
    return received.numpy().tobytes().decode()


def _bytes(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
