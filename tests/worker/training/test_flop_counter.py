"""Counted operations of training, and their share of the machine's rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.training.builders import CLASSES, SIDE, Played, play, stage
from worker.protocol import CachePlace, CheckpointSaved, Finished, Metrics
from worker.training import peak
from worker.training.peak import Peak, peak_of

STUDENT = 2 * (SIDE * SIDE * 8 + 8 * CLASSES)
TEACHER = 2 * (SIDE * SIDE * 12 + 12 * CLASSES)
"""Operations of the networks that the builders make, forward, on one sample."""
TRAINED = 40


def last(played: Played, prefix: str) -> dict[str, float]:
    """The last values reported, by their names without the prefix."""
    values: dict[str, float] = {}
    for metrics in played.of(Metrics):
        values |= metrics.values
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "bundle" / "report.json").read_text())["train"]


def test_a_student_alone_takes_three_forward_passes_a_sample(tmp_path: Path) -> None:
    played = play(stage(tmp_path), tmp_path)
    assert last(played, "train/flops/") == {"student": 3 * STUDENT * TRAINED * 3}
    assert report(tmp_path)["student_flops"] == 3 * STUDENT * TRAINED * 3
    assert "teacher_flops" not in report(tmp_path)


def test_a_teacher_is_counted_separately_and_only_if_it_runs(tmp_path: Path) -> None:
    for epochs, folder in ((3, tmp_path / "runs"), (1, tmp_path / "remembers")):
        assignment = stage(folder, teacher=True)
        if epochs == 1:
            place = CachePlace(folder=str(folder / "cache"))
            assignment = assignment.model_copy(update={"teacher_cache": place})
        found = last(play(assignment, folder), "train/flops/")
        assert found == {"student": 3 * STUDENT * TRAINED * 3, "teacher": TEACHER * TRAINED * epochs}
        assert report(folder)["teacher_flops"] == found["teacher"]


def test_where_only_terms_are_trained_the_student_runs_forward(tmp_path: Path) -> None:
    hint = {"kind": "hint", "pairs": [{"teacher": "1", "student": "1"}]}
    stages = [{"losses": [hint], "epochs": 2, "trains": "terms"}]
    losses = [{"kind": "cross-entropy"}, hint]
    played = play(stage(tmp_path, teacher=True, recipe={"losses": losses, "stages": stages, "epochs": 1}), tmp_path)
    assert isinstance(played.word, Finished), played.word
    assert last(played, "train/flops/")["student"] == STUDENT * TRAINED * (2 + 3)


def test_a_resumed_training_continues_counting(tmp_path: Path) -> None:
    straight = last(play(stage(tmp_path / "a", teacher=True), tmp_path / "a"), "train/flops/")
    assignment = stage(tmp_path / "b", teacher=True)
    stopped = play(assignment, tmp_path / "b", steps=4)
    resumed = assignment.model_copy(update={"resume": stopped.of(CheckpointSaved)[-1].path})
    assert last(play(resumed, tmp_path / "b"), "train/flops/") == straight


def test_the_share_of_the_rate_is_operations_over_time_and_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    for rate in (1e9, 1e12):
        monkeypatch.setattr(
            "worker.training.flop_counter.peak_of", lambda device, precision, rate=rate: Peak(rate, "measured")
        )
        played = play(stage(tmp_path / f"{rate}", teacher=True), tmp_path / f"{rate}")
        share = last(played, "train/mfu/")
        assert set(share) == {"student", "teacher"}
        assert share["student"] / share["teacher"] == pytest.approx(3 * STUDENT / TEACHER)
        assert report(tmp_path / f"{rate}")["peak_flops_per_second"] == rate
        shares.append(share["student"])
    assert shares[1] < shares[0]


def test_the_rate_of_a_known_gpu_is_that_of_its_data_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert peak_of(torch.device("cuda"), "bf16") == Peak(312e12, "data sheet")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_rates_are_measured_once_and_leave_the_draws_of_training_alone(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = torch.get_rng_state()
    found = peak_of(torch.device("cpu"), precision)
    assert found.source == "measured"
    assert found.flops_per_second > 1e8
    assert torch.equal(torch.get_rng_state(), draws)
    monkeypatch.setattr(peak, "_seconds", None)
    assert peak_of(torch.device("cpu"), precision) == found
