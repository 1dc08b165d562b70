"""How the process of a rank ends."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import atexit, os, sys, torch
from torch.distributed import TCPStore
from worker.distributed.group import join, leave

atexit.register(print, "torn down")
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "RANK": "0", "WORLD_SIZE": "1"}
os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": "lo"}
join(torch.device("cpu"))
leave()
print("left", torch.distributed.is_initialized())
"""


def test_a_rank_that_left_ends_without_tearing_down_the_interpreter() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "left False\n"
