"""Jobs whose batches have classes that the student confuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from tests.worker.distributed.ranks_stage import Act, play_together
from tests.worker.tasks.test_image_embedding import stage
from tests.worker.training.builders import finished, play, require_same_bits
from worker.protocol import Assignment, Failed, Finished, Log, Metrics
from worker.students.weights import load_model
from worker.training import monitor

POOL: dict[str, Any] = {"samples_per_class": 4, "hard_negatives": {"pool": 20, "every": 3}}
WIDE = {"unseen_classes": 2}


def make(folder: Path, **changes: Any) -> Assignment:
    recipe = {**POOL, "epochs": 3, "batch_size": 12, **changes.pop("recipe", {})}
    return stage(folder, recipe=recipe, data=WIDE, **changes)


def test_a_stopped_job_goes_on_to_the_same_bits_from_the_middle_of_a_table(tmp_path: Path) -> None:
    require_same_bits(make, tmp_path)
    plain = finished(tmp_path / "plain", make(tmp_path / "plain", recipe={"hard_negatives": None}))
    bundle = tmp_path / "straight" / "bundle"
    one, other = load_model(bundle).state_dict(), load_model(plain).state_dict()
    assert any(not torch.equal(values, other[name]) for name, values in one.items())
    assert not any("hard" in name for name in one)


def test_a_job_that_stops_at_a_refresh_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    require_same_bits(partial(make, recipe={"hard_negatives": {"pool": 30, "every": 2, "neighbours": 1}}), tmp_path)


def test_the_pool_is_refreshed_every_few_steps_and_the_batches_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "SECONDS_BETWEEN_REPORTS", float("-inf"))
    run = play(make(tmp_path), tmp_path)
    assert isinstance(run.word, Finished)
    told = [log.message for log in run.of(Log) if log.message.startswith("hard negatives")]
    steps = run.word.step
    assert [text.split(":")[0] for text in told] == [f"hard negatives at step {step}" for step in range(0, steps, 3)]
    assert all("20 images of 6 classes" in text for text in told)
    curves = [report.values for report in run.of(Metrics) if "train/hard_negative_share" in report.values]
    assert [values["train/hard_negative_share"] for values in curves] == pytest.approx([2 / 3] * steps)
    cosines = [values["train/hardest_negative_cosine"] for values in curves]
    assert len(set(cosines)) == len(told)
    assert all(-1.0 <= value <= 1.0 for value in cosines)
    figures = json.loads((tmp_path / "bundle" / "report.json").read_text())["train"]["hard_negatives"]
    assert figures == {"refreshes": len(told), "last_step": (steps - 1) // 3 * 3, "hardest_cosine": cosines[-1]}


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    alone = finished(tmp_path / "alone", make(tmp_path / "alone"))
    two = tmp_path / "two"
    assert isinstance(play_together({"two": Act(make(two), two)})["two"].word, Finished)
    one, other = (load_model(bundle).state_dict() for bundle in (alone, two / "bundle"))
    for name, values in one.items():
        assert_close(other[name], values, rtol=1e-4, atol=1e-5)


def test_batches_of_more_classes_than_there_are_end_the_job_by_their_field(tmp_path: Path) -> None:
    word = play(make(tmp_path, recipe={"samples_per_class": 1 + 1, "batch_size": 16}), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.code, word.param) == ("invalid_job", "recipe.samples_per_class")
