"""The trainer without the service."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.worker.training.builders import document, weights, write_data, write_teacher
from worker.trainer.standalone import EXIT_FAILED, EXIT_INVALID, EXIT_STOPPED, prepare, train_file


def write_job(folder: Path, text: str | None = None, **changes: Any) -> Path:
    write_data(folder / "data.npz")
    content = document(data={"train": "data.npz"}, **changes)
    path = folder / "job.yaml"
    path.write_text(text if text is not None else yaml.safe_dump(content))
    return path


def test_a_job_file_becomes_a_bundle(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "worker.trainer", str(write_job(tmp_path)), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "step 9/9" in done.stderr
    assert f"finished: {tmp_path / 'out' / 'bundle'}" in done.stderr
    assert done.stdout == ""
    assert (tmp_path / "out" / "bundle" / "model.safetensors").exists()


def test_a_rate_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    text = """
        data: {train: data.npz}
        student: {architecture: mlp}
        recipe: {losses: [{kind: cross-entropy}], optimizer: {kind: adamp, lr: 1e-3}}
    """
    assert prepare(write_job(tmp_path, text), tmp_path / "out").spec.recipe.optimizer.lr == 0.001


def test_what_teachers_say_is_kept_in_the_folder_that_is_named(tmp_path: Path) -> None:
    write_teacher(tmp_path / "teacher")
    job = write_job(tmp_path, teacher={"model": "teacher"}, recipe={"losses": [{"kind": "kd"}]})
    cache = tmp_path / "cache"
    command = [sys.executable, "-m", "worker.trainer", str(job), "--cache", str(cache), "--out"]
    for name in ("one", "two"):
        subprocess.run([*command, str(tmp_path / name)], capture_output=True, check=True)
    report = json.loads((tmp_path / "two" / "bundle" / "report.json").read_text())
    (figures,) = report["train"]["teacher_cache"].values()
    assert (figures["misses"], figures["shared"]) == (0, True)
    assert (cache / figures["key"]).is_dir()


def test_json_is_read_too(tmp_path: Path) -> None:
    path = write_job(tmp_path, json.dumps(document(data={"train": "data.npz"})))
    assert prepare(path, tmp_path / "out").inputs == {"data.npz": str(tmp_path / "data.npz")}


def test_every_teacher_is_looked_for_beside_the_job_file(tmp_path: Path) -> None:
    named = [{"name": name, "model": name} for name in ("first", "second")]
    for teacher in named:
        write_teacher(tmp_path / teacher["model"])
    path = write_job(tmp_path, teachers=named, recipe={"losses": [{"kind": "kd"}]})
    assert set(prepare(path, tmp_path / "out").inputs) == {"data.npz", "first", "second"}


def test_a_drawn_seed_is_kept_for_the_next_run_in_the_same_folder(tmp_path: Path) -> None:
    path = write_job(tmp_path, seed=None)
    first, second = prepare(path, tmp_path / "out").spec.seed, prepare(path, tmp_path / "out").spec.seed
    assert first is not None
    assert first == second
    assert prepare(path, tmp_path / "other").spec.seed != first


def test_a_stopped_run_goes_on_from_its_checkpoint_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_job(tmp_path)
    assert train_file(path, tmp_path / "straight") == 0
    interrupt_after(5, monkeypatch)
    assert train_file(path, tmp_path / "halting") == EXIT_STOPPED
    assert "stopped at step 5" in capsys.readouterr().err
    monkeypatch.undo()
    assert train_file(path, tmp_path / "halting") == 0
    assert weights(tmp_path / "halting") == weights(tmp_path / "straight")


def test_a_corrupt_checkpoint_falls_to_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_job(tmp_path, recipe={"checkpoint": {"every_steps": 2}})
    interrupt_after(5, monkeypatch)
    train_file(path, tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "out" / "checkpoints" / "step-5" / "state.safetensors").write_bytes(b"cut short")
    assert prepare(path, tmp_path / "out").resume == "checkpoints/step-4"
    assert "step-5 is corrupt" in capsys.readouterr().err
    assert train_file(path, tmp_path / "out") == 0


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter(range(steps - 1, -1, -1))
    monkeypatch.setattr("worker.trainer.standalone._stop_on_interrupt", lambda: lambda: next(left) == 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1, 2]", "a job is a mapping"),
        ("data: {train: data.npz}", "student: Field required"),
        (json.dumps(document(data={"train": "other.npz"})), "there is no other.npz"),
        (json.dumps(document(data={"train": "data.npz"}, student={"architecture": "gpt"})), "student"),
    ],
)
def test_a_bad_job_file_is_refused_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    assert train_file(write_job(tmp_path, text), tmp_path / "out") == EXIT_INVALID
    assert reason in capsys.readouterr().err


def test_a_job_that_fails_ends_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = {"optimizer": {"kind": "sgd", "lr": 1e30}, "epochs": 20}
    assert train_file(write_job(tmp_path, recipe=recipe), tmp_path / "out") == EXIT_FAILED
    assert "failed (user, nan_loss)" in capsys.readouterr().err


def test_a_folder_of_another_job_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt_after(2, monkeypatch)
    train_file(write_job(tmp_path), tmp_path / "out")
    monkeypatch.undo()
    assert train_file(write_job(tmp_path, recipe={"batch_size": 8}), tmp_path / "out") == EXIT_FAILED
    assert "belongs to another job" in capsys.readouterr().err
