"""A job of every kind that the contract knows, through a running service: all queued at once, each to its end."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from app.cli.client import Client
from app.cli.objects import Job
from app.recipe.augmentation import AUGMENTATIONS
from app.recipe.students import STUDENTS
from app.recipe.task import ALL_TASKS
from tests import kinds
from tests.app.cli.process import environment, running
from tests.kinds import KINDS, SAMPLES, SIDE, job_of, methods, small_job

Document = dict[str, Any]
WEIGHTS = "model.safetensors"
SECONDS = 280
"""Longest time that all jobs together may take."""
LABELS: Document = {"losses": [{"kind": "cross-entropy"}], "epochs": 1}
NUMBERS: Document = {"losses": [{"kind": "mse"}], "epochs": 1}
MLP: Document = {"architecture": "mlp", "hidden": [8]}
BERT: Document = {
    "architecture": "transformers",
    "config": {
        **{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 16, "max_position_embeddings": 16},
    },
}
TEXTS: Document = {
    **{"train": "texts.csv", "format": "csv", "input_columns": ["text"], "label_columns": ["label"]},
    "max_length": 8,
}
TABLE: Document = {"train": "table.csv", "format": "csv", "input_columns": ["a", "b"], "label_columns": ["sum"]}
METRICS = {
    "image-classification": {"accuracy", "nll", "ece", "brier"},
    "text-classification": {"accuracy", "nll", "ece", "brier"},
    "regression": {"rmse", "mae", "r2"},
    "keypoints": {"nme", "failure_rate", "auc"},
}
"""What a report must tell of the student, by task."""
AUGMENTED: dict[str, Document] = {
    "crop": {"padding": 2},
    "cutout": {"size": 2},
    **dict.fromkeys(("flip", "rand-augment", "mixup", "cutmix", "self-mix", "token-mask", "token-delete"), {}),
}
"""Settings by the kind of augmentation."""
BUILT: dict[str, Document] = {
    "mlp": {},
    "cifar-resnet": {"depth": 8, "width": 2},
    "wide-resnet": {"depth": 10},
    "cifar-vgg": {"width": 2},
    "mobilenet-v2": {"multiplier": 0.1},
    "shufflenet-v2": {"size": "0.5x"},
    "vit": {"width": 8, "depth": 1, "heads": 2},
    "transformers": {"config": {**BERT["config"], "model_type": "vit", "patch_size": 4}},
    "shrink": {"layers": 1},
}
"""Settings by the architecture of the student."""


def augmented(kind: str) -> Document:
    step = {"kind": kind, **AUGMENTED[kind]}
    if kind.startswith("token"):
        return small_job(LABELS, BERT, "text-classification", data={**TEXTS, "augment": [step]})
    steps = [{"kind": "crop", "padding": 1}, step] if kind == "self-mix" else [step]
    return small_job(LABELS, MLP, data={"train": "classes", "augment": steps})


def built(architecture: str) -> Document:
    student = {"architecture": architecture, **BUILT[architecture]}
    if architecture != "shrink":
        return small_job(LABELS, student, export=["safetensors", "onnx"] if architecture == "vit" else ["safetensors"])
    taught = {**LABELS, "losses": [{"kind": "kd"}]}
    return small_job(taught, student, teacher={"model": "vit"})


def tasks() -> dict[str, Document]:
    """A job of every task, by its name; two of regression."""
    return {
        "image-classification": small_job(LABELS, MLP, export=["safetensors", "onnx", "onnx-int8", "torch-export"]),
        "text-classification": small_job(LABELS, BERT, "text-classification", data=TEXTS),
        "regression": small_job(NUMBERS, MLP, "regression", data=TABLE),
        "regression of images": small_job(NUMBERS, kinds.CNN, "regression", data={"train": "numbers"}),
        "keypoints": small_job(
            NUMBERS,
            kinds.CNN,
            "keypoints",
            data={"train": "points", "augment": [{"kind": "flip", "pairs": [[0, 1]]}]},
        ),
    }


def defaults(options: Any, field: str) -> list[str]:
    return [option.model_fields[field].default for option in options]


JOBS: dict[str, Document] = {
    **{f"loss {kind}": job_of(kind) for kind in KINDS},
    **{f"augmentation {kind}": augmented(kind) for kind in defaults(AUGMENTATIONS, "kind")},
    **{f"student {name}": built(name) for name in defaults(STUDENTS, "architecture")},
    **{f"task {name}": job for name, job in tasks().items()},
}


class Service(NamedTuple):
    """A running service, and the ids of what was uploaded and registered, by the names that the jobs have for it."""

    client: Client
    ids: dict[str, str]

    def addressed(self, job: Document) -> Document:
        """The job with ids in the place of names."""
        named = {**job, "data": {**job["data"], "train": self.ids[job["data"]["train"]]}}
        if "teacher" in job:
            named["teacher"] = {**job["teacher"], "model": self.ids[job["teacher"]["model"]]}
        if "teachers" in job:
            named["teachers"] = [{**one, "model": self.ids[one["model"]]} for one in job["teachers"]]
        return named


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("kinds")
    inputs = root / "inputs"
    inputs.mkdir()
    kinds.write_data(inputs)
    write_tables(inputs)
    kinds.write_teachers(inputs)
    with running(environment(root / "data")) as (_, hello), Client(hello["url"], hello["key"]) as client:
        files = {path: client.upload(path).id for path in inputs.iterdir() if path.is_file()}
        ids = {(path.stem if path.suffix == ".npz" else path.name): file for path, file in files.items()}
        for folder in inputs.iterdir():
            if folder.is_dir():
                config = json.loads((folder / "config.json").read_text())
                weights = client.upload(folder / WEIGHTS, reuse=False).id
                ids[folder.name] = client.register_model(weights, config, folder.name).id
        yield Service(client, ids)


def write_tables(folder: Path) -> None:
    """Texts of two classes, a table whose last column is the sum of the others, and images with two numbers each."""
    random = np.random.default_rng(0)
    words = [("a good day", "pleased"), ("a bad night", "cross")]
    write_csv(folder / "texts.csv", ("text", "label"), [words[index % 2] for index in range(SAMPLES)])
    rows = random.random((SAMPLES, 2))
    write_csv(folder / "table.csv", ("a", "b", "sum"), [(a, b, a + b) for a, b in rows.tolist()])
    images = random.integers(0, 256, (SAMPLES, SIDE, SIDE), dtype=np.uint8)
    np.savez(folder / "numbers.npz", x=images, y=random.random((SAMPLES, 2)))


def write_csv(path: Path, header: tuple[str, ...], rows: list[Any]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(scope="module")
def ended(service: Service) -> dict[str, Job]:
    """Every job at its end, by its name; none was waited for before the last was queued."""
    queued = {name: service.client.submit(service.addressed(job)).id for name, job in JOBS.items()}
    return {name: service.client.wait(job, timeout_seconds=SECONDS) for name, job in queued.items()}


@pytest.mark.parametrize("name", JOBS)
def test_it_succeeds_and_what_it_made_can_be_fetched(
    service: Service, ended: dict[str, Job], name: str, tmp_path: Path
) -> None:
    job = ended[name]
    assert job.status == "succeeded", job.error
    weights = load_file(service.client.download(job.id, WEIGHTS, tmp_path))
    report = json.loads(service.client.download(job.id, "report.json", tmp_path).read_text())
    assert sum(values.size for values in weights.values()) >= report["student"]["parameters"] > 0
    assert METRICS[report["task"]] <= report["student"].keys()
    assert report["task"] == job.spec["task"]
    taught = [one["name"] for one in job.spec["teachers"] or [job.spec["teacher"]] if one]
    assert list(report["teachers"]) == taught


def test_there_is_a_job_for_every_task() -> None:
    assert {job["task"] for job in JOBS.values()} == set(ALL_TASKS)


@pytest.mark.parametrize("method", methods())
def test_every_method_of_the_examples_is_valid(service: Service, method: str) -> None:
    answer = service.client.validate(service.addressed(small_job(methods()[method])))
    assert answer.valid, answer
