"""A converted teacher is the same function, before and after its file is read again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Network, Transformers, Vit
from app.recipe.students.conversion import Convert
from app.recipe.students.converted import converted
from app.recipe.students.layers import LinearAttention, Silu
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from worker.errors import UserError
from worker.students.convert import convert, weights_of
from worker.students.model import Model

LIBRARY: dict[str, Any] = {
    **{"model_type": "vit", "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3},
    **{"intermediate_size": 20, "patch_size": 4},
}
TEACHERS: dict[str, Network] = {
    "vit": Vit(patch_size=4, width=12, depth=2, heads=3),
    "linear attention": Vit(
        patch_size=2, width=8, depth=1, heads=2, mlp_ratio=1.3, attention=LinearAttention(), activation=Silu()
    ),
    "library": Transformers(config=LIBRARY),
    "library without biases": Transformers(config={**LIBRARY, "qkv_bias": False, "hidden_act": "relu"}),
}
FORMS = ("pre-rmsnorm", "pre-crmsnorm")


def teacher_of(network: Network, classes: int = 5) -> Model:
    """With weights that are far from those of a fresh network, and means that are not 0."""
    torch.manual_seed(0)
    given = Preprocessing(scale=1 / 255, mean=[0.5] * 3, std=[0.3] * 3)
    config = ModelConfig(
        architecture=network, input=ImageInput(channels=3, height=8, width=8), preprocessing=given, classes=classes
    )
    model = Model(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.1, 0.3)
    return model


def spec_of(form: str) -> Convert:
    return Convert.model_validate({"architecture": "convert", "to": form})


def student_of(teacher: Model, form: str) -> Model:
    return Model(teacher.config.model_copy(update={"architecture": converted(spec_of(form), teacher.config)})).eval()


def images() -> Tensor:
    return torch.randint(0, 256, (6, 3, 8, 8)).float()


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("form", FORMS)
def test_the_logits_are_the_teachers(name: str, form: str) -> None:
    teacher = teacher_of(TEACHERS[name]).double()
    student = student_of(teacher, form).double()
    student.network.load_state_dict(weights_of(teacher, spec_of(form), student.network.state_dict()))
    pixels = images()
    expected = teacher(pixels)
    assert expected.std() > 0.1
    assert_close(student(pixels), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradients_at_the_pixels_are_the_teachers(form: str) -> None:
    teacher = teacher_of(TEACHERS["vit"]).double()
    student = student_of(teacher, form).double()
    student.network.load_state_dict(weights_of(teacher, spec_of(form), student.network.state_dict()))
    pixels = images().double().requires_grad_()
    outputs = (model.network(pixels).square().sum() for model in (student, teacher))
    found, expected = (torch.autograd.grad(each, pixels) for each in outputs)
    assert_close(found, expected, rtol=1e-8, atol=1e-9)


def job(**changes: Any) -> JobSpec:
    document = {"data": {"train": "file"}, "teacher": {"model": "m"}, "student": {"architecture": "convert"}}
    return JobSpec.model_validate({**document, "recipe": {"method": {"kind": "untrained"}}, **changes})


def test_a_student_of_a_job_takes_the_weights_and_any_other_keeps_its_own() -> None:
    teacher = teacher_of(TEACHERS["vit"])
    pixels, student = images(), student_of(teacher, "pre-rmsnorm")
    assert_close(convert(student, job(), {"teacher": teacher})(pixels), teacher(pixels), rtol=1e-4, atol=1e-4)
    other = Model(teacher.config).eval()
    before = other(pixels)
    plain = job(student={"architecture": "vit"}, recipe={"losses": [{"kind": "kd"}]})
    assert torch.equal(convert(other, plain, {"teacher": teacher})(pixels), before)


def test_other_outputs_than_the_teachers_are_refused() -> None:
    teacher = teacher_of(TEACHERS["vit"])
    student = student_of(teacher_of(TEACHERS["vit"], 4), "pre-rmsnorm")
    with pytest.raises(UserError, match="5 outputs for image-classification"):
        convert(student, job(), {"teacher": teacher})
