"""The client against an API that is killed and started again at the same address."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core import migrate
from app.core.database import Database
from app.core.settings import Settings
from app.core.store import Store
from app.jobs import leases, publishing, reporting
from app.jobs.leases import Lease, StoredFile
from app.projects.keys import new_key
from stillhouse import Client, ServiceError, Unreachable, local_files
from tests.app.jobs.builders import CONFIG
from tests.servers.output import first_line
from tests.stillhouse.conftest import job_document
from tests.stillhouse.process import environment

SCRIPT = Path(__file__).with_name("restarted_service.py")
ROOT = Path(__file__).parents[2]
CONTENT = np.random.default_rng(0).bytes(20_000_000)


class Restarted:
    """An API as a process of its own, at an address that stays its own while it is dead."""

    def __init__(self, data_dir: Path) -> None:
        self.settings = Settings(data_dir=data_dir)
        self.key = new_key()
        migrate.upgrade(self.settings.resolved_database_url)
        # Bound and never listened on: nobody else gets the port, and who connects while no API lives is refused.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._reserved.bind(("127.0.0.1", 0))
        self.port = self._reserved.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        env = environment(self.settings.data_dir, STILLHOUSE_BOOTSTRAP_KEY=self.key)
        command = (sys.executable, str(SCRIPT), str(self.settings.data_dir), str(self.port))
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=env | {"PYTHONPATH": str(ROOT)}, cwd=ROOT
        )
        assert first_line(self._process.stdout) == "listening\n"

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def freeze(self) -> None:
        """Stop the process at a moment in which it holds no lock of the database."""
        while True:
            self.signal(signal.SIGSTOP)
            try:
                self.write(lambda session: session.execute(text("select 1")))
                return
            except OperationalError:
                self.signal(signal.SIGCONT)
                time.sleep(0.05)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        self.kill()
        self._reserved.close()

    def write(self, act: Callable[[AsyncSession], Awaitable[Any]]) -> Any:
        """One transaction, as a worker makes it."""

        async def work() -> Any:
            database = Database(self.settings.resolved_database_url)
            async with database.write() as session:
                done = await act(session)
            await database.close()
            return done

        return asyncio.run(work())

    def claim(self) -> Lease:
        lease = self.write(lambda session: leases.claim(session, owner="w", queues=["any"], lease_seconds=600.0))
        assert isinstance(lease, Lease)
        self.write(lambda session: leases.start(session, lease))
        return lease

    def log(self, lease: Lease, message: str) -> None:
        self.write(lambda session: reporting.log(session, lease, message))

    def succeed(self, lease: Lease, content: bytes) -> None:
        path = self.settings.data_dir / "model.safetensors"
        path.write_bytes(content)
        stored = asyncio.run(Store.from_settings(self.settings).upload(path, f"published/{lease.job_id}"))
        file = StoredFile(path.name, stored.key, stored.size, stored.sha256)
        self.write(lambda session: publishing.succeed(session, lease, [file], CONFIG, 1, {}))


@pytest.fixture
def restarted(tmp_path: Path) -> Iterator[Restarted]:
    service = Restarted(tmp_path / "data")
    service.start()
    yield service
    service.close()


@pytest.fixture
def client(restarted: Restarted) -> Iterator[Client]:
    with Client(restarted.url, restarted.key, timeout_seconds=5.0, outage_seconds=240.0) as client:
        yield client


class Watching:
    """Watches a job in a thread."""

    def __init__(self, client: Client, job_id: str) -> None:
        self.seen: list[int] = []
        self.error: Exception | None = None
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._watch, args=(client, job_id))
        self._thread.start()

    def _watch(self, client: Client, job_id: str) -> None:
        try:
            for event in client.watch(job_id):
                with self._news:
                    self.seen.append(event.seq)
                    self._news.notify_all()
        except Exception as error:
            self.error = error

    def until(self, seq: int) -> None:
        """Wait until an event has come."""
        with self._news:
            assert self._news.wait_for(lambda: seq in self.seen, 120), (seq, self.seen, self.error)

    def end(self) -> None:
        self._thread.join(120)
        assert not self._thread.is_alive()


def test_watching_misses_nothing_and_repeats_nothing_while_the_service_is_killed_again_and_again(
    restarted: Restarted, client: Client, data_file: Path
) -> None:
    job = client.submit(job_document(client.upload(data_file).id))
    lease = restarted.claim()
    watching = Watching(client, job.id)
    for number in range(2):
        watching.until(3 + 2 * number)  # queued, leased and running come first
        restarted.log(lease, f"before death {number}")
        restarted.kill()
        restarted.log(lease, f"while dead {number}")
        restarted.start()
    restarted.succeed(lease, b"weights")
    watching.end()
    assert watching.error is None
    assert watching.seen == list(range(1, 9))
    assert client.wait(job.id).status == "succeeded"


def test_watching_leaves_a_service_that_is_frozen(
    restarted: Restarted, client: Client, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-open connection: nothing comes, and nobody says that it is over."""
    monkeypatch.setattr("stillhouse.synchronous.event_stream.SILENCE_SECONDS", 1.0)
    job = client.submit(job_document(client.upload(data_file).id))
    lease = restarted.claim()
    watching = Watching(client, job.id)
    watching.until(3)
    restarted.freeze()
    restarted.log(lease, "while frozen")
    restarted.restart()
    watching.until(4)
    restarted.succeed(lease, b"weights")
    watching.end()
    assert (watching.error, watching.seen) == (None, [1, 2, 3, 4, 5])


def test_watching_ends_when_the_service_stays_away(restarted: Restarted, client: Client, data_file: Path) -> None:
    job = client.submit(job_document(client.upload(data_file).id))
    with Client(restarted.url, restarted.key, outage_seconds=0.5) as impatient:
        watching = Watching(impatient, job.id)
        watching.until(1)
        restarted.kill()
        watching.end()
    assert isinstance(watching.error, Unreachable)


def test_what_can_not_pass_by_itself_is_told_at_once(restarted: Restarted, client: Client) -> None:
    for watcher, status in ((client, 404), (Client(restarted.url, "still_wrong"), 401)):
        with pytest.raises(ServiceError) as refused:
            list(watcher.watch("job_none"))
        assert refused.value.status == status


def test_transfers_go_on_when_the_service_was_restarted(
    restarted: Restarted, client: Client, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_files, "PART_BYTES", 2000)
    restarts = iter([restarted.kill, lambda: threading.Timer(0.5, restarted.start).start()])

    def disturb(done: int, total: int) -> None:
        if done > total // 3:
            for act in restarts:
                act()

    file = client.upload(data_file, progress=disturb)
    assert file.sha256 == hashlib.sha256(data_file.read_bytes()).hexdigest()
    job = client.submit(job_document(file.id))
    restarted.succeed(restarted.claim(), CONTENT)
    restarts = iter([restarted.kill, lambda: threading.Timer(0.5, restarted.start).start()])
    path = client.download(job.id, "model.safetensors", tmp_path / "out", progress=disturb)
    assert path.read_bytes() == CONTENT
