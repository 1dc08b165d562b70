"""Jobs with teachers in lower precision, and the reported difference of their outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Mlp, Vit
from app.recipe.tasks import TaskName
from tests import kinds
from tests.worker.tasks import language
from tests.worker.training.builders import finished, play, stage, weights, write_teacher
from worker.protocol import Assignment, CachePlace, Failed
from worker.students.weights import load_model

LOSSES: list[dict[str, Any]] = [{"kind": "cross-entropy"}, {"kind": "kd"}]


def with_precision(precision: str | None, assignment: Assignment) -> Assignment:
    job = assignment.spec.model_dump(mode="json")
    job["teacher"]["precision"] = precision
    return assignment.model_copy(update={"spec": JobSpec.model_validate(job)})


def staged(folder: Path, teacher_precision: str | None, **recipe: Any) -> Assignment:
    assignment = stage(folder, teacher=True, recipe={"losses": LOSSES, **recipe})
    write_teacher(folder / "teacher", Mlp(hidden=[32, 16]))
    return with_precision(teacher_precision, assignment)


def report(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "report.json").read_text())
    return found


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_report_has_the_difference_of_lowered_teachers(tmp_path: Path, precision: str) -> None:
    bundle = finished(tmp_path, staged(tmp_path, precision))
    figures = report(bundle)["train"]["teacher_fidelity"]["teacher"]
    assert (figures["precision"], figures["samples"]) == (precision, 10)
    assert 0.0 <= figures["agreement"] <= 1.0
    assert 0.0 < figures["kl"] < 0.05
    assert 0.0 < figures["max_difference"] < 0.5
    assert f"ran in {precision}" in (bundle / "README.md").read_text()


def test_the_report_measures_the_stored_teacher_whatever_its_precision_in_training(tmp_path: Path) -> None:
    plain, lowered = (tmp_path / name for name in ("plain", "lowered"))
    bundles = [finished(plain, staged(plain, None)), finished(lowered, staged(lowered, "bf16"))]
    measured = [report(bundle)["teacher"] for bundle in bundles]
    for name in ("parameters", "flops", "bytes", "accuracy", "nll"):
        assert measured[0][name] == measured[1][name]
    assert weights(plain) != weights(lowered)
    assert report(bundles[0])["train"]["teacher_fidelity"] == {}


def test_a_teacher_in_fp32_with_a_student_in_bf16(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("autocast", "fp32")]
    for folder, precision in zip(folders, (None, "fp32"), strict=True):
        finished(folder, staged(folder, precision, precision="bf16"))
    assert weights(folders[0]) != weights(folders[1])


def test_outputs_of_lower_precision_have_another_cache_key(tmp_path: Path) -> None:
    place, keys = CachePlace(folder=str(tmp_path / "cache")), set()
    for number, (precision, recipe) in enumerate(
        ((None, "fp32"), ("fp32", "fp32"), ("fp32", "bf16"), (None, "bf16"), ("bf16", "bf16"), ("fp8", "fp32"))
    ):
        folder = tmp_path / str(number)
        assignment = staged(folder, precision, precision=recipe, epochs=1)
        bundle = finished(folder, assignment.model_copy(update={"teacher_cache": place}))
        keys.add(report(bundle)["train"]["teacher_cache"]["teacher"]["key"])
    assert len(keys) == 4  # the three of fp32 weights without autocast share theirs


def test_a_teacher_without_layers_for_fp8_is_refused(tmp_path: Path) -> None:
    assignment = staged(tmp_path, "fp8")
    write_teacher(tmp_path / "teacher", Mlp(hidden=[15]))
    word = play(assignment, tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "teacher.precision")
    assert "accepted: bf16, fp32, null" in word.message


def test_a_smaller_copy_starts_from_the_teachers_own_weights(tmp_path: Path) -> None:
    found = []
    for precision in (None, "bf16"):
        folder = tmp_path / str(precision)
        shrunk = {"architecture": "shrink", "layers": 1}
        recipe = {"losses": LOSSES, "max_steps": 1, "optimizer": {"kind": "sgd", "lr": 1e-30}}
        assignment = stage(folder, teacher=True, student=shrunk, recipe=recipe)
        write_teacher(folder / "teacher", Vit(patch_size=3, width=16, depth=2, heads=2))
        finished(folder, with_precision(precision, assignment))
        found.append(load_model(folder / "bundle").state_dict())
    torch.testing.assert_close(found[0], found[1], rtol=0.0, atol=1e-20)


@pytest.mark.parametrize(("task", "kind", "measure"), [("keypoints", "mse", "rmse"), ("embedding", None, "cosine")])
def test_numbers_and_vectors_have_measures_of_their_own(
    tmp_path: Path, task: TaskName, kind: str | None, measure: str
) -> None:
    kinds.write_data(tmp_path)
    kinds.write_teachers(tmp_path)
    job = kinds.job_of(kind or "embedding-distance")
    named = {path.stem: str(path) for path in tmp_path.iterdir()}
    assignment = with_precision("bf16", Assignment(spec=JobSpec.model_validate(job), inputs=named))
    assert assignment.spec.task == task
    figures = report(finished(tmp_path, assignment))["train"]["teacher_fidelity"]["teacher"]
    assert figures.keys() == {"precision", "samples", "max_difference", measure}
    assert 0.0 < figures["max_difference"] < 0.1


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_language_models_teach_in_fewer_bits(tmp_path: Path, precision: str) -> None:
    wide = language.LLAMA | {"hidden_size": 32, "intermediate_size": 48}
    teacher = finished(tmp_path / "teaches", language.stage(tmp_path / "teaches", wide))
    losses = [*language.DISTILLED, {"kind": "akl"}]
    assignment = with_precision(precision, language.stage(tmp_path / "job", language.LLAMA, teacher, losses))
    figures = report(finished(tmp_path / "job", assignment))["train"]["teacher_fidelity"]["teacher"]
    assert figures["samples"] > 50
    assert figures["agreement"] > 0.7
    assert 0.0 < figures["kl"] < 0.01
