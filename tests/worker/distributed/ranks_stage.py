"""Processes that run jobs together: started once, because torch takes seconds to import."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributed import TCPStore
from torch.multiprocessing import spawn

from tests.worker.training.builders import NEVER, Played, play, shorten_bundles
from worker.distributed import launch
from worker.distributed.group import join, leave
from worker.distributed.launch import RankArgs
from worker.distributed.ranks import DataParallel
from worker.distributed.shards import FullyShardedDataParallel
from worker.machine import make_deterministic
from worker.protocol import REPORTS, Assignment, Failed
from worker.training import checkpoint
from worker.training import monitor as watch

SIZE = 2


class Act(NamedTuple):
    """A job to run to the end, or for so many steps."""

    assignment: Assignment
    folder: Path
    steps: int = NEVER


def play_together(acts: dict[str, Act], size: int = SIZE) -> dict[str, Played]:
    """Run jobs on several ranks; returns the reports of the first rank for each."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    folder = next(iter(acts.values())).folder
    spawn(_play_all, (acts, str(store.port), folder / "played", size), nprocs=size)
    written = json.loads((folder / "played").read_text())
    runs = {name: [REPORTS.validate_python(report) for report in run] for name, run in written.items()}
    return {name: Played(reports, word) for name, (*reports, word) in runs.items()}


def _play_all(number: int, acts: dict[str, Act], port: str, out: Path, size: int) -> None:
    where: dict[str, Any] = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    where |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}  # so that the first rank opens no other store there
    os.environ |= {**where, "RANK": str(number), "WORLD_SIZE": str(size)}
    torch.set_num_threads(1)
    make_deterministic()
    report_every_step(pytest.MonkeyPatch())
    join(cpu := torch.device("cpu"))
    played = {}
    for name, act in acts.items():
        sharded = act.assignment.spec.resources.sharding == "fsdp"
        played[name] = play(*act, FullyShardedDataParallel(cpu) if sharded else DataParallel())
    if number == 0:
        reports = {name: [*run.reports, run.word] for name, run in played.items()}
        dumped = {name: [each.model_dump(mode="json") for each in run] for name, run in reports.items()}
        out.write_text(json.dumps(dumped))
    leave()


def fail_in_the_second(args: RankArgs) -> None:
    """Main function of a rank of which only the second fails at once; the first fails too late."""
    number = int(os.environ["RANK"])
    if number == 0:
        time.sleep(30)
    word = Failed(fault="capacity", code=f"full_{number}", message="no space")
    args.reports[number].send_bytes(word.model_dump_json().encode())
    os._exit(1)


def die_while_saving(args: RankArgs) -> None:
    """Main function of a rank of which the second is killed with half of its second checkpoint on the disk."""
    write, times = checkpoint.save_file, iter(range(10))

    def killed(tensors: dict[str, Tensor], path: Path) -> None:
        write(tensors, path)
        if next(times) == 1 and os.environ["RANK"] == "1":
            path.write_bytes(path.read_bytes()[:100])
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.save_file = killed
    launch._run_rank(args)


def report_every_step(patch: pytest.MonkeyPatch) -> None:
    """Report metrics after each step in this process, and skip work that takes longer than the steps."""
    patch.setattr(watch, "SECONDS_BETWEEN_REPORTS", float("-inf"))
    shorten_bundles(patch)


def run_rank_reporting(args: RankArgs) -> None:
    """Main function of a rank that reports after each step."""
    report_every_step(pytest.MonkeyPatch())
    launch._run_rank(args)


def full(args: RankArgs) -> None:
    """Main function of a rank that joins the others and has no disk space for the files."""
    launch.broadcast_files = _disk_full
    launch._run_rank(args)


def _disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no space")
