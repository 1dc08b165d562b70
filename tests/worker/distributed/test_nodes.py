"""A job on several machines, simulated by processes of this one."""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.servers.output import first_line
from tests.servers.ports import reserved_port
from tests.worker.distributed.ranks_stage import report_every_step, run_rank_reporting
from tests.worker.training.builders import Played, play, stage
from worker.distributed import launch, nodes
from worker.distributed.nodes import join_job, rendezvous
from worker.errors import SystemFault
from worker.protocol import Assignment, Failed, Finished, Metrics, Report
from worker.students.weights import WEIGHTS
from worker.trainer.perform import perform
from worker.trainer.run import run
from worker.training.checkpoint import read_record, saved

VIT = {"architecture": "vit", "patch_size": 3, "width": 8, "depth": 1, "heads": 2}
JOB: dict[str, Any] = {
    **{"student": VIT, "teacher": True, "teacher_cache": {"store": "off"}},
    "recipe": {"batch_size": 13, "accumulate": 2, "checkpoint": {"every_steps": 4}},
}
TWO = {"nodes": 2, "queue": "cpu"}
JOIN = (
    "import sys; from functools import partial; "
    "from worker.distributed import launch; from worker.trainer.node import serve; "
    "launch.JOIN_SECONDS = float(sys.argv[2]); serve(sys.argv[1], partial(print, flush=True))"
)

FULL = (
    "from worker.distributed import launch; from tests.worker.distributed.ranks_stage import full; "
    "launch._run_rank = full; "
)


PATIENT = 240.0
"""Seconds that machines wait for each other here, where all of them share a few busy cores."""


@pytest.fixture
def address() -> Iterator[str]:
    with reserved_port() as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def _on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(launch, "JOIN_SECONDS", PATIENT)
    monkeypatch.setattr(nodes, "TIMEOUT_SECONDS", PATIENT)


@contextmanager
def node(address: str, first: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another machine that has begun to wait for jobs, after running some code."""
    command = [sys.executable, "-c", first + JOIN, address, str(PATIENT)]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        assert "waiting for jobs" in first_line(process.stdout)
        yield process
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            one.kill()


def met(folder: Path, address: str | None, **changes: Any) -> Assignment:
    return stage(folder, **{**JOB, "resources": TWO, **changes}).model_copy(update={"rendezvous": address})


def performed(assignment: Assignment, folder: Path) -> Played:
    reports: list[Report] = []
    return Played(reports, perform(assignment, folder, reports.append, lambda: False))


def curves(played: Played) -> dict[tuple[int, str], float]:
    values = {(report.step, name): value for report in played.of(Metrics) for name, value in report.values.items()}
    return {key: value for key, value in values.items() if key[1].startswith(("train/loss", "train/grad", "eval/"))}


@pytest.mark.parametrize("sharding", ["none", "fsdp"])
def test_two_machines_take_the_steps_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, sharding: str
) -> None:
    report_every_step(monkeypatch)
    monkeypatch.setattr(launch, "_run_rank", run_rank_reporting)
    alone = play(stage(tmp_path / "alone", **JOB), tmp_path / "alone")
    folder = tmp_path / "head"
    assignment = met(folder, address, resources={**TWO, "sharding": sharding})
    with node(address):
        together = performed(assignment, folder)
        earlier = saved(folder / "checkpoints")[-1]
        again = performed(assignment.model_copy(update={"resume": f"checkpoints/{earlier.name}"}), folder)
    assert isinstance(together.word, Finished), together.word
    assert isinstance(again.word, Finished), again.word
    assert curves(together) == pytest.approx(curves(alone), rel=1e-4, abs=1e-6)
    assert len(read_record(earlier).parts) == (1 if sharding == "fsdp" else 0)
    ours, theirs = (load_file(tmp_path / name / "bundle" / WEIGHTS) for name in ("head", "alone"))
    assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_an_error_on_another_machine_is_the_job_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """The head's own failure is only that it lost the other machine."""
    folder = tmp_path / "head"
    with node(address, FULL):
        word = performed(met(folder, address), folder).word
    assert word == Failed(fault="capacity", code="disk_full", message="the worker's disk is full")


def test_a_machine_that_does_not_join_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(launch, "JOIN_SECONDS", 1.0)
    word = performed(met(tmp_path, address), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("capacity", "too_few_nodes", "resources.nodes")


def test_a_worker_without_an_address_for_other_machines_is_an_error(tmp_path: Path) -> None:
    word = performed(met(tmp_path, None), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code) == ("system", "no_rendezvous")


def test_no_machine_joins_if_there_is_no_job_or_all_seats_are_taken(tmp_path: Path, address: str) -> None:
    assert join_job(address, set()) is None
    with rendezvous(met(tmp_path, address)) as (place, _):
        joined: set[str] = set()
        found = join_job(address, joined)
        assert found is not None
        assert (found.place.run, found.place.nodes, found.place.seat) == (place.run, 2, 1)
        assert join_job(address, joined) is None
        assert join_job(address, set()) is None


def test_the_store_of_a_job_on_one_machine_listens_on_loopback_alone(tmp_path: Path) -> None:
    with rendezvous(stage(tmp_path, **JOB, resources={"processes": 2})) as (place, _):
        ours = [each.laddr for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN]
    assert [at.ip for at in ours if f"{at.ip}:{at.port}" == place.endpoint] == ["127.0.0.1"]


def test_an_address_with_another_server_or_that_can_not_be_resolved_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.distributed.nodes.REPLY_SECONDS", 0.5)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as other:  # it hangs up
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(SystemFault, match="does not answer"):
            join_job(f"127.0.0.1:{other.server_address[1]}", set())
        other.shutdown()
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(OSError, match="unknown"):
        join_job("nowhere:1", set())


def unknown(*_: object, **__: object) -> None:
    raise socket.gaierror(-2, "unknown")


def test_only_one_job_at_a_time_is_offered_at_an_address(tmp_path: Path, address: str) -> None:
    assignment = met(tmp_path, address)
    with rendezvous(assignment), pytest.raises(SystemFault, match="can't listen"), rendezvous(assignment):
        pass


def test_a_machine_that_joins_when_the_others_have_given_up_leaves_the_reason_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(launch, "JOIN_SECONDS", 1.0)
    assignment = met(tmp_path, address)
    with rendezvous(assignment) as (place, store):
        head = launch._launch(run, assignment, tmp_path, lambda _: None, lambda: False, place)
        helper = join_job(address, set())
        assert helper is not None
        late = launch.assist(run, helper, tmp_path / "late")
        assert not store.check([nodes.FAILURE])
    assert isinstance(head, Failed)
    assert head.code == "too_few_nodes"
    assert late is not None
    assert late.code == "rank_lost"
