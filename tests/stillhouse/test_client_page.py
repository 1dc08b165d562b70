"""The examples of docs/client.md run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stillhouse import Client
from tests.stillhouse.conftest import LiveService

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "client.md").read_text(), re.S | re.M)


@pytest.mark.parametrize("example", EXAMPLES, ids=["blocking", "asynchronous"])
def test_an_example_trains_and_downloads(service: LiveService, client: Client, data_file: Path, example: str) -> None:
    folder, ended = data_file.parent, threading.Event()

    def work() -> None:
        while not ended.wait(0.05):
            for job in client.jobs(status="queued"):
                service.succeed(service.start(job.id), {"config.json": b"{}"})
                return

    worker = threading.Thread(target=work)
    worker.start()
    env = {"STILLHOUSE_URL": service.url, "STILLHOUSE_API_KEY": service.key, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [sys.executable, "-c", example], cwd=folder, env=env, capture_output=True, text=True, check=False
        )
    finally:
        ended.set()
        worker.join()
    assert done.returncode == 0, done.stderr
    assert (folder / "student" / "config.json").read_bytes() == b"{}"
    assert "succeeded" in done.stdout
