"""One job on several machines: the worker that has claimed it is the head, the others (`stillhouse node`) come to it.

They meet in the head's c10d store, which it opens for a job at the address that the operator has set, and which goes
with the job. There lies the call: the job's assignment, and how many machines it is for. A machine takes a seat, meets
the others by torch's c10d rendezvous, and gets all files that the head has staged through the process group. What it
knows of a failure it leaves in the store; everything else is said by the first process, which is the head's.

Neither torch's store nor its rendezvous asks who is there: the address must be reachable by these machines alone.
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

CALL, SEATS, FIRST, WORD, BEAT = (f"stillhouse/{name}" for name in ("call", "seats", "first", "word", "beat"))
"""Keys in the store: the job, machines that came to it, the launcher's number of its first process, what failed, and
for each seat a number that grows."""
BEAT_SECONDS, SILENT_SECONDS = 0.5, 20.0
"""Between two beats of a machine, and after which one without a beat is taken for dead."""
DONE = 1 << 40
"""What is added to the beats of a machine that has done its share."""
JOIN_SECONDS = 60.0
"""Longest wait for machines that are missing."""
LOOK_SECONDS = 5.0
"""Longest wait for an answer of the head."""
CHUNK = 1 << 24
"""Bytes of a file that are sent at a time."""


class Call(BaseModel):
    """What the head has to say to those who come."""

    run: str
    """Names the attempt; whoever has tried it does not try it again."""
    nodes: int
    """Machines, the head among them."""
    assignment: Assignment


class RendezvousSpec(NamedTuple):
    """Where the launchers of a job meet, and how many."""

    run: str
    endpoint: str
    """Host and port of the store."""
    address: str
    """Under which the other machines reach this one."""
    nodes: int = 1
    head: bool = True


class Node(NamedTuple):
    """What a machine that was called has to do."""

    place: RendezvousSpec
    assignment: Assignment
    store: Store
    seat: int
    """From 1; the head has 0."""


class Beats:
    """Whether the other machines live: each counts up a number in the store, until it has done its share."""

    def __init__(self, store: Store, nodes: int) -> None:
        self._store, self._lost = store, False
        self._seen = {f"{BEAT}/{seat}": (0, time.monotonic()) for seat in range(1, nodes)}

    def end(self) -> bool:
        """Whether the job is over for the head: a machine has said that it failed, or has fallen silent."""
        self._lost = self._lost or any([self._silent(key) for key in self._seen])
        return self._lost or self._store.check([WORD])

    def word(self) -> Failed | None:
        """Why another machine has ended the job, if one has."""
        if self._store.check([WORD]):
            word = REPORTS.validate_json(self._store.get(WORD))
            return word if isinstance(word, Failed) else None
        message = "another machine of the job fell silent"
        return Failed(fault="system", code=NODE_LOST, message=message) if self._lost else None

    def _silent(self, key: str) -> bool:
        count, (before, since) = self._store.add(key, 0), self._seen[key]
        if count != before:
            self._seen[key] = count, time.monotonic()
        return 0 < count < DONE and count == before and time.monotonic() - since > SILENT_SECONDS


@contextmanager
def guarded(over: Callable[[], bool]) -> Iterator[None]:
    """End the processes of this one as soon as the job is over elsewhere, or its store is gone with the head."""
    left = threading.Event()

    def look() -> None:
        while not left.wait(BEAT_SECONDS):
            try:
                ended = over()
            except RuntimeError:
                ended = True
            if ended:
                for child in active_children():
                    child.terminate()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def beat(node: Node) -> bool:
    """Show the head that this machine lives; never asks to end."""
    node.store.add(f"{BEAT}/{node.seat}", 1)
    return False


def done(node: Node) -> None:
    """Tell the head that no more beats will come."""
    with suppress(RuntimeError):
        node.store.add(f"{BEAT}/{node.seat}", DONE)


@contextmanager
def called(assignment: Assignment) -> Iterator[tuple[RendezvousSpec, Store | None]]:
    """Where the processes of a job meet: on this machine, or, for several, where they are called to. Raises SystemFault
    when nobody can be called."""
    nodes = assignment.spec.resources.nodes
    if nodes == 1:
        yield RendezvousSpec(str(os.getpid()), "127.0.0.1:0", "127.0.0.1"), None
        return
    if assignment.rendezvous is None:
        raise SystemFault("no_rendezvous", "this worker has no address at which other machines would meet it")
    call = Call(run=uuid4().hex, nodes=nodes, assignment=assignment)
    host, port = split_address(assignment.rendezvous)
    try:
        store = TCPStore(host, port, is_master=True, wait_for_workers=False)
    except (RuntimeError, OSError) as error:
        raise SystemFault("no_rendezvous", "the address at which machines meet can't be listened on") from error
    store.set(CALL, call.model_dump_json())
    yield RendezvousSpec(call.run, assignment.rendezvous, host, nodes), store


def come(address: str, known: set[str]) -> Node | None:
    """Take a seat in the job that the head at `address` calls for; none: nobody calls, it is in `known`, or all seats
    are taken. Raises OSError when the address can't be looked up, SystemFault when something else listens there."""
    host, port = split_address(address)
    try:
        with socket.create_connection((host, port), timeout=LOOK_SECONDS) as there:
            own = there.getsockname()[0]
    except socket.gaierror:
        raise
    except OSError:  # no job, or no machine yet
        return None
    try:
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=LOOK_SECONDS))
        call = Call.model_validate_json(store.get(CALL))
        seat = 0 if call.run in known else store.add(SEATS, 1)
    except (RuntimeError, ValidationError) as error:
        message = f"what listens at {address} does not answer as a worker of this version; trying on"
        raise SystemFault("no_rendezvous", message) from error
    known.add(call.run)
    place = RendezvousSpec(call.run, address, own, call.nodes, head=False)
    return Node(place, call.assignment, store, seat) if 0 < seat < call.nodes else None


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def number_of(place: RendezvousSpec) -> int:
    """Of this process, counted from the first one of the head; the launcher's own order goes by addresses."""
    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if place.nodes == 1:
        return number
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    if place.head and os.environ["LOCAL_RANK"] == "0":
        store.set(FIRST, str(number))
    return (number - int(store.get(FIRST))) % size


def tell(store: Store, word: Failed) -> None:
    """Leave for the head why the job has failed here, unless it is gone."""
    with suppress(RuntimeError):
        store.set(WORD, word.model_dump_json())


def hand_out(assignment: Assignment, folder: Path, local: int) -> None:
    """Bring all staged files from the first process to the first one of every other machine, of `local` processes each;
    called by all. Raises SystemFault for a file that would leave the folder."""
    number, size = dist.get_rank(), dist.get_world_size()
    leads = dist.new_group(list(range(0, size, local)), backend="gloo")
    if number % local == 0:
        for name, length in json.loads(_say(json.dumps(list(_files(assignment, folder))), leads)):
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise SystemFault("invalid_assignment", "a staged file lies outside of the job's folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb" if number == 0 else "wb") as file:
                for begin in range(0, length, CHUNK):
                    count = min(CHUNK, length - begin)
                    said = _bytes(file.read(count)) if number == 0 else torch.empty(count, dtype=torch.uint8)
                    dist.broadcast(said, src=0, group=leads)
                    if number:
                        file.write(said.numpy().data)
    dist.all_reduce(torch.zeros(()))  # the others of a machine wait for its first


def bring(path: Path, number: int) -> None:
    """Move the file that process `number` has at `path` to the first one's machine, same path there; called by both."""
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
            dist.recv(said := torch.empty(min(CHUNK, int(length) - begin), dtype=torch.uint8), number)
            file.write(said.numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _files(assignment: Assignment, folder: Path) -> Iterator[tuple[str, int]]:
    """Names and bytes of all that a job reads."""
    if dist.get_rank() == 0:
        for path in _within(folder / name for name in (*assignment.inputs.values(), assignment.resume) if name):
            yield str(path.relative_to(folder)), path.stat().st_size


def _within(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield from ([path] if path.is_file() else (each for each in sorted(path.rglob("*")) if each.is_file()))


def _say(text: str, group: dist.ProcessGroup) -> str:
    """What the first of `group` says."""
    content = _bytes(text.encode())
    dist.broadcast(length := torch.tensor(len(content)), src=0, group=group)
    said = content if dist.get_rank() == 0 else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(said, src=0, group=group)
    return said.numpy().tobytes().decode()


def _bytes(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
