"""`stillhouse up` as a process: it answers, minds its worker, runs jobs and leaves nothing behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from stillhouse import Client, connection
from stillhouse.cli.embedded import address
from tests.servers.output import READ_SECONDS, first_line
from tests.stillhouse.conftest import job_document
from tests.stillhouse.process import STILLHOUSE, environment, running


def worker_of(process: subprocess.Popen[str]) -> psutil.Process:
    [worker] = psutil.Process(process.pid).children()
    return worker


def test_it_runs_a_job_and_stops_with_all_its_children(tmp_path: Path, data_file: Path) -> None:
    data_dir = tmp_path / "data"
    with running(environment(data_dir)) as (process, hello):
        assert connection.read(data_dir) == connection.Connection(url=hello["url"], key=hello["key"])
        with Client(hello["url"], hello["key"]) as client:
            job = client.submit(job_document(client.upload(data_file).id, export=["safetensors"]))
            ended = client.wait(job.id, timeout_seconds=600)
            assert ended.status == "succeeded", ended.error
            path = client.download(job.id, "model.safetensors", tmp_path / "out")
            assert path.stat().st_size > 0
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 1
        process.terminate()
        assert process.wait(600) == 0
        _, alive = psutil.wait_procs(children, timeout=200)
        assert not alive


def test_a_worker_that_dies_is_started_again_and_ctrl_c_stops_everything(tmp_path: Path, data_file: Path) -> None:
    with running(environment(tmp_path / "data")) as (process, hello):
        worker_of(process).kill()
        said = first_line(process.stderr, lambda line: "it is restarted" in line)
        assert "the worker ended with code -9" in said
        with Client(hello["url"], hello["key"]) as client:
            job = client.submit(job_document(client.upload(data_file).id, export=["safetensors"]))
            assert client.wait(job.id, timeout_seconds=600).status == "succeeded"
        process.send_signal(signal.SIGINT)
        assert process.wait(600) == 0


def test_it_keeps_its_key_over_a_restart(tmp_path: Path) -> None:
    keys = []
    for _ in range(2):
        with running(environment(tmp_path)) as (process, hello):
            with Client(hello["url"], hello["key"]) as client:
                assert list(client.jobs()) == []
            keys.append(hello["key"])
            process.terminate()
            process.wait(600)
    assert keys[0] == keys[1]


def refused(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = (*STILLHOUSE, "up", *words)
    return subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), timeout=600)


def test_it_will_not_listen_on_the_network_without_a_secret(tmp_path: Path) -> None:
    result = refused(tmp_path, "--host", "0.0.0.0", "--port", "0")
    assert result.returncode == 2
    assert "secret must be set" in result.stderr


def test_the_api_alone_will_not_run_on_an_old_schema(tmp_path: Path) -> None:
    command = (*STILLHOUSE, "serve", "--port", "0")
    env = environment(tmp_path)
    result = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert result.returncode == 1
    assert "stillhouse migrate" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_api_alone_runs_without_a_worker(tmp_path: Path) -> None:
    env = environment(tmp_path)
    subprocess.run((*STILLHOUSE, "migrate", "--json"), check=True, env=env, capture_output=True, timeout=READ_SECONDS)
    command = (*STILLHOUSE, "serve", "--port", "0", "--json")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    url = json.loads(first_line(process.stdout))["url"]
    with Client(url, "still_none") as client:
        assert client.health()["status"] == "ok"
    assert psutil.Process(process.pid).children() == []
    process.terminate()
    process.communicate(timeout=600)


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = refused(tmp_path, "--port", str(port))
    assert result.returncode == 1
    assert f"port {port}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
    ],
)
def test_clients_get_an_address_that_they_can_use(host: str, url: str) -> None:
    assert address(host, 80) == url
