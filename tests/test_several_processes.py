"""A job on several processes, or machines, through a running service; one of them is killed on the way."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from stillhouse import Client, Job
from tests import kinds
from tests.servers.output import first_line
from tests.servers.ports import reserved_port
from tests.stillhouse.process import STILLHOUSE, environment, running

LONG = {"losses": [{"kind": "cross-entropy"}], "epochs": 300, "batch_size": 4, "checkpoint": {"every_steps": 100}}
QUICKLY = {"STILLHOUSE_RETRY_BACKOFF_SECONDS": "0.1"}
SECONDS = 900
pytestmark = pytest.mark.long


def ranks_of(service: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that train, in their order."""
    found = psutil.Process(service.pid).children(recursive=True)
    return sorted((one for one in found if "spawn_main" in " ".join(one.cmdline())), key=lambda one: one.pid)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    kinds.write_data(tmp_path)
    env = environment(tmp_path / "data", **QUICKLY)
    with running(env) as (process, hello), Client(hello["url"], hello["key"]) as client:
        yield process, client


def until_saved(client: Client, job_id: str) -> Job:
    for _ in range(SECONDS * 20):
        job = client.job(job_id)
        if job.is_final or client.checkpoints(job_id):
            return job
        time.sleep(0.05)
    raise TimeoutError


@pytest.mark.timeout(SECONDS)
def test_a_killed_process_ends_the_attempt_and_the_next_goes_on_from_the_checkpoint(
    service: tuple[subprocess.Popen[str], Client], tmp_path: Path
) -> None:
    process, client = service
    file = client.upload(tmp_path / "classes.npz").id
    document = kinds.small_job(LONG, {"architecture": "mlp", "hidden": [8]}, data={"train": file})
    document |= {"resources": {"processes": 2, "queue": "cpu"}, "evaluation": {"every_epochs": 100}}
    job_id = client.submit(document).id
    begun = until_saved(client, job_id)
    assert begun.status == "running", begun.error
    first, second = ranks_of(process)
    second.kill()
    job = client.wait(job_id, timeout_seconds=SECONDS)
    assert job.status == "succeeded", job.error
    assert job.attempt == 2
    assert not first.is_running()
    said = " ".join(event.model_dump_json() for event in client.events(job_id))
    assert "process 1 of the job was killed by SIGKILL" in said
    report = json.loads(client.download(job_id, "report.json", tmp_path).read_text())
    assert report["student"]["accuracy"] > 0.5


@pytest.mark.timeout(2 * SECONDS)
def test_a_killed_machine_ends_the_attempt_and_the_next_goes_on_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    kinds.write_data(tmp_path)
    with ExitStack() as stack:
        address = f"127.0.0.1:{stack.enter_context(reserved_port())}"
        machines = {"STILLHOUSE_WORKER_NODES": "2", "STILLHOUSE_WORKER_RENDEZVOUS": address}
        env = environment(tmp_path / "data", **QUICKLY, **machines)
        other = stack.enter_context(node(address, env))
        _, hello = stack.enter_context(running(env))
        client = stack.enter_context(Client(hello["url"], hello["key"]))
        file = client.upload(tmp_path / "classes.npz").id
        document = kinds.small_job(LONG, {"architecture": "mlp", "hidden": [8]}, data={"train": file})
        document |= {"resources": {"nodes": 2, "queue": "cpu"}, "evaluation": {"every_epochs": 100}}
        job_id = client.submit(document).id
        assert until_saved(client, job_id).status == "running"
        stack.enter_context(node(address, env))
        end(other)
        job = client.wait(job_id, timeout_seconds=SECONDS)
        assert job.status == "succeeded", job.error
        assert job.attempt == 2


@contextmanager
def node(address: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Another machine that has begun to wait for jobs."""
    process = subprocess.Popen([*STILLHOUSE, "node", address], text=True, env=env, stdout=subprocess.PIPE)
    try:
        assert "waiting for jobs" in first_line(process.stdout)
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[str]) -> None:
    """With all that it has started."""
    if process.poll() is None:
        whole = psutil.Process(process.pid)
        for one in [*whole.children(recursive=True), whole]:
            one.kill()
        process.wait()
