"""Jobs of anomaly detection: valid combinations, and refusals with their reasons."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import ArrayFacts
from app.recipe.defaults import resolve
from app.recipe.job import JobSpec
from app.recipe.losses import LOSSES
from app.recipe.methods import METHODS
from app.recipe.optimizers import AdamW, Cosine
from app.recipe.students.architectures import InpFormerNetwork
from app.recipe.students.derived import network_of, start_of, student_input
from app.recipe.students.model import ModelConfig
from app.recipe.students.reconstruction import feature_shape
from app.recipe.tasks import TASKS

Document = dict[str, Any]
TASK = "anomaly-detection"
STUDENT: Document = {
    **{"architecture": "inp-former", "model": "m", "layers": [["blocks.0", "blocks.1"], ["blocks.2"]]},
    "map_size": 8,
}
LOSS: list[Document] = [{"kind": "feature-reconstruction"}]
ENCODER: Document = {
    "architecture": {"architecture": "vit", "patch_size": 2, "width": 12, "depth": 4, "heads": 2},
    "input": {"channels": 1, "height": 8, "width": 8},
    "preprocessing": {"mean": [0.5], "std": [0.5]},
    "classes": 3,
}
OTHER: Document = {"task": "image-classification", "data": {"train": "f"}, "recipe": {"losses": [{"kind": "kd"}]}}
TABLE: Document = {"train": "f", "format": "parquet", "input_columns": ["image"]}


def job(**changes: Any) -> JobSpec:
    base = {"task": TASK, "data": {"train": "f"}, "student": STUDENT, "recipe": {"losses": LOSS}}
    return JobSpec.model_validate(base | changes)


def encoder(**changes: Any) -> dict[str, ModelConfig]:
    return {"m": ModelConfig.model_validate(ENCODER | changes)}


def problems(facts: InputFacts | None = None, **changes: Any) -> dict[str, str]:
    found = find_problems(job(**changes), facts or InputFacts(teachers=encoder()))
    return {problem.param: f"{problem.message}; {problem.accepted}" for problem in found}


def student(**changes: Any) -> Document:
    return {"student": STUDENT | changes}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": {"train": "f", "eval": "g", "mask_key": "mask", "normal_classes": ["3", "cat"]}},
        {"data": {"train": "f", "augment": [{"kind": "flip"}, {"kind": "crop"}, {"kind": "color-jitter"}]}},
        {"data": {"train": "f", "format": "image-folder", "image_size": [8, 8]}},
        {"data": TABLE},
        {"data": {**TABLE, "label_columns": ["kind"], "mask_column": "mask"}},
        {"recipe": {"losses": [*LOSS, {"kind": "prototype-coherence"}], "ema_decay": 0.9, "precision": "bf16"}},
        {"resources": {"processes": 2, "queue": "cpu"}},
        {"evaluation": {"keep": "best", "diagnostics": [{"kind": "anomaly-maps"}]}},
        {"student_image_size": [8, 8]},
        student(layers=[["blocks.3.feed_forward"]], prototypes=1, heads=3, mlp_ratio=1.0),
    ],
)
def test_what_goes_together_has_no_problem(changes: Document) -> None:
    assert problems(**changes) == {}


@pytest.mark.parametrize(
    ("changes", "param", "told"),
    [
        ({"teacher": {"model": "m"}}, "teacher", "learns from the encoder within its student"),
        (
            {"recipe": {"losses": [{"kind": "hint", "pairs": [{"teacher": "a", "student": "b"}]}]}},
            "recipe.losses[0].kind",
            "has its own encoder",
        ),
        ({"recipe": {"losses": [{"kind": "cross-entropy"}]}}, "recipe.losses[0].kind", "cross-entropy is not for"),
        ({"recipe": {"losses": LOSS, "accumulate": 2}}, "recipe.accumulate", "feature-reconstruction compares all"),
        (
            {"student": {"architecture": "cifar-resnet"}},
            "student.architecture",
            "cifar-resnet is not for anomaly-detection; inp-former",
        ),
        (
            {"student": {"architecture": "pretrained", "model": "m"}},
            "student.model",
            "vit is not for anomaly-detection",
        ),
        (
            OTHER | {"recipe": {"losses": [{"kind": "cross-entropy"}]}},
            "student.architecture",
            "inp-former is not for image-classification",
        ),
        (OTHER | {"recipe": {"losses": LOSS}}, "recipe.losses[0].kind", "feature-reconstruction is not for"),
        (OTHER | {"data": {"train": "f", "normal_classes": ["0"]}}, "data.normal_classes", "is for anomaly-detection"),
        (OTHER | {"data": {"train": "f", "mask_key": "m"}}, "data.mask_key", "is for anomaly-detection"),
        (OTHER | {"data": {**TABLE, "mask_column": "m"}}, "data.mask_column", "is for anomaly-detection"),
        ({"data": {"train": "f", "augment": [{"kind": "mixup"}]}}, "data.augment[0].kind", "mixup is not for"),
        ({"data": {"train": "f", "classes": 2}}, "data.classes", "answers with no classes"),
        ({"data": {**TABLE, "label_columns": ["a", "b"]}}, "data.label_columns", "names 2 columns; one column"),
        ({"embedding": {}}, "embedding", "is given, the task is anomaly-detection"),
        (
            {"evaluation": {"diagnostics": [{"kind": "calibration"}]}},
            "evaluation.diagnostics[0].kind",
            "calibration is not for",
        ),
        (
            student(layers=[["blocks.0"], ["block.1"]]),
            "student.layers[1][0]",
            "the encoder has no module 'block.1'; a path such as blocks",
        ),
        (student(heads=5), "student.heads", "5 does not divide the width 12"),
        ({"student_image_size": [16, 16]}, "student_image_size", "starts from weights for 1 x 8 x 8"),
        (
            {"resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"}},
            "recipe.losses[0].kind",
            "looks inside a model",
        ),
        (
            {"recipe": {"losses": LOSS, "method": {"kind": "adversarial"}}},
            "recipe.method.kind",
            "is adversarial, which is not for",
        ),
    ],
)
def test_what_can_t_work_is_refused_by_its_field(changes: Document, param: str, told: str) -> None:
    found = problems(**changes)
    assert param in found
    assert told in found[param]


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ({"architecture": "mlp"}, {}),
        (
            {
                "architecture": "inp-former",
                "layers": [["blocks.0"]],
                "encoder": ENCODER["architecture"],
                "encoder_outputs": 3,
                "map_size": 4,
            },
            {"task": TASK, "classes": None, "targets": 17},
        ),
    ],
)
def test_a_model_without_features_of_images_is_no_encoder(architecture: Document, more: Document) -> None:
    found = problems(InputFacts(teachers=encoder(architecture=architecture, **more)))
    assert "a model of images with maps or tokens" in found["student.model"]


def test_layers_of_different_shapes_are_refused_before_anything_is_built() -> None:
    cnn = encoder(architecture={"architecture": "wide-resnet", "depth": 10})
    found = problems(InputFacts(teachers=cnn), **student(layers=[["stages.0", "stages.1"]]))
    assert "stages.0: 16 x 64, stages.1: 32 x 16" in found["student.layers"]
    assert problems(InputFacts(teachers=cnn), **student(layers=[["stages.1", "stages.1.0"]])) == {}


def test_images_of_other_channels_are_refused() -> None:
    facts = InputFacts(train={"x": ArrayFacts((9, 8, 8, 3), "u1")}, teachers=encoder())
    assert "takes 1 x 8 x 8" in problems(facts)["student.model"]


@pytest.mark.parametrize(
    ("arrays", "param", "told"),
    [
        ({}, "data.mask_key", "data.train has no array 'mask'"),
        ({"mask": ArrayFacts((9, 8, 7), "u1")}, "data.mask_key", "(9, 8, 8), integers or booleans"),
        ({"mask": ArrayFacts((9, 8, 8), "f4")}, "data.mask_key", "dtype f4"),
        ({"mask": ArrayFacts((9, 8, 8), "b1"), "y": ArrayFacts((8,), "i8")}, "data.train", "9 samples but 8 labels"),
    ],
)
def test_masks_that_do_not_fit_are_refused_by_their_header(arrays: Document, param: str, told: str) -> None:
    facts = InputFacts(train={"x": ArrayFacts((9, 8, 8), "u1"), **arrays}, teachers=encoder())
    assert told in problems(facts, data={"train": "f", "mask_key": "mask"})[param]


def test_masks_are_of_the_file_to_evaluate_on() -> None:
    train, held = {"x": ArrayFacts((9, 8, 8), "u1")}, {"x": ArrayFacts((5, 8, 8), "u1")}
    data = {"train": "f", "eval": "g", "mask_key": "mask"}
    masked = InputFacts(train=train, eval={**held, "mask": ArrayFacts((5, 8, 8), "u1")}, teachers=encoder())
    assert problems(masked, data=data) == {}
    assert (
        "data.eval has no array"
        in problems(InputFacts(train=train, eval=held, teachers=encoder()), data=data)["data.mask_key"]
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": []},
        {"layers": [[]]},
        {"layers": [["a"], ["a"]]},
        {"map_size": 300},
        {"hub": "a/b"},
        {"layers": [["a b"]]},
    ],
)
def test_settings_out_of_bounds_are_refused(settings: Document) -> None:
    with pytest.raises(ValidationError):
        job(**student(**settings))


def test_the_network_has_its_encoder_and_reads_images_as_it_does() -> None:
    known = encoder()
    network = network_of(job(), known)
    assert isinstance(network, InpFormerNetwork)
    assert (network.encoder, network.encoder_outputs) == (known["m"].architecture, 3)
    assert (network.paths, network.outputs) == (["blocks.0", "blocks.1", "blocks.2"], 65)
    assert InpFormerNetwork.model_validate_json(network.model_dump_json()) == network
    assert start_of(job(), known) == known["m"]
    given = known["m"].input.model_copy(update={"height": 30})
    assert student_input(job(), known, given) == known["m"].input
    assert network_of(job(), {}) is None
    assert feature_shape(network, known["m"].input) == (12, 16)


def test_training_defaults_are_those_of_its_paper() -> None:
    resolved, chosen = resolve(job(), encoder())
    assert resolved.recipe.optimizer == AdamW(lr=1e-3, weight_decay=1e-4)
    assert resolved.recipe.schedule == Cosine(warmup_steps=100, final_ratio=0.1)
    assert all("2503.02424" in each.reason for each in chosen)


def test_losses_and_methods_are_those_without_a_teacher() -> None:
    fitting = {term.model_fields["kind"].default for term in LOSSES if TASKS[TASK].fits(term)}
    assert fitting == {"feature-reconstruction", "prototype-coherence"}
    assert [method.model_fields["kind"].default for method in METHODS if TASKS[TASK].fits(method)] == ["supervised"]
