"""Estimated memory of trainers against measured memory (docs/performance.md, "Estimates")."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.footprint import MB, TRAINER_BYTES, footprints, rough_cost
from app.recipe.job import JobSpec
from app.recipe.students.inputs import ImageInput, Input, TextInput

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
    found = footprints(spec, spec.student, cost, [], samples, size_of(sample))["cpu"]
    assert found.host / MB == pytest.approx(measured, rel=0.25)
    assert found.gpu is None


def test_every_process_brings_its_own_torch() -> None:
    student = {"architecture": "mlp", "hidden": [8]}
    one, two = job(student), job(student, resources={"processes": 2, "queue": "cpu"})
    cost = rough_cost(one.student, DIGITS, 10)
    assert cost is not None
    found = [footprints(spec, spec.student, cost, [], 100, 64)["cpu"].host for spec in (one, two)]
    assert found[1] - found[0] >= TRAINER_BYTES


def test_the_rough_cost_of_a_small_llama_is_near_its_real_one() -> None:
    spec = job({"architecture": "transformers", "config": LLAMA | {"intermediate_size": 352}})
    cost = rough_cost(spec.student, TextInput(length=128, vocabulary=1000), 1000)
    assert cost is not None
    per_layer = 4 * 128 * 128 + 3 * 128 * 352
    assert cost.parameters == 4 * per_layer + 1000 * 128
    unknown = job({"architecture": "transformers", "config": {"model_type": "resnet"}})
    assert rough_cost(unknown.student, PICTURES, 10) is None
