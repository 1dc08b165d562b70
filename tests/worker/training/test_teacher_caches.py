"""Jobs with teacher caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.recipe.losses import Kd
from app.recipe.losses.taps import Tap, Taps
from tests.worker.training.builders import CLASSES, SAMPLES, Played, play, stage, weights
from worker.protocol import Assignment, CachePlace, Failed, Finished, Log, Metrics, Stopped
from worker.teachers import InProcessTeacher

TRAINED = 40
"""Samples that the staged data leaves to train on."""


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that teachers are run on while training."""
    sizes: list[int] = []
    say = InProcessTeacher.__call__

    def counted(self: InProcessTeacher, batch: Any) -> Any:
        sizes.append(len(batch))
        return say(self, batch)

    monkeypatch.setattr(InProcessTeacher, "__call__", counted)
    return sizes


def staged(folder: Path, cache: Path | None, **changes: Any) -> Assignment:
    assignment = stage(folder, teacher=True, **changes)
    place = CachePlace(folder=str(cache)) if cache else None
    return assignment.model_copy(update={"teacher_cache": place})


def done(assignment: Assignment, folder: Path) -> Played:
    played = play(assignment, folder)
    assert isinstance(played.word, Finished), played.word
    return played


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bundle" / "report.json").read_text())["train"]["teacher_cache"]
    return found


def test_the_second_job_never_runs_the_teacher_in_training(tmp_path: Path, computed: list[int]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    done(staged(first, tmp_path / "cache"), first)
    assert sum(computed) == TRAINED
    computed.clear()
    done(staged(second, tmp_path / "cache", recipe={"epochs": 2, "batch_size": 8}), second)
    assert computed == []
    (found,) = figures(second).values()
    assert (found["hits"], found["misses"], found["shared"]) == (2 * TRAINED, 0, True)
    (made,) = figures(first).values()
    assert (made["hits"], made["misses"], made["shared"]) == (2 * TRAINED, TRAINED, False)
    assert made["bytes"] == SAMPLES * (4 * CLASSES + 1)


def test_a_job_ends_with_the_same_weights_with_and_without_a_cache(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("bare", "off", "cold", "warm")}
    for name, folder in folders.items():
        off = {"teacher_cache": {"store": "off"}} if name == "off" else {}
        done(staged(folder, None if name == "bare" else tmp_path / "cache", **off), folder)
    assert len({weights(folder) for folder in folders.values()}) == 1


@pytest.mark.parametrize("cut", [2, 4])
def test_a_resumed_job_takes_the_same_steps(tmp_path: Path, cut: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    lossy = {"teacher_cache": {"store": "top-k", "k": 2, "dtype": "fp16"}}
    done(staged(whole, tmp_path / "one", **lossy), whole)
    assignment = staged(broken, tmp_path / "two", **lossy)
    assert isinstance(play(assignment, broken, steps=cut).word, Stopped)
    done(assignment.model_copy(update={"resume": f"checkpoints/step-{cut}"}), broken)
    assert weights(broken) == weights(whole)


def test_a_lossy_encoding_is_the_same_without_a_place_for_the_cache(tmp_path: Path) -> None:
    lossy = {"teacher_cache": {"store": "dense", "dtype": "bf16"}}
    folders = {name: tmp_path / name for name in ("homeless", "kept", "exact")}
    done(staged(folders["homeless"], None, **lossy), folders["homeless"])
    done(staged(folders["kept"], tmp_path / "cache", **lossy), folders["kept"])
    done(staged(folders["exact"], tmp_path / "cache"), folders["exact"])
    assert weights(folders["homeless"]) == weights(folders["kept"]) != weights(folders["exact"])


def test_jobs_that_hold_out_other_samples_share_the_rest(tmp_path: Path, computed: list[int]) -> None:
    for seed in (3, 4, 5, 3):
        computed.clear()
        done(staged(tmp_path / "job", tmp_path / "cache", seed=seed), tmp_path / "job")
    assert computed == []
    (found,) = figures(tmp_path / "job").values()
    assert TRAINED < found["rows_found"] <= SAMPLES
    assert len(list((tmp_path / "cache").glob("?" * 64))) == 1


def test_augmented_samples_are_computed_once_in_every_epoch_of_the_cycle(tmp_path: Path, computed: list[int]) -> None:
    flips = {"data": {"train": "data", "augment": [{"kind": "flip"}], "augment_epochs": 2}, "recipe": {"epochs": 5}}
    folders = [tmp_path / name for name in ("first", "second", "other", "bare")]
    done(staged(folders[0], tmp_path / "cache", **flips), folders[0])
    assert sum(computed) == 2 * TRAINED
    done(staged(folders[1], tmp_path / "cache", **flips), folders[1])
    assert sum(computed) == 2 * TRAINED, "the second job computed"
    done(staged(folders[2], tmp_path / "cache", seed=4, **flips), folders[2])
    assert sum(computed) == 4 * TRAINED, "another seed draws other flips"
    done(staged(folders[3], None, **flips), folders[3])
    assert weights(folders[0]) == weights(folders[1]) == weights(folders[3])


def test_nothing_is_cached_for_augmented_samples_that_never_recur(tmp_path: Path, computed: list[int]) -> None:
    played = done(staged(tmp_path, tmp_path / "cache", data={"train": "data", "augment": [{"kind": "flip"}]}), tmp_path)
    assert sum(computed) == 3 * TRAINED
    assert any("data.augment_epochs" in log.message for log in played.of(Log))
    assert not (tmp_path / "cache").exists()


def test_metrics_have_hits_and_misses(tmp_path: Path) -> None:
    played = done(staged(tmp_path / "job", tmp_path / "cache"), tmp_path / "job")
    values = [report.values for report in played.of(Metrics) if "train/cache_hits" in report.values]
    assert (values[-1]["train/cache_hits"], values[-1]["train/cache_misses"]) == (2 * TRAINED, TRAINED)


def test_a_job_without_a_cache_has_no_metrics_of_it(tmp_path: Path) -> None:
    played = done(staged(tmp_path, None), tmp_path)
    assert not any("train/cache_hits" in report.values for report in played.of(Metrics))
    assert figures(tmp_path) == {}


def test_a_cache_without_space_is_a_warning(tmp_path: Path) -> None:
    assignment = staged(tmp_path, None)
    place = CachePlace(folder=str(tmp_path / "cache"), max_bytes=10)
    played = done(assignment.model_copy(update={"teacher_cache": place}), tmp_path)
    warnings = [log.message for log in played.of(Log) if log.level == "warning" and "not cached" in log.message]
    assert len(warnings) == 1


def test_more_logits_than_the_teacher_has_are_refused(tmp_path: Path) -> None:
    word = play(staged(tmp_path, None, teacher_cache={"store": "top-k", "k": 9}), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "teacher_cache.k")
    assert "at most 4" in word.message


def test_a_teacher_whose_activations_are_used_is_always_run(
    tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kd, "taps", lambda self: Taps(teacher=(Tap(path="0"),)))
    taps = {"recipe": {"losses": [{"kind": "kd"}]}}
    played = done(staged(tmp_path, tmp_path / "cache", **taps), tmp_path)
    assert sum(computed) == 3 * TRAINED
    assert any("are not cached: losses use its activations" in log.message for log in played.of(Log))
    assert not (tmp_path / "cache").exists()
