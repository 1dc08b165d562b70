"""Rules that span several fields of a job, or a job and its inputs."""

from __future__ import annotations

from typing import Any

import pytest

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import Archive, ArrayFacts, SampleFacts
from app.recipe.data.headers import sample_facts
from app.recipe.job import JobSpec
from app.recipe.students.inputs import ImageInput, TextInput
from app.recipe.students.model import ModelConfig


def archive(shape: tuple[int, ...] = (100, 8, 8), dtype: str = "u1", **labels: Any) -> Archive:
    return {"x": ArrayFacts(shape, dtype), "y": ArrayFacts(**{"shape": shape[:1], "dtype": "i8", **labels})}


def job(**fields: Any) -> JobSpec:
    document: dict[str, Any] = {
        "data": {"train": "file_a"},
        "student": {"architecture": "mlp"},
        "recipe": {"losses": [{"kind": "cross-entropy"}]},
    }
    return JobSpec.model_validate({**document, **fields})


def teacher(**fields: Any) -> ModelConfig:
    document: dict[str, Any] = {
        "architecture": {"architecture": "mlp"},
        "input": {"channels": 1, "height": 8, "width": 8},
        "preprocessing": {"mean": [0.0], "std": [1.0]},
        "classes": 10,
    }
    return ModelConfig.model_validate({**document, **fields})


def known(**fields: Any) -> dict[str, ModelConfig]:
    return {"model_a": teacher(**fields)}


def params(spec: JobSpec, **facts: Any) -> list[str]:
    return [problem.param for problem in find_problems(spec, InputFacts(**{"train": archive(), **facts}))]


DISTILLED = {"teacher": {"model": "model_a"}, "recipe": {"losses": [{"kind": "kd"}]}}


def test_a_sound_job_has_no_problem() -> None:
    assert params(job()) == []
    assert params(job(**DISTILLED), teachers=known(), eval=archive((20, 8, 8))) == []


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((5, 8, 9), "NHWC", (1, 8, 9)),
        ((5, 8, 9, 3), "NHWC", (3, 8, 9)),
        ((5, 3, 8, 9), "NCHW", (3, 8, 9)),
    ],
)
def test_the_layout_defines_the_axes(shape: tuple[int, ...], layout: str, expected: tuple[int, int, int]) -> None:
    spec = job(data={"train": "file_a", "layout": layout})
    channels, height, width = expected
    image = ImageInput(channels=channels, height=height, width=width)
    assert sample_facts(spec.data, spec.task_spec, archive(shape)) == SampleFacts(5, image, 72 * channels, pixels=True)


@pytest.mark.parametrize(
    "facts",
    [
        archive((100, 64)),
        archive(dtype="O"),
        archive(dtype="i4"),
        archive((0, 8, 8)),
        archive((100, 8, 0)),
        archive((10, 8, 5000)),
        archive((10, 8, 8, 2000)),
        archive(dtype="f4", shape=(100, 8, 8)) | {"y": ArrayFacts((99,), "i8")},
        archive() | {"y": ArrayFacts((100, 10), "f4")},
        archive() | {"y": ArrayFacts((100,), "f4")},
    ],
)
def test_arrays_that_are_not_labelled_images_are_refused(facts: Archive) -> None:
    assert params(job(), train=facts) == ["data.train"]


def test_a_missing_array_names_those_that_are_there() -> None:
    problems = find_problems(job(data={"train": "file_a", "input_key": "images"}), InputFacts(train=archive()))
    assert [(problem.param, problem.accepted) for problem in problems] == [("data.input_key", "one of x, y")]


def test_evaluation_images_must_have_the_size_of_the_training_images() -> None:
    assert params(job(), eval=archive((20, 9, 9))) == ["data.eval"]


def test_one_sample_can_not_be_held_out() -> None:
    assert params(job(), train=archive((1, 8, 8))) == ["data.train"]


def test_a_loss_that_learns_from_a_teacher_needs_one_and_a_teacher_needs_such_a_loss() -> None:
    assert params(job(recipe={"losses": [{"kind": "nkd"}]})) == ["teacher"]
    assert params(job(teacher={"model": "model_a"})) == ["teacher"]


def test_several_teachers_have_names_and_losses_name_them() -> None:
    both = {"teachers": [{"model": "model_a", "name": "wise"}, {"model": "model_b", "name": "quick"}]}
    terms = {"recipe": {"losses": [{"kind": "kd", "teacher": "wise"}, {"kind": "nkd"}]}}
    assert params(job(**both, **terms)) == []
    assert params(job(**both, **recipe({"kind": "kd", "teacher": "slow"}))) == ["recipe.losses[0].teacher"]
    assert params(job(**both, **terms, teacher={"model": "model_c"})) == ["teachers"]
    same = {"teachers": [{"model": "model_a"}, {"model": "model_b"}]}
    assert params(job(**same, **terms)) == ["teachers", "recipe.losses[0].teacher"]


def test_the_losses_of_a_stage_are_held_to_the_same_rules() -> None:
    stages = [{"losses": [{"kind": "kd", "teacher": "slow"}], "epochs": 1}]
    spec = job(teacher={"model": "model_a"}, recipe={"losses": [{"kind": "kd"}], "stages": stages})
    assert params(spec) == ["recipe.stages[0].losses[0].teacher"]


def test_a_loss_is_for_some_tasks() -> None:
    assert params(job(task="regression")) == ["recipe.losses[0].kind"]


def test_a_teacher_must_fit_the_data() -> None:
    assert params(job(**DISTILLED), teachers=known(input={"channels": 3, "height": 8, "width": 8})) == ["teacher.model"]
    spec = job(**DISTILLED, data={"train": "file_a", "classes": 7})
    assert params(spec, teachers=known()) == ["data.classes"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"student": {"architecture": "vit", "patch_size": 3}}, "student.patch_size"),
        ({"student": {"architecture": "vit", "width": 10, "heads": 4}}, "student.heads"),
        (
            {"recipe": {"losses": [{"kind": "cross-entropy"}], "batch_size": 4, "accumulate": 8}},
            "recipe.accumulate",
        ),
        (
            {
                "recipe": {
                    "losses": [{"kind": "cross-entropy"}],
                    "epochs": 5,
                    "schedule": {"kind": "multi-step", "milestones": [2.0, 5.0]},
                }
            },
            "recipe.schedule.milestones",
        ),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(fields: dict[str, Any], param: str) -> None:
    assert params(job(**fields)) == [param]


def test_all_problems_are_reported_at_once() -> None:
    spec = job(student={"architecture": "vit", "patch_size": 3, "width": 10}, recipe={"losses": [{"kind": "kd"}]})
    assert params(spec) == ["teacher", "student.patch_size", "student.heads"]


def recipe(term: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"recipe": {"losses": [term], **more}}


def test_a_loss_that_compares_samples_refuses_to_see_a_batch_in_parts() -> None:
    distilled = {"teacher": {"model": "model_a"}}
    assert params(job(**distilled, **recipe({"kind": "dist"}))) == []
    assert params(job(**distilled, **recipe({"kind": "dist"}, accumulate=2))) == ["recipe.accumulate"]
    assert params(job(**distilled, **recipe({"kind": "kd"}, accumulate=2))) == []


@pytest.mark.parametrize(("classes", "found"), [(3, []), (4, ["recipe.losses[0].parents"]), (None, ["data.classes"])])
def test_a_hierarchy_has_a_number_for_each_class(classes: int | None, found: list[str]) -> None:
    spec = job(data={"train": "file_a", "classes": classes}, **recipe({"kind": "kd-rel", "parents": [0, 0, 1]}))
    assert params(spec) == found


def test_a_hierarchy_has_a_number_for_each_class_of_the_teacher() -> None:
    terms = {"losses": [{"kind": "kd"}, {"kind": "kd-rel", "parents": [0, 0, 1]}]}
    spec = job(teacher={"model": "model_a"}, recipe=terms)
    assert params(spec) == []  # as long as the teacher is not known
    assert params(spec, teachers=known()) == ["recipe.losses[1].parents"]
    assert params(spec, teachers=known(classes=3)) == []


@pytest.mark.parametrize("term", [{"kind": "kd-topk", "k": 11}, {"kind": "ferkd", "top_k": 11}])
def test_a_loss_keeps_no_more_classes_than_there_are(term: dict[str, Any]) -> None:
    spec = job(teacher={"model": "model_a"}, **recipe(term))
    assert params(spec, teachers=known()) == [f"recipe.losses[0].{list(term)[1]}"]
    assert params(spec, teachers=known(classes=11)) == params(spec) == []


def test_a_network_of_images_or_tables_reads_no_texts() -> None:
    data = {"format": "csv", "train": "file_a", "input_columns": ["text"], "label_columns": ["label"]}
    texts = SampleFacts(9, TextInput(length=4, vocabulary=9), 32)
    assert params(job(task="text-classification", data=data), train=texts) == ["student.architecture"]


def test_a_teacher_of_another_task_is_refused_for_that_alone() -> None:
    spec = job(**DISTILLED, data={"train": "file_a", "classes": 10})
    assert params(spec, teachers=known(task="keypoints", classes=None, targets=6)) == ["teacher.model"]


def test_the_length_of_keypoint_errors_is_for_keypoints() -> None:
    assert params(job(evaluation={"nme_points": [0, 1]})) == ["evaluation.nme_points"]


def test_targets_are_softened_where_they_are_numbers() -> None:
    softened = {"data": {"train": "file_a", "targets_transform": {"kind": "soft-landmarks"}}}
    assert params(job(**softened)) == ["data.targets_transform"]
    points = archive(shape=(100, 9, 2), dtype="f4")
    numbers = {"task": "keypoints", "recipe": {"losses": [{"kind": "mse"}]}}
    assert params(job(**softened, **numbers), train=archive() | {"y": points["x"]}) == []


NORMALIZED, PROJECTED = {"kind": "normalized-gd"}, {"kind": "nap", "inner": {"kind": "adamw"}}
HINT = {"kind": "hint", "pairs": [{"teacher": "1", "student": "1"}]}
ENTROPY = {"kind": "cross-entropy"}


def test_steps_normalised_by_the_outputs_are_for_classification() -> None:
    numbers = {"task": "keypoints", "recipe": {"losses": [{"kind": "mse"}], "optimizer": NORMALIZED}}
    assert params(job(**numbers), train=archive() | {"y": ArrayFacts((100, 9, 2), "f4")}) == ["recipe.optimizer.kind"]


@pytest.mark.parametrize(
    ("recipe", "found"),
    [
        ({"losses": [HINT, ENTROPY], "optimizer": NORMALIZED}, []),
        ({"losses": [HINT], "optimizer": NORMALIZED}, ["recipe.optimizer.kind"]),
        (
            {"losses": [ENTROPY], "stages": [{"losses": [HINT], "epochs": 1, "optimizer": NORMALIZED}]},
            ["recipe.stages[0].optimizer.kind"],
        ),
        (
            {
                "losses": [ENTROPY],
                "optimizer": NORMALIZED,
                "stages": [{"losses": [HINT], "epochs": 1, "trains": "terms"}],
            },
            ["recipe.optimizer.kind"],
        ),
        ({"losses": [HINT, ENTROPY], "optimizer": PROJECTED}, ["recipe.optimizer.kind"]),
    ],
)
def test_an_optimizer_has_something_to_go_by(recipe: dict[str, Any], found: list[str]) -> None:
    assert params(job(teacher={"model": "model_a"}, recipe=recipe), teachers=known()) == found


def test_networks_with_normalisation_may_be_projected() -> None:
    student = {"architecture": "cifar-resnet", "depth": 8}
    assert params(job(student=student, recipe={"losses": [ENTROPY], "optimizer": PROJECTED})) == []


def test_a_module_path_that_a_network_of_the_zoo_lacks_is_refused_with_those_near_it() -> None:
    pairs = [{"teacher": "stages.1", "student": "stages.1"}, {"teacher": "stages.7", "student": "stage.2"}]
    document = {
        "data": {"train": "file_train"},
        "teacher": {"model": "model_t"},
        "student": {"architecture": "cifar-resnet", "depth": 8},
        "recipe": {"losses": [{"kind": "cross-entropy"}, {"kind": "hint", "pairs": pairs}]},
    }
    image = {"channels": 1, "height": 8, "width": 8}
    scaling = {"mean": [0.5], "std": [0.25]}
    network = {"architecture": "cifar-resnet", "depth": 14}
    teacher = ModelConfig.model_validate(
        {"architecture": network, "input": image, "preprocessing": scaling, "classes": 10}
    )
    problems = find_problems(JobSpec.model_validate(document), InputFacts(teachers={"model_t": teacher}))
    assert [(problem.param, problem.message) for problem in problems] == [
        ("recipe.losses[1].pairs[1].student", "the student has no module 'stage.2'"),
        ("recipe.losses[1].pairs[1].teacher", "teacher 'teacher' has no module 'stages.7'"),
    ]
    assert all("stages.2" in (problem.accepted or "") for problem in problems)
    unknown = find_problems(JobSpec.model_validate(document), InputFacts())
    assert [problem.param for problem in unknown] == ["recipe.losses[1].pairs[1].student"]
