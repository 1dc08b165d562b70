"""The files of a bundle, and the content of its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from app.recipe.job import JobSpec
from app.recipe.plan import plan_training
from app.recipe.students.architectures import Mlp
from app.recipe.students.model import ImageInput, Input, ModelConfig, Preprocessing, TableInput
from app.recipe.tasks import TaskName
from tests.worker.training.builders import document, play, stage
from worker.bundle import export
from worker.bundle import writer as bundle
from worker.bundle.writer import TrainedJob, write_bundle
from worker.data.batches import whole_split
from worker.errors import SystemFault
from worker.protocol import Finished
from worker.students.model import Model
from worker.students.weights import save_model
from worker.tasks import task_for
from worker.tasks.base import HeldOut
from worker.training.best import update_best
from worker.training.state import initial_state

CPU = torch.device("cpu")
ARITHMETIC = {"student_flops": 3e6, "teacher_flops": 1e6, "peak_flops_per_second": 1e11, "peak": "measured"}
ALL_FORMATS = ["safetensors", "onnx", "onnx-int8", "torch-export"]


def numbers_model(task: TaskName, sample: Input, seed: int) -> Model:
    torch.manual_seed(seed)
    channels = 5 if isinstance(sample, TableInput) else 1
    scaling = Preprocessing(mean=[0.0] * channels, std=[1.0] * channels)
    config = ModelConfig(task=task, architecture=Mlp(hidden=[6]), input=sample, preprocessing=scaling, targets=4)
    return Model(config)


def trained_on_numbers(task: TaskName, sample: Input, folder: Path) -> TrainedJob:
    """A student of a regression task in a state as at the end of training."""
    job = JobSpec.model_validate(document(task=task, teacher=True, export=ALL_FORMATS))
    shape = (12, 5) if isinstance(sample, TableInput) else (12, 1, 4, 4)
    student, teacher = (numbers_model(task, sample, seed) for seed in (1, 2))
    save_model(teacher, folder)
    samples = whole_split({sample.key: torch.randn(shape)}, torch.rand(12, 4))
    kind, models = task_for(task), {"teacher": lambda: teacher}
    evaluator = kind.evaluator(job, HeldOut(samples), models, models, {})
    state = initial_state(job.recipe, student)
    state.step = 9
    found = evaluator.evaluate(student).evaluation
    update_best(state, kind.main_metric, found.metrics, None)
    state.history.add(9, {f"eval/{name}": value for name, value in found.metrics.items()})
    teachers = {"teacher": (teacher, folder)}
    return TrainedJob(
        kind,
        job,
        plan_training(job.recipe, 40),
        state,
        teachers,
        samples,
        evaluator,
        sources={"data.train": {"reference": "data", "name": "rows.npz", "sha256": "0" * 64}},
        teacher_cache={},
        teacher_fidelity={},
        arithmetic=ARITHMETIC,
    )


def report_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bundle" / "report.json").read_text())
    return found


def card_in(folder: Path) -> str:
    return (folder / "bundle" / "README.md").read_text()


@pytest.mark.usefixtures("drawn")
def test_every_file_is_published_under_its_media_type(tmp_path: Path) -> None:
    word = play(stage(tmp_path, teacher=True, export=ALL_FORMATS), tmp_path).word
    assert isinstance(word, Finished)
    plain = "application/octet-stream"
    assert {artifact.name: artifact.media_type for artifact in word.artifacts} == {
        **dict.fromkeys(("model.safetensors", "model.onnx", "model.int8.onnx", "model.pt2"), plain),
        **dict.fromkeys(("config.json", "report.json", "recipe.json"), "application/json"),
        "README.md": "text/markdown",
        "curves.png": "image/png",
    }
    assert all((tmp_path / artifact.path).stat().st_size > 0 for artifact in word.artifacts)


def test_the_report_measures_every_file(tmp_path: Path) -> None:
    play(stage(tmp_path, teacher=True, export=ALL_FORMATS), tmp_path)
    student = report_in(tmp_path)["student"]
    speed = {"latency_runtime", "latency_ms_p50", "latency_ms_p95", "samples_per_second"}
    metrics = {"accuracy", "nll", "ece", "adaptive_ece", "brier", "agreement", "kl"}
    for key, file in (("onnx", "model.onnx"), ("onnx_int8", "model.int8.onnx"), ("torch_export", "model.pt2")):
        assert speed | metrics | {"bytes"} <= set(student[key])
        assert student[key]["bytes"] == (tmp_path / "bundle" / file).stat().st_size
    assert student["onnx"]["accuracy"] == student["torch_export"]["accuracy"] == student["accuracy"]
    assert student["onnx_int8"]["same_choice"] > 0.5
    assert 0.0 < student["onnx_int8"]["max_difference"] < 0.2
    assert student["flops"] == 2 * (36 * 8 + 8 * 4)


def test_the_report_has_teacher_and_student(tmp_path: Path) -> None:
    play(stage(tmp_path, teacher=True), tmp_path)
    report = report_in(tmp_path)
    likeness = {"agreement", "kl"}
    assert set(report["teacher"]) == set(report["student"]) - likeness
    assert report["teacher"]["flops"] == 2 * (36 * 12 + 12 * 4)
    samples = report["train"]["steps"] // 3 * 40
    assert report["train"]["flops"] == samples * (3 * report["student"]["flops"] + report["teacher"]["flops"])


def test_the_table_of_classes_shows_student_and_teacher(tmp_path: Path) -> None:
    play(stage(tmp_path, teacher=True, data={"train": "data", "classes": 4}), tmp_path)
    report = report_in(tmp_path)
    rows = report["per_class"]
    assert [row["class"] for row in rows] == [0, 1, 2, 3]
    assert sum(row["samples"] for row in rows) == report["samples"]["eval"]
    for side in ("student", "teacher"):
        hits = sum(row[side] * row["samples"] for row in rows)
        assert hits / report["samples"]["eval"] == pytest.approx(report[side]["accuracy"])


def test_a_class_that_no_sample_has_is_null_in_the_table(tmp_path: Path) -> None:
    play(stage(tmp_path, data={"train": "data", "classes": 6}), tmp_path)
    rows = report_in(tmp_path)["per_class"]
    assert [row["student"] for row in rows[4:]] == [None, None]
    assert all("teacher" not in row for row in rows)


def test_last_and_best_epoch_are_both_in_the_report(tmp_path: Path) -> None:
    played = play(stage(tmp_path, recipe={"epochs": 6}), tmp_path)
    report = report_in(tmp_path)
    epochs = report["epochs"]
    assert (epochs["kept"], epochs["by"]) == ("last", "accuracy")
    assert (epochs["last"]["step"], epochs["last"]["epoch"]) == (18, 6.0)
    assert epochs["best"]["accuracy"] == max(
        message.values["eval/accuracy"]
        for message in played.reports
        if "eval/accuracy" in getattr(message, "values", {})
    )
    assert report["student"]["accuracy"] == epochs["last"]["accuracy"]


@pytest.mark.parametrize("task", ["regression", "keypoints"])
@pytest.mark.parametrize(
    "sample", [TableInput(columns=5), ImageInput(channels=1, height=4, width=4)], ids=["table", "images"]
)
def test_outputs_may_be_numbers(tmp_path: Path, task: TaskName, sample: Input) -> None:
    trained = trained_on_numbers(task, sample, tmp_path)
    artifacts = write_bundle(trained, tmp_path, CPU)
    report, main = report_in(tmp_path), task_for(task).main_metric.name
    assert {"model.onnx", "model.int8.onnx", "model.pt2"} <= {artifact.name for artifact in artifacts}
    assert report["classes"] is report["per_class"] is None
    assert report["targets"] == 4
    assert report["epochs"]["by"] == main
    assert report["student"][main] == pytest.approx(report["student"]["onnx"][main], abs=1e-5)
    assert report["student"]["teacher_rmse"] > 0
    assert "accuracy" not in report["student"]
    assert "same_choice" not in report["student"]["onnx_int8"]
    assert f"| {main} |" in card_in(tmp_path)
    assert "`outputs` (N, 4)" in card_in(tmp_path)


@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
def test_a_graph_with_other_outputs_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    name = next(name for name, graph in bundle.GRAPHS.items() if graph.file == file)
    graph = bundle.GRAPHS[name]

    def skewed(model: Model, folder: Path) -> Any:
        call = graph.write(model, folder)
        return lambda samples: call(samples) * 1.01

    monkeypatch.setitem(bundle.GRAPHS, name, graph._replace(write=skewed))
    trained = trained_on_numbers("regression", TableInput(columns=5), tmp_path)
    with pytest.raises(SystemFault, match=file):
        write_bundle(trained, tmp_path, CPU)


def test_a_graph_of_8_bits_may_differ_but_must_give_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = bundle.GRAPHS["onnx-int8"]

    def broken(model: Model, folder: Path) -> Any:
        call = export.export_int8(model, folder)
        return lambda samples: call(samples) * torch.nan

    monkeypatch.setitem(bundle.GRAPHS, "onnx-int8", graph._replace(write=broken))
    with pytest.raises(SystemFault, match="not finite"):
        write_bundle(trained_on_numbers("regression", TableInput(columns=5), tmp_path), tmp_path, CPU)


def test_the_card_has_lineage_results_use_and_rights(tmp_path: Path) -> None:
    play(stage(tmp_path, teacher=True, name="small one", export=ALL_FORMATS), tmp_path)
    card = card_in(tmp_path)
    assert "\n# small one\n\nA `mlp` for image-classification, distilled from `teacher`, on `data`.\n" in card
    assert "- losses: cross-entropy (weight 1), nkd (weight 1)" in card
    assert "floating-point operations of the student, " in card
    columns = "| | teacher | last epoch | best epoch | model.safetensors | model.onnx | model.int8.onnx | model.pt2 |"
    assert columns in card
    results = card.partition("## Results")[2].partition("## Use")[0]
    rows = [line for line in results.splitlines() if line.startswith("| ")]
    assert {line.count("|") for line in rows} == {9}
    assert "`images` (N, 1, 6, 6), raw pixels as float32, for any N" in card
    assert 'torch.export.load("model.pt2"' in card
    assert "![Metrics during training](curves.png)" in card
    assert "## Licence" in card


def test_the_card_of_a_model_without_teacher_or_graphs_leaves_them_out(tmp_path: Path) -> None:
    play(stage(tmp_path), tmp_path)
    card = card_in(tmp_path)
    assert "trained on labels alone" in card
    assert "teacher |" not in card
    assert "onnx" not in card
    assert "model.pt2" not in card


def test_stages_and_changing_weights_are_on_the_card(tmp_path: Path) -> None:
    ramp = {"kind": "linear", "first": 0.0, "last": 2.0}
    recipe = {
        "stages": [{"losses": [{"kind": "cross-entropy"}], "epochs": 1}],
        "losses": [{"kind": "cross-entropy", "weight": ramp}],
    }
    play(stage(tmp_path, recipe=recipe), tmp_path)
    assert "- stage 1: cross-entropy (weight 1), 1 epochs\n" in card_in(tmp_path)
    assert "- losses: cross-entropy (weight 0 to 2)" in card_in(tmp_path)
