"""Step inputs that are prepared ahead of their steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.training.builders import finished, require_same_bits, stage, weights
from worker.data.batches import Batch, whole_split
from worker.methods import supervised
from worker.outputs import TeacherSignal
from worker.protocol import Assignment, CachePlace
from worker.training import job_inputs, loop
from worker.training import stages as stages
from worker.training.step_inputs import CudaSideStream, Prefetcher, StepInputs

KD = [{"kind": "cross-entropy"}, {"kind": "kd"}]
TWO = [{"model": "teacher", "name": "one"}, {"model": "teacher", "name": "two", "weight": 2.0}]
HINT = {"kind": "hint", "pairs": [{"teacher": "2", "student": "2"}]}
CASES: dict[str, dict[str, Any]] = {
    "one": {"teacher": True},
    "parts": {"teacher": True, "recipe": {"losses": KD, "accumulate": 3}},
    "entropy": {"teachers": TWO, "teacher_weighting": "entropy", "recipe": {"losses": KD}},
    "inside": {"teacher": True, "recipe": {"losses": [*KD, HINT]}},
    "stages": {"teacher": True, "recipe": {"losses": KD, "stages": [{"losses": [HINT], "epochs": 1}]}},
    "inside, in parts": {"teacher": True, "recipe": {"losses": [*KD, HINT], "accumulate": 2}},
    "alone": {"data": {"train": "data", "augment": [{"kind": "flip"}]}},
}


class Beside:
    """A side stream without a device: inputs are ready at once."""

    def __init__(self) -> None:
        self.begun = 0
        self.started: list[StepInputs] = []
        self.taken: list[StepInputs] = []

    def begin(self) -> None:
        self.begun += 1

    def start(self, make: Callable[[], StepInputs]) -> StepInputs:
        self.started.append(make())
        return self.started[-1]

    def hand_over(self, step_inputs: StepInputs) -> None:
        assert step_inputs is self.started[-1]
        self.taken.append(step_inputs)


def beside(monkeypatch: pytest.MonkeyPatch) -> Beside:
    """The lane of all jobs from here on."""
    side_stream = Beside()
    monkeypatch.setattr(stages, "choose_side_stream", lambda device: side_stream)
    return side_stream


def staged(folder: Path, case: str) -> Assignment:
    assignment = stage(folder, **CASES[case])
    return assignment.model_copy(update={"teacher_cache": CachePlace(folder=str(folder / "kept"))})


@pytest.mark.parametrize("case", CASES)
def test_steps_are_the_same_bits_whether_prepared_ahead_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    finished(tmp_path / "plain", staged(tmp_path / "plain", case))
    side_stream = beside(monkeypatch)
    finished(tmp_path / "ahead", staged(tmp_path / "ahead", case))
    assert weights(tmp_path / "ahead") == weights(tmp_path / "plain")
    assert side_stream.begun == (2 if case == "stages" else 1)
    assert (
        len(side_stream.started) == len(side_stream.taken) == (12 if case == "stages" else 9)
    )  # none beyond the end of a stage
    assert all((step_inputs.signals is None) == (case == "inside, in parts") for step_inputs in side_stream.taken)


@pytest.mark.parametrize("augment", [[], [{"kind": "flip"}, {"kind": "mixup"}]], ids=["plain", "mixed"])
def test_samples_on_the_host_teach_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: list[dict[str, Any]]
) -> None:
    changes: dict[str, Any] = {"data": {"train": "data", "augment": augment}}
    finished(tmp_path / "near", stage(tmp_path / "near", teacher=True, **changes))
    monkeypatch.setattr(job_inputs, "sample_memory", lambda device: 0.0)
    finished(tmp_path / "far", stage(tmp_path / "far", teacher=True, **changes))
    assert weights(tmp_path / "near") == weights(tmp_path / "far")


def test_a_resumed_job_takes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side_stream = beside(monkeypatch)
    require_same_bits(lambda folder: staged(folder, "entropy"), tmp_path)
    assert len(side_stream.started) == len(side_stream.taken) + 1  # the one that was prepared when the job was stopped


def test_a_lesson_is_begun_once_the_step_before_it_is_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    side_stream, real = beside(monkeypatch), loop.take_step
    start = side_stream.start

    def starting(make: Callable[[], StepInputs]) -> StepInputs:
        order.append("lesson")
        return start(make)

    def taking(*arguments: Any) -> dict[str, torch.Tensor]:
        order.append("step")
        return real(*arguments)

    monkeypatch.setattr(side_stream, "start", starting)
    monkeypatch.setattr(supervised, "take_step", taking)
    finished(tmp_path, stage(tmp_path, teacher=True, recipe={"epochs": 1}))
    assert order == ["lesson", "step", "lesson", "step", "lesson", "step"]


def lesson_of(batch: Batch) -> StepInputs:
    signal = TeacherSignal(batch.inputs["images"] + 1.0, torch.ones(2, device=batch.targets.device))
    return StepInputs(batch, [batch], [{"teacher": signal}])


def test_step_inputs_list_all_their_tensors() -> None:
    step_inputs = lesson_of(whole_split({"images": torch.zeros(4, 2)}, torch.zeros(4, dtype=torch.int64)))
    assert step_inputs.signals is not None
    signal, batch = step_inputs.signals[0]["teacher"], step_inputs.batch
    wanted = (batch.inputs["images"], batch.targets, batch.index, signal.logits, signal.head)
    assert [id(tensor) for tensor in step_inputs.tensors()] == [id(tensor) for tensor in wanted]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_side_stream_hands_over_what_is_finished() -> None:
    device = torch.device("cuda")
    made = torch.arange(1 << 22, device=device).float()

    def make(step: int) -> StepInputs:
        rows = (made.view(-1, 2) * step).sin().cos()  # takes a while
        return lesson_of(whole_split({"images": rows}, torch.zeros(len(rows), dtype=torch.int64, device=device)))

    prefetcher = Prefetcher(make, 20, CudaSideStream(device))
    for step in range(20):
        step_inputs = prefetcher.at(step)
        assert step_inputs.signals is not None
        found = step_inputs.signals[0]["teacher"].logits.clone()
        prefetcher.prepare(step + 1)
        torch.testing.assert_close(found, (made.view(-1, 2) * step).sin().cos() + 1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_jobs_on_a_gpu_take_the_same_steps_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path / "ahead", staged(tmp_path / "ahead", "one"))
    monkeypatch.setattr(stages, "choose_side_stream", lambda device: None)
    finished(tmp_path / "plain", staged(tmp_path / "plain", "one"))
    assert weights(tmp_path / "ahead") == weights(tmp_path / "plain")
