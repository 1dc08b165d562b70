"""Boundary supporting samples: the search, and the loss of a step with its gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.architectures import Mlp
from app.recipe.students.inputs import ImageInput
from app.recipe.students.model import ModelConfig, Preprocessing
from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.methods.boundary_samples import base_scores, choose_base, draw_classes, soft_cross_entropy
from worker.students.boundary import search_boundary, search_settings
from worker.students.model import Model

KIND = "boundary-samples"
Comparisons = Iterator[Comparison]


class _Network(nn.Module):
    """fc(mean over places of tanh(3x3 convolution)), of the weights of a case."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name.replace(".", "_"): value.clone() for name, value in weights.items()})

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.conv2d(images, self.weights["conv_weight"], self.weights["conv_bias"], padding=1).tanh()
        return F.linear(hidden.mean((2, 3)), self.weights["fc_weight"], self.weights["fc_bias"])


def bss(case: Case) -> Comparisons:
    yield from _step(case) if "label" in case.inputs else _search(case)


def _search(case: Case) -> Comparisons:
    inputs, hyper = case.inputs, case.hyper
    model = _model({name: inputs[name] for name in ("conv_weight", "conv_bias", "fc_weight", "fc_bias")})
    settings = search_settings(model, hyper["num_steps"], hyper["step_alpha"], hyper["clip"])
    with torch.no_grad():
        before = model.forward_normalized(inputs["x"])
        base = before.argmax(-1)
        found = search_boundary(model.forward_normalized, inputs["x"], base, inputs["target"], settings)
        after = model.forward_normalized(found.inputs)
    yield Comparison(KIND, "logits_before", before, case.outputs["logits_before"])
    yield Comparison(KIND, "x_adv", found.inputs, case.outputs["x_adv"])
    yield Comparison(KIND, "logits_after", after, case.outputs["logits_after"])
    yield Comparison(KIND, "flipped", after.argmax(-1) != base, case.outputs["flipped"])


def _step(case: Case) -> Comparisons:
    inputs, hyper, outputs = case.inputs, case.hyper, case.outputs
    student, teacher = (_model(_of(side, inputs)) for side in ("student", "teacher"))
    images, labels, temperature = inputs["x"], inputs["label"], float(hyper["temperature"])
    own, predicted = student.forward_normalized(images), teacher.forward_normalized(images).detach()
    rows = choose_base(base_scores(own.detach(), predicted, labels), hyper["attack_size"])
    target = draw_classes(predicted[rows], labels[rows], inputs["uniform"])
    settings = search_settings(teacher, hyper["num_steps"], hyper["step_alpha"], (-2.5, 2.5))
    moved = search_boundary(teacher.forward_normalized, images[rows], labels[rows], target, settings).inputs
    there = soft_cross_entropy(student.forward_normalized(moved), teacher.forward_normalized(moved), temperature).mean()
    imitation = soft_cross_entropy(own, predicted, temperature).mean()
    loss = F.cross_entropy(own, labels) + hyper["kd_weight"] * imitation + hyper["bss_weight"] * there
    weights = dict(student.network.named_parameters())
    gradients = torch.autograd.grad(loss, list(weights.values()))
    yield Comparison(KIND, "loss", loss.detach(), outputs["loss"])
    yield Comparison(KIND, "attacked_inputs", images[rows], outputs["attacked_inputs"])
    yield Comparison(KIND, "attack_target", target, outputs["attack_target"])
    yield Comparison(KIND, "x_adv", moved, outputs["x_adv"])
    for name, gradient in zip(weights, gradients, strict=True):
        output = f"grad_student.{name.removeprefix('weights.').replace('_', '.')}"
        yield Comparison(KIND, output, gradient, outputs[output], is_gradient=True)


def _of(side: str, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{side}."): value for name, value in inputs.items() if name.startswith(f"{side}.")}


def _model(weights: dict[str, Tensor]) -> Model:
    described = ModelConfig(
        architecture=Mlp(),  # not looked at: the network is given
        input=ImageInput(channels=3, height=6, width=6),
        preprocessing=Preprocessing(mean=[0.0] * 3, std=[1.0] * 3),
        classes=6,
    )
    return Model(described, _Network(weights)).eval()
