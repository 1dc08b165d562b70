"""The trainer as a process, spoken to over its pipes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.worker.training.builders import play, stage, weights
from worker.protocol import (
    REPORTS,
    Assignment,
    CheckpointSaved,
    Failed,
    Finished,
    Message,
    Ready,
    Report,
    Start,
    StepProgress,
    Stop,
    Stopped,
)
from worker.training import checkpoint

COMMAND = [sys.executable, "-P", "-m", "worker.trainer", "--spare"]
LONG = {"epochs": 100_000}


class Trainer:
    """The supervisor's end of the pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def say(self, message: Message) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(message.model_dump_json().encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> Report | None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return REPORTS.validate_json(line) if line else None

    def hear_until(self, kind: type[Message]) -> list[Report]:
        heard: list[Report] = []
        while report := self.hear():
            heard.append(report)
            if isinstance(report, kind):
                break
        return heard

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


@contextmanager
def trainer(*arguments: str) -> Iterator[Trainer]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            yield Trainer(process)
        finally:
            process.kill()


def deliver(assignment: Assignment, folder: Path) -> Start:
    (folder / "assignment.json").write_text(assignment.model_dump_json())
    return Start(folder=str(folder))


def test_a_spare_gets_ready_does_one_job_and_leaves(tmp_path: Path) -> None:
    with trainer("--parent", str(os.getpid())) as process:
        assert process.hear() == Ready()
        process.say(deliver(stage(tmp_path), tmp_path))
        heard = process.hear_until(Finished)
        assert isinstance(heard[-1], Finished)
        assert process.hear() is None
        assert process.process.wait() == 0
    left = {"assignment.json", "data.npz", "binary.npz", "teacher", "bundle", "checkpoints"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_a_stop_is_heeded_after_a_checkpoint(tmp_path: Path) -> None:
    with trainer() as process:
        process.hear()
        process.say(deliver(stage(tmp_path, recipe=LONG), tmp_path))
        process.hear_until(StepProgress)
        process.say(Stop())
        heard = process.hear_until(Stopped)
        assert isinstance(heard[-1], Stopped)
        saved = [report for report in heard if isinstance(report, CheckpointSaved)]
        assert saved[-1].step == heard[-1].step
        assert (tmp_path / saved[-1].path / "state.safetensors").exists()
        assert process.process.wait() == 0


def test_a_killed_trainer_leaves_a_checkpoint_that_ends_in_the_same_bits(tmp_path: Path) -> None:
    recipe = {"epochs": 150, "optimizer": {"kind": "adamp"}, "checkpoint": {"every_steps": 7}}
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    play(stage(straight, recipe=recipe, teacher=True), straight)
    assignment = stage(killed, recipe=recipe, teacher=True)
    with trainer() as process:
        process.hear()
        process.say(deliver(assignment, killed))
        process.hear_until(CheckpointSaved)
        process.process.kill()
    newest = checkpoint.saved(killed / "checkpoints")[0]
    checkpoint.read_record(newest)
    resumed = assignment.model_copy(update={"resume": str(newest.relative_to(killed))})
    assert isinstance(play(resumed, killed).word, Finished)
    assert weights(killed) == weights(straight)


def test_a_bad_job_is_a_last_word_and_no_crash(tmp_path: Path) -> None:
    with trainer() as process:
        process.hear()
        process.say(Start(folder=str(tmp_path)))
        (word,) = process.hear_until(Failed)
        assert isinstance(word, Failed)
        assert word.code == "invalid_assignment"
        assert process.process.wait() == 0


def test_a_spare_whose_pipe_closes_leaves_quietly() -> None:
    with trainer() as process:
        process.hear()
        process.hang_up()
        assert process.process.wait() == 0


def test_a_trainer_whose_pipe_closes_at_work_leaves_at_once(tmp_path: Path) -> None:
    with trainer() as process:
        process.hear()
        process.say(deliver(stage(tmp_path, recipe=LONG), tmp_path))
        process.hear_until(StepProgress)
        process.hang_up()
        assert process.process.wait() == 1


def test_a_termination_signal_kills_at_once(tmp_path: Path) -> None:
    with trainer() as process:
        process.hear()
        process.say(deliver(stage(tmp_path, recipe=LONG), tmp_path))
        process.hear_until(StepProgress)
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait() == -signal.SIGTERM


def test_a_trainer_of_another_parent_leaves_before_it_is_ready() -> None:
    with trainer("--parent", "1") as process:
        assert process.hear() is None
        assert process.process.wait() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal on a parent's death is Linux's own")
def test_a_trainer_dies_with_its_parent() -> None:
    script = (
        "import os, subprocess, sys, time\n"
        f"child = subprocess.Popen({COMMAND!r} + ['--parent', str(os.getpid())], stdin=0, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            assert select.select([child], [], [], 30)[0], "the child outlived its parent"
        finally:
            os.close(child)


def test_what_libraries_print_stays_out_of_the_protocol() -> None:
    code = (
        "from worker.trainer.service import Channel\n"
        "from worker.protocol import Ready\n"
        "import os\n"
        "channel = Channel()\n"
        "print('stray', flush=True)\n"
        "os.write(1, b'stray too')\n"
        "channel.send(Ready())\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert found.stdout == b'{"type":"ready"}\n'
    assert b"stray" in found.stderr
    assert b"stray too" in found.stderr


def test_a_spare_does_not_touch_cuda() -> None:
    code = (
        "import torch\nfrom worker.trainer.warm_up import warm_up\nwarm_up()\nassert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
