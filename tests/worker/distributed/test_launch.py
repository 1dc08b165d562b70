"""A job in several processes: their reports and results, and that none of them is left."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from tests.worker.distributed.ranks_stage import die_while_saving, fail_in_the_second
from tests.worker.training.builders import Played, stage
from worker.distributed import launch
from worker.distributed.nodes import RendezvousSpec
from worker.limits import TIMED_OUT, Note
from worker.protocol import CheckpointSaved, Failed, PhaseBegan, Report, StepProgress, Stopped
from worker.trainer.perform import perform
from worker.training.checkpoint import read_record, saved

TOGETHER = {"processes": 2, "queue": "cpu"}
LONG = {"epochs": 100_000, "checkpoint": {"every_seconds": None}}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every process that a test has started has ended with it, but for multiprocessing's tracker."""
    yield
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def perform_here(
    folder: Path, stop: Callable[[list[Report]], bool] = lambda reports: False, **changes: object
) -> Played:
    """Run a job on two processes; `stop` decides by its reports whether it shall stop."""
    reports: list[Report] = []
    assignment = stage(folder, **{"resources": TOGETHER, **changes})
    return Played(reports, perform(assignment, folder, reports.append, lambda: stop(reports)))


def test_they_stop_together_after_one_checkpoint(tmp_path: Path) -> None:
    def begun(reports: list[Report]) -> bool:
        return any(isinstance(report, StepProgress) for report in reports)

    played = perform_here(tmp_path, begun, recipe=LONG, resources={**TOGETHER, "sharding": "fsdp"})
    [saved] = played.of(CheckpointSaved)
    assert played.word == Stopped(step=saved.step)
    assert (tmp_path / saved.path).is_dir()
    assert played.of(PhaseBegan) == [PhaseBegan(phase="training")]


def test_an_error_of_all_is_reported_once_as_the_job_s(tmp_path: Path) -> None:
    assignment = stage(tmp_path, teacher=True, resources=TOGETHER)
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"no tensors")
    reports: list[Report] = []
    word = perform(assignment, tmp_path, reports.append, lambda: False)
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("user", "invalid_teacher", "teacher.model")
    assert reports == []


def test_an_error_of_one_is_the_job_s_and_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_run_rank", fail_in_the_second)
    word = perform_here(tmp_path).word
    assert word == Failed(fault="capacity", code="full_1", message="no space")


def test_a_death_while_saving_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_run_rank", die_while_saving)
    every = {**LONG, "checkpoint": {"every_steps": 2}}
    played = perform_here(tmp_path, recipe=every, resources={**TOGETHER, "sharding": "fsdp"})
    assert played.word == Failed(
        fault="system", code="trainer_killed", message="process 1 of the job was killed by SIGKILL"
    )
    [whole] = saved(tmp_path / "checkpoints")
    assert read_record(whole).step == 2


@pytest.mark.parametrize(
    ("status", "fault"), [(-signal.SIGABRT, "user"), (TIMED_OUT, "user"), (-signal.SIGKILL, "system")]
)
def test_the_death_of_a_rank_over_its_input_is_explained_by_its_note(tmp_path: Path, status: int, fault: str) -> None:
    note = Note(name="data.train", code="invalid_data", param="data.train", bytes=1, seconds=60, fault="user")
    (tmp_path / "reading-12.json").write_text(note.model_dump_json())
    failure = ProcessFailure(local_rank=1, pid=12, exitcode=status, error_file="")
    place = RendezvousSpec("run", "127.0.0.1:1", "127.0.0.1")
    cause = launch._explain(ChildFailedError("rank", {1: failure}), place, tmp_path, killed_for_memory=False)
    assert cause.fault == fault
    assert (cause.param == "data.train") == (fault == "user")
