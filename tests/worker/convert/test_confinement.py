"""What a confined process can still do."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ATTEMPTS = """
import json, os, resource, socket, sys
from pathlib import Path
from worker.convert.confinement import keep_to, leave_network, limit

def outcome(deed):
    try:
        return deed() or "done"
    except BaseException as error:
        return type(error).__name__

folder, port, outside = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
parts = {"network": leave_network()}
limit(memory=64 << 20, file_bytes=1 << 20, seconds=60)
parts["files"] = keep_to(folder, [Path(sys.prefix), Path(sys.base_prefix)])
deeds = {
    "connect": lambda: socket.create_connection(("127.0.0.1", port), 5).close(),
    "read outside": lambda: outside.read_text() and None,
    "read environment of parent": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes() and None,
    "write outside": lambda: outside.with_name("new").write_text("x") and None,
    "write inside": lambda: (folder / "new").write_text("x") and None,
    "write much": lambda: (folder / "much").write_bytes(bytes(2 << 20)) and None,
    "take memory": lambda: bytes(128 << 20) and None,
    "grow the limit": lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)),
}
print(json.dumps({**parts, **{name: outcome(deed) for name, deed in deeds.items()}}))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each attempt, in a process that was confined."""
    folder, outside = tmp_path_factory.mktemp("inside"), tmp_path_factory.mktemp("outside") / "file"
    outside.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", ATTEMPTS, str(folder), str(server.getsockname()[1]), str(outside)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_has_the_room_that_it_was_given_and_no_more(outcomes: dict[str, Any]) -> None:
    assert outcomes["write inside"] == "done"
    assert (outcomes["write much"], outcomes["take memory"]) == ("OSError", "MemoryError")
    if outcomes["network"]:  # root keeps its power over limits unless the kernel lets it into a namespace of its own
        assert outcomes["grow the limit"] == "ValueError"


def test_it_reaches_nobody(outcomes: dict[str, Any]) -> None:
    if not outcomes["network"]:
        pytest.skip("the kernel gives no network namespaces to ordinary processes")
    assert outcomes["connect"] in ("OSError", "PermissionError")  # nobody there, or not allowed to ask


def test_it_sees_no_other_files(outcomes: dict[str, Any]) -> None:
    if not outcomes["files"]:
        pytest.skip("the kernel has no Landlock")
    refused = ("read outside", "read environment of parent", "write outside")
    assert [outcomes[deed] for deed in refused] == ["PermissionError"] * 3
