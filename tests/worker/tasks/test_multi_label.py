"""Any number of classes per sample: measures, mixtures, oddities, and jobs from their files to models that teach."""

from __future__ import annotations

import json
import math
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.students.architectures import Mlp
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from app.recipe.tasks import many_labels
from tests.worker.training.builders import finished, play, require_same_bits, with_teacher
from worker.bundle.verify import allowed_difference, require_same_metrics
from worker.data import label_sets
from worker.data.batches import whole_split
from worker.data.task_data import TaskData
from worker.protocol import Assignment, Failed, Finished, Message
from worker.students.weights import load_model, read_config
from worker.tasks import multi_label
from worker.tasks.base import ClassRow
from worker.tasks.multi_label import LABELS

NAMES, OPTIONS = ["cat", "dog", "night"], EvaluationSpec()
BERT: dict[str, Any] = {
    **{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 16, "max_position_embeddings": 16},
}
FORMATS = ["safetensors", "onnx", "onnx-int8", "torch-export"]


def drawn(rows: int = 200, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a fair teacher, and labels."""
    torch.manual_seed(0)
    labels = (torch.rand(rows, classes) < 0.3).float()
    return 6 * labels - 3 + torch.randn(rows, classes), labels


def described(classes: int, names: list[str] | None = None) -> ModelConfig:
    return ModelConfig(
        task="multi-label-classification",
        architecture=Mlp(),
        input=ImageInput(channels=1, height=2, width=2),
        preprocessing=Preprocessing(mean=[0.0], std=[1.0]),
        classes=classes,
        class_names=names,
    )


def test_it_is_measured_by_ranking_decisions_and_probabilities() -> None:
    logits, labels = torch.tensor([[2.0, -1.0], [-2.0, 1.0], [1.0, -3.0]]), torch.tensor([[1.0, 0], [0, 1], [0, 0]])
    found = LABELS.evaluate(logits, labels, OPTIONS)
    assert set(found.metrics) == {"map", "micro_f1", "macro_f1", "precision_at_1", "ece", "nll"}
    assert found.metrics["map"] == 1.0
    assert found.metrics["micro_f1"] == pytest.approx(0.8)
    assert found.metrics["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert found.metrics["precision_at_1"] == pytest.approx(2 / 3)
    assert found.classes == [ClassRow(0, 1, 1.0), ClassRow(1, 1, 1.0)]
    beside = LABELS.evaluate(logits, labels, OPTIONS, -logits).metrics
    assert beside.keys() - found.metrics.keys() == {"agreement", "kl"}
    assert beside["agreement"] == 0.0


def test_precision_is_measured_among_as_many_classes_as_there_are() -> None:
    metrics = LABELS.evaluate(*drawn(classes=5), OPTIONS).metrics
    assert set(LABELS.metrics) == set(metrics)


def test_without_a_positive_sample_something_else_decides() -> None:
    found = LABELS.evaluate(-torch.ones(3, 2), torch.zeros(3, 2), OPTIONS)
    assert "map" not in found.metrics
    assert LABELS.main_metric.of(found.metrics) == "precision_at_1"
    assert found.classes == [ClassRow(0, 0, None), ClassRow(1, 0, None)]


def test_very_many_classes_are_not_listed() -> None:
    assert LABELS.evaluate(*drawn(3, 1001), OPTIONS).classes is None


def test_a_mixture_has_the_mean_probability_of_each_label() -> None:
    first, second = torch.tensor([[0.9, 0.2]]), torch.tensor([[0.3, 0.4]])
    mixed = LABELS.mixture([first.logit(), second.logit()], [3.0, 1.0])
    torch.testing.assert_close(mixed.sigmoid(), torch.tensor([[0.75, 0.25]]))
    assert LABELS.mixture([first], [1.0]) is first
    huge = LABELS.mixture([torch.tensor([[1e4, -1e4]]), torch.tensor([[1e4, 1e4]])], [1.0, 1.0])
    assert huge.isfinite().all()
    assert float(huge[0, 1].sigmoid()) == pytest.approx(0.5)


def test_the_baseline_is_each_labels_frequency_in_training() -> None:
    train = whole_split({"images": torch.zeros(4, 1, 2, 2)}, torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 0]]))
    held = whole_split({"images": torch.zeros(2, 1, 2, 2)}, torch.tensor([[1.0, 0], [0, 1]]))
    data = TaskData(train, held, described(2), [])
    metrics, which = LABELS.baseline(job(), data, held)
    assert which == "the frequency of each label"
    assert metrics["map"] == 0.5
    often, never = (math.log(p) + math.log(1 - p) for p in (0.75, 0.125))
    assert metrics["nll"] == pytest.approx(-(often + never) / 4, rel=1e-6)


def job() -> JobSpec:
    document = {
        "task": "multi-label-classification",
        "data": {"train": "f"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "binary-cross-entropy"}]},
    }
    return JobSpec.model_validate(document)


def test_labels_in_another_order_are_told_by_name() -> None:
    logits, labels = drawn()
    model = described(4, ["a", "b", "c", "d"])
    assert list(LABELS.oddities(logits, labels, model)) == []
    (told,) = LABELS.oddities(logits[:, [1, 0, 2, 3]], labels, model)
    assert told == "seems to have its labels in another order: 'a' is predicted as 'b', 'b' is predicted as 'a'"


def test_a_rare_label_does_not_hide_the_others() -> None:
    logits, labels = drawn()
    labels[:, 2] = 0
    (told,) = LABELS.oddities(logits[:, [3, 1, 2, 0]], labels, described(4))
    assert "'0' is predicted as '3'" in told


def test_an_exact_file_may_differ_by_the_allowed_rounding_and_no_more() -> None:
    logits, labels = drawn(classes=5)
    live = LABELS.evaluate(logits, labels, OPTIONS).metrics
    allowed = allowed_difference(logits)
    slacks = dict(LABELS.tolerances(logits, labels, OPTIONS, allowed))
    assert set(slacks) == {"map", "nll"}
    for sign in (1, -1):
        moved = logits + sign * allowed * (2 * labels - 1)
        require_same_metrics("f", LABELS.evaluate(moved, labels, OPTIONS).metrics, live, slacks.items())
    worse = LABELS.evaluate(logits - 3 * labels, labels, OPTIONS).metrics
    assert abs(worse["map"] - live["map"]) > slacks["map"]
    assert abs(worse["nll"] - live["nll"]) > slacks["nll"]


def test_the_share_of_the_same_decisions_is_that_of_all_labels() -> None:
    live, other = torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[2.0, -0.1], [1.0, -1.0]])
    assert float(LABELS.same_choice(other, live) or 0) == 0.75


def test_every_label_gives_its_share_to_the_held_out_samples() -> None:
    rows = torch.zeros(100, 4)
    rows[:50, 0] = rows[:20, 1] = rows[10:20, 2] = 1.0  # 50 samples have no label, and none has the last
    kept, held = LABELS.hold_out(whole_split({"images": torch.zeros(100, 1)}, rows), 20, seed=3)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(100))
    assert rows[held].sum(0).tolist() == [10.0, 4.0, 2.0, 0.0]
    again = LABELS.hold_out(whole_split({"images": torch.zeros(100, 1)}, rows), 20, seed=3)
    assert torch.equal(held, again[1])


def write_texts(path: Path) -> None:
    """Texts that name what they are about, some nothing."""
    draw = random.Random(0)
    with path.open("w") as file:
        for _ in range(60):
            tags = [name for name in NAMES if draw.random() < 0.4]
            words = ["the", "film", *tags]
            file.write(json.dumps({"text": " ".join(draw.sample(words, len(words))), "tags": tags}) + "\n")


def stage(folder: Path, teacher: Path | None = None, data: dict[str, Any] | None = None, **more: Any) -> Assignment:
    folder.mkdir(parents=True)
    write_texts(folder / "texts")
    base = {"format": "jsonl", "train": "texts", "input_columns": ["text"], "label_columns": ["tags"], "max_length": 16}
    losses = [{"kind": "binary-kd", "temperature": 2.0}] if teacher else []
    document = {
        "task": "multi-label-classification",
        "data": base | (data or {}),
        "student": {"architecture": "transformers", "config": BERT},
        "recipe": {"losses": [{"kind": "binary-cross-entropy"}, *losses], "epochs": 2, "batch_size": 16},
        "export": ["safetensors"],
        "seed": 1,
    }
    return with_teacher(folder, document | more, teacher)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a teacher that learned from the texts, in all formats."""
    folder = tmp_path_factory.mktemp("labels") / "teacher"
    return finished(folder, stage(folder, export=FORMATS))


def test_the_library_opens_a_student_and_knows_that_labels_do_not_exclude_each_other(teacher: Path) -> None:
    read, theirs = AutoTokenizer.from_pretrained(teacher), AutoModelForSequenceClassification.from_pretrained(teacher)
    encoded, ours = read(["the dog", "film"], padding=True, return_tensors="pt"), load_model(teacher)
    torch.testing.assert_close(theirs(**encoded).logits, ours(encoded["input_ids"]))
    assert theirs.config.problem_type == "multi_label_classification"
    assert theirs.config.id2label == dict(enumerate(NAMES))
    assert (ours.config.task, ours.config.class_names) == ("multi-label-classification", NAMES)


def test_its_graphs_give_logits_and_the_names_of_labels(teacher: Path) -> None:
    session, model = onnxruntime.InferenceSession(teacher / "model.onnx"), load_model(teacher)
    tokens = np.random.default_rng(0).integers(5, model.config.input.vocabulary, (3, 9))  # type: ignore[union-attr]
    (logits,) = session.run(["logits"], {"tokens": tokens})
    torch.testing.assert_close(torch.from_numpy(logits), model(torch.from_numpy(tokens)), rtol=0.0, atol=1e-5)
    assert list(json.loads(session.get_modelmeta().custom_metadata_map["id2label"]).values()) == NAMES
    program = torch.export.load(teacher / "model.pt2").module()
    torch.testing.assert_close(program(torch.from_numpy(tokens)), model(torch.from_numpy(tokens)), rtol=0.0, atol=1e-5)
    report = json.loads((teacher / "report.json").read_text())
    assert report["student"]["onnx"]["map"] == pytest.approx(report["student"]["map"], abs=1e-3)
    assert 0.0 <= report["student"]["onnx_int8"]["same_choice"] <= 1.0
    assert [row["name"] for row in report["per_class"]] == NAMES
    assert "enumerate(row) if logit > 0" in (teacher / "README.md").read_text()


def test_a_student_teaches_another_whose_labels_are_in_another_order(tmp_path: Path, teacher: Path) -> None:
    order = ["night", "cat", "dog"]
    more: dict[str, Any] = {"data": {"class_order": order}, "student": {"architecture": "shrink", "layers": 1}}
    recipe = {"losses": [{"kind": "binary-kd"}, {"kind": "logit-mse"}], "max_steps": 1, "epochs": 1}
    more |= {"recipe": recipe | {"optimizer": {"kind": "adamw", "lr": 1e-12}}}
    folder = tmp_path / "student"
    bundle = finished(folder, stage(folder, teacher, **more))
    report = json.loads((bundle / "report.json").read_text())
    assert load_model(bundle).config.class_names == order
    assert report["student"]["agreement"] == 1.0
    assert report["student"]["kl"] == pytest.approx(0.0, abs=1e-9)
    assert report["student"]["map"] == pytest.approx(report["teacher"]["map"])


def of_the_library(teacher: Path, folder: Path, problem: str | None) -> Path:
    """The teacher's files as the library keeps them, with its word for the head's problem, or without."""
    shutil.copytree(teacher, folder)
    (folder / "stillhouse.json").unlink()
    config = json.loads((folder / "config.json").read_text()) | {"problem_type": problem}
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def test_a_head_whose_problem_is_not_said_teaches_labels_with_a_warning(tmp_path: Path, teacher: Path) -> None:
    silent, folder = of_the_library(teacher, tmp_path / "silent", None), tmp_path / "student"
    assert read_config(silent).task == "text-classification"
    recipe = {"losses": [{"kind": "binary-kd"}], "optimizer": {"kind": "adamw", "lr": 1e-12}, "epochs": 1}
    shrunk = {"architecture": "shrink", "layers": 1}
    played = play(stage(folder, silent, recipe=recipe, student=shrunk), folder)
    assert isinstance(played.word, Finished), played.word
    report = json.loads((folder / "bundle" / "report.json").read_text())
    assert report["student"]["agreement"] == 1.0, "its last layer is inherited, too"
    read = "its logits are read as those of multi-label-classification: a sigmoid for each class"
    assert {"code": "odd_model", "message": f"teacher: config.json has no problem_type; {read}"} in report["warnings"]
    assert "task_assumed" not in (folder / "bundle" / "stillhouse.json").read_text()


def test_a_head_of_one_class_alone_is_refused(tmp_path: Path, teacher: Path) -> None:
    single, folder = of_the_library(teacher, tmp_path / "single", "single_label_classification"), tmp_path / "student"
    word: Message | Any = play(stage(folder, single), folder).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "teacher.model")
    assert "was made for text-classification (accepted: a model for multi-label-classification)" in word.message


def test_a_distilled_student_resumes_to_the_same_bits(tmp_path: Path, teacher: Path) -> None:
    require_same_bits(partial(stage, teacher=teacher), tmp_path)


def test_a_student_of_mixed_images_learns_soft_labels(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    labels = (draw.random((40, 4)) < 0.4).astype(np.uint8)
    images = np.kron(labels.reshape(-1, 2, 2) * 200 + 20, np.ones((1, 4, 4))).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x=images, y=labels)
    document = {
        "task": "multi-label-classification",
        "data": {"train": "data", "augment": [{"kind": "mixup"}, {"kind": "cutmix"}]},
        "student": {"architecture": "mlp", "hidden": [16]},
        "recipe": {
            "losses": [{"kind": "binary-cross-entropy", "pos_weight": 2.0, "label_smoothing": 0.1}],
            "optimizer": {"kind": "adamw", "lr": 0.03},
            "epochs": 15,
            "batch_size": 8,
        },
        "export": ["safetensors"],
        "seed": 1,
    }
    bundle = finished(tmp_path, Assignment(spec=JobSpec.model_validate(document), inputs={"data": "data.npz"}))
    assert json.loads((bundle / "report.json").read_text())["student"]["map"] > 0.9


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"class_order": ["cat", "dog"]}, "label 'night' in row"),
        ({"class_order": ["cat", "dog", "night", "fog"]}, "only data.class_order"),
    ],
)
def test_classes_that_the_teacher_lacks_are_refused(
    tmp_path: Path, teacher: Path, data: dict[str, Any], told: str
) -> None:
    word: Message | Any = play(stage(tmp_path / "s", teacher, data), tmp_path / "s").word
    assert isinstance(word, Failed)
    assert word.fault == "user"
    assert told in word.message


def many(folder: Path, **changes: Any) -> Assignment:
    """A job on lists of six labels of texts; a label is the last letter of each word."""
    draw, words = random.Random(1), ["ta", "re", "mi", "so", "fu", "ny"]
    rows = [draw.sample(words, draw.randrange(1, 4)) for _ in range(60)]
    lines = [json.dumps({"x": " ".join(row), "y": [word[1] for word in row]}) for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "texts").write_text("\n".join(lines) + "\n")
    document = {
        "task": "multi-label-classification",
        "data": {"train": "texts", "format": "jsonl", "input_columns": ["x"], "label_columns": ["y"], "max_length": 8},
        "student": {"architecture": "transformers", "config": BERT},
        "recipe": {"losses": [{"kind": "binary-cross-entropy"}], "epochs": 3, "batch_size": 12},
        "export": FORMATS[:2],
        "seed": 1,
    }
    spec = JobSpec.model_validate({**document, **changes})
    return Assignment(spec=spec, inputs={name: name for name in spec.references.values()})


def test_listed_labels_train_the_model_of_whole_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = finished(tmp_path / "whole", many(tmp_path / "whole"))
    monkeypatch.setattr(label_sets, "MANY_LABELS", 5)
    monkeypatch.setattr(multi_label, "MANY_LABELS", 5)
    listed = finished(tmp_path / "listed", many(tmp_path / "listed"))
    models = [load_model(folder).state_dict() for folder in (whole, listed)]
    for name, weights in models[0].items():
        torch.testing.assert_close(models[1][name], weights, rtol=1e-4, atol=1e-5, msg=name)
    reports = [json.loads((folder / "report.json").read_text()) for folder in (whole, listed)]
    assert reports[0]["samples"] == reports[1]["samples"]
    kept = {name: value for name, value in reports[1]["student"].items() if name in LABELS.metrics}
    assert set(kept) == {"precision_at_1", "precision_at_3", "precision_at_5", "nll"}
    assert kept == pytest.approx({name: reports[0]["student"][name] for name in kept}, rel=1e-4)
    assert reports[1]["epochs"]["by"] == "precision_at_1"
    assert any("there are no map, micro_f1" in warning["message"] for warning in reports[1]["warnings"])
    require_same_bits(many, tmp_path / "resumed")


def test_listed_labels_learn_from_a_teacher_that_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_sets, "MANY_LABELS", 5)
    monkeypatch.setattr(multi_label, "MANY_LABELS", 5)
    folder = finished(tmp_path / "first", many(tmp_path / "first"))
    losses = [{"kind": "binary-cross-entropy"}, {"kind": "binary-kd"}]
    recipe = {"losses": losses, "epochs": 2, "batch_size": 12}
    (tmp_path / "second").mkdir()
    shutil.copytree(folder, tmp_path / "second" / "teacher")
    taught = many(tmp_path / "second", recipe=recipe, teacher={"model": "teacher"})
    report = json.loads((finished(tmp_path / "second", taught) / "report.json").read_text())
    assert report["teacher"]["precision_at_1"] > 0.0
    assert "agreement" not in report["student"]


def test_a_format_that_needs_a_number_for_each_label_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_labels, "MANY_LABELS", 5)
    word = play(many(tmp_path, export=FORMATS), tmp_path).word
    assert isinstance(word, Failed)
    assert word.param == "export"
