"""Estimated memory of trainers against measured memory (docs/performance.md, "Estimates")."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.recipe.data.facts import ArrayFacts, SampleFacts
from app.recipe.data.headers import sample_facts
from app.recipe.footprint import MB, READING_COPIES, TRAINER_BYTES, footprints, network_costs, rough_cost
from app.recipe.job import JobSpec
from app.recipe.plan import NetworkCosts
from app.recipe.students.architectures import Mlp
from app.recipe.students.inputs import ImageInput, Input, TextInput
from app.recipe.students.model import ModelConfig, Preprocessing
from worker.data.task_data import TaskData
from worker.tasks import TASKS as TRAINED

DIGITS, PICTURES = ImageInput(channels=1, height=8, width=8), ImageInput(channels=3, height=32, width=32)
LLAMA = {"model_type": "llama", "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
MEASURED: list[tuple[dict[str, Any], Input, int, int, int]] = [
    ({"architecture": "mlp", "hidden": [64]}, DIGITS, 1000, 128, 560),
    ({"architecture": "mlp", "hidden": [4096, 4096]}, DIGITS, 1000, 128, 961),
    ({"architecture": "mlp", "hidden": [64]}, PICTURES, 20_000, 512, 769),
    ({"architecture": "cifar-resnet", "depth": 20}, PICTURES, 600, 32, 596),
    ({"architecture": "cifar-resnet", "depth": 20}, PICTURES, 600, 480, 1497),
    ({"architecture": "mobilenet-v2"}, PICTURES, 600, 128, 777),
    ({"architecture": "shufflenet-v2"}, PICTURES, 600, 128, 1340),
    ({"architecture": "vit", "width": 256, "depth": 8}, PICTURES, 600, 128, 1709),
    (
        {"architecture": "transformers", "config": LLAMA | {"intermediate_size": 352}},
        TextInput(length=128, vocabulary=1000),
        400,
        16,
        789,
    ),
]
"""Student, input, samples, batch, and the peak of the trainer's resident memory in MiB, on two cores."""


def job(student: dict[str, Any], **fields: Any) -> JobSpec:
    recipe = {"losses": [{"kind": "cross-entropy"}], **fields.pop("recipe", {})}
    return JobSpec.model_validate({"data": {"train": "file_a"}, "student": student, "recipe": recipe, **fields})


def size_of(sample: Input) -> int:
    return sample.length * 8 if isinstance(sample, TextInput) else sample.channels * sample.height * sample.width


@pytest.mark.parametrize(("student", "sample", "samples", "batch", "measured"), MEASURED)
def test_the_estimate_lies_within_a_quarter_of_what_was_measured(
    student: dict[str, Any], sample: Input, samples: int, batch: int, measured: int
) -> None:
    spec = job(student, recipe={"batch_size": batch})
    cost = rough_cost(spec.student, sample, 10)
    assert cost is not None
    found = footprints(spec, spec.student, NetworkCosts(cost), samples, size_of(sample))["cpu"]
    assert found.host / MB == pytest.approx(measured, rel=0.25)
    assert found.gpu is None


def test_learners_are_a_teacher_that_learns_and_all_peers() -> None:
    def learners(method: dict[str, Any]) -> tuple[int, int]:
        spec = job({"architecture": "mlp"}, teacher={"model": "model_a"}, recipe={"method": method})
        cost = rough_cost(spec.student, DIGITS, 10)
        assert cost is not None
        given = Preprocessing(mean=[0.0], std=[1.0])
        teacher = ModelConfig(architecture=Mlp(), input=DIGITS, classes=10, preprocessing=given)
        found = network_costs(spec, spec.student, cost, {"teacher": teacher}, DIGITS, 10)
        assert found is not None
        return len(found.teachers), len(found.learners)

    assert learners({"kind": "supervised"}) == (1, 0)
    assert learners({"kind": "online"}) == learners({"kind": "meta"}) == (0, 1)
    assert learners({"kind": "hpm"}) == (1, 1)
    assert learners({"kind": "mutual", "students": 3}) == (1, 2)
    others = [{"architecture": "mlp", "hidden": [3]}, {"architecture": "mlp", "hidden": [4]}]
    assert learners({"kind": "mutual", "students": 3, "architectures": others}) == (1, 2)


def test_every_process_brings_its_own_torch() -> None:
    student = {"architecture": "mlp", "hidden": [8]}
    one, two = job(student), job(student, resources={"processes": 2, "queue": "cpu"})
    cost = rough_cost(one.student, DIGITS, 10)
    assert cost is not None
    found = [footprints(spec, spec.student, NetworkCosts(cost), 100, 64)["cpu"].host for spec in (one, two)]
    assert found[1] - found[0] >= TRAINER_BYTES


def test_the_rough_cost_of_a_small_llama_is_near_its_real_one() -> None:
    spec = job({"architecture": "transformers", "config": LLAMA | {"intermediate_size": 352}})
    cost = rough_cost(spec.student, TextInput(length=128, vocabulary=1000), 1000)
    assert cost is not None
    per_layer = 4 * 128 * 128 + 3 * 128 * 352
    assert cost.parameters == 4 * per_layer + 1000 * 128
    unknown = job({"architecture": "transformers", "config": {"model_type": "resnet"}})
    assert rough_cost(unknown.student, PICTURES, 10) is None


MULTI: dict[str, Any] = {
    "student": {"architecture": "mlp", "hidden": [4]},
    "recipe": {"losses": [{"kind": "binary-cross-entropy"}]},
}
ENCODER = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = [{"words": ["a"] * (row + 1), "tags": ["X"] * row + ["Y"]} for row in range(20)]
NAMED = [{"words": f"a {row}", "tags": ["X", "Y", "Z"][: row % 4]} for row in range(20)]


def texts(folder: Path, task: str, rows: list[dict[str, Any]]) -> tuple[JobSpec, TaskData]:
    (folder / "texts").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"input_columns": ["words"], "label_columns": ["tags"]}
    data = {"train": "texts", "format": "jsonl", "max_length": 12, **columns}
    losses = [{"kind": "binary-cross-entropy" if task.startswith("multi") else "cross-entropy"}]
    student = {"architecture": "transformers", "config": ENCODER}
    spec = JobSpec.model_validate({"task": task, "data": data, "student": student, "recipe": {"losses": losses}})
    return spec, TRAINED[spec.task].load(spec, {"texts": folder / "texts"}, {}, 0)


def images(folder: Path, task: str, labels: np.ndarray[Any, Any], loss: str) -> tuple[JobSpec, TaskData]:
    np.savez(folder / "data.npz", x=np.zeros((20, 4, 4), np.uint8), y=labels)
    data, student = {"train": "data"}, {"architecture": "mlp", "hidden": [4]}
    recipe = {"losses": [{"kind": loss}]}
    spec = JobSpec.model_validate({"task": task, "data": data, "student": student, "recipe": recipe})
    return spec, TRAINED[spec.task].load(spec, {"data": folder / "data.npz"}, {}, 0)


def of_kind(kind: str, folder: Path) -> tuple[JobSpec, TaskData]:
    labels = np.eye(5, dtype=np.uint8)[np.arange(20) % 5]
    match kind:
        case "words":
            return texts(folder, "token-classification", WORDS)
        case "labels of texts":
            return texts(folder, "multi-label-classification", NAMED)
        case "labels of images":
            return images(folder, "multi-label-classification", labels, "binary-cross-entropy")
        case "numbers":
            return images(folder, "regression", labels.astype(np.float32), "mse")
    return images(folder, "image-classification", labels.argmax(-1), "cross-entropy")


@pytest.mark.parametrize("kind", ["words", "labels of texts", "labels of images", "numbers", "classes"])
def test_targets_take_as_much_as_the_arrays_that_are_read(kind: str, tmp_path: Path) -> None:
    spec, data = of_kind(kind, tmp_path)
    each = spec.task_spec.target_bytes(data.model.input, data.model.outputs)
    targets = data.train.targets
    assert targets.nbytes == each * len(targets)
    cost = rough_cost(spec.student, data.model.input, data.model.outputs)
    assert cost is not None
    large = [
        footprints(spec, spec.student, NetworkCosts(cost), 10**7, 0, size)["cpu"].host for size in (each, 2 * each)
    ]
    assert large[1] - large[0] == READING_COPIES * 10**7 * each


def test_an_array_of_labels_tells_how_many_classes_there_are() -> None:
    spec = JobSpec.model_validate({"task": "multi-label-classification", "data": {"train": "f"}, **MULTI})
    archive = {"x": ArrayFacts((20, 4, 4), "u1"), "y": ArrayFacts((20, 300), "u1")}
    facts = sample_facts(spec.data, spec.task_spec, archive)
    assert isinstance(facts, SampleFacts)
    assert (facts.classes, facts.targets) == (300, None)
    assert spec.task_spec.target_bytes(facts.input, facts.classes or 0) == 1200
