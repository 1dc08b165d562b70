"""Meta distillation: one round, and the student's loss on texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from app.recipe.losses import CrossEntropy, Kd, KdMse, LogitMse, Loss, Pkd
from app.recipe.teachers.teacher import Teacher
from tests.golden import Case
from tests.golden.comparison import Comparison, evaluate
from tests.golden.features import Bench, pair
from worker.losses.base import LossInputs
from worker.losses.builder import LossBuilder
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.methods.meta_gradients import PilotLoss, Weights, second_order
from worker.outputs import TeacherSignal

META_GRADIENT = 1e-8
"""Of a difference of weights, divided by the rate: the file has no gradient itself."""


class _Net(nn.Module):
    """l2(tanh(l1(x)))."""

    def __init__(self, case: Case, side: str) -> None:
        super().__init__()
        names = ("l1.weight", "l1.bias", "l2.weight", "l2.bias")
        tensors = {name: case.inputs[f"{side}.{name}"].clone() for name in names}
        for layer in ("l1", "l2"):
            outputs, inputs = tensors[f"{layer}.weight"].shape
            setattr(self, layer, nn.Linear(inputs, outputs, dtype=torch.float64))
        self.load_state_dict(tensors)

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self.l2(torch.tanh(self.l1(rows)))
        return found


def metadistil(case: Case) -> Iterator[Comparison]:
    """A round with the images' loss, or the loss on texts."""
    return _text_loss(case) if "logit_s" in case.inputs else _round(case)


def _round(case: Case) -> Iterator[Comparison]:
    student, teacher = _Net(case, "student"), _Net(case, "teacher")
    batches = list(zip(case.inputs["x_train"], case.inputs["y_train"], strict=True))
    held = list(zip(case.inputs["x_held"], case.inputs["y_held"], strict=True))
    loss = partial(_loss, _objective(case))

    def pilot(rows: Tensor, labels: Tensor) -> PilotLoss:
        return PilotLoss(
            lambda: [teacher(rows)],
            lambda weights, taught: loss(functional_call(student, weights, (rows,)), taught[0], labels),
        )

    def quiz(weights: Weights) -> Tensor:
        answers = [F.cross_entropy(functional_call(student, weights, (rows,)), labels) for rows, labels in held]
        return torch.stack(answers).mean()

    pilots, parameters = [pilot(*batch) for batch in batches], list(teacher.parameters())
    found = second_order(dict(student.named_parameters()), pilots, quiz, parameters, case.hyper["pilot_lr"], list)
    _descend(teacher, found.gradients, **_rates(case, "teacher_optimizer"))
    yield from _compare(case, "teacher_meta_grad", teacher, found.gradients)
    yield from _compare(case, "teacher_after", teacher, parameters)

    optimizer = torch.optim.SGD(student.parameters(), **_rates(case, "student_optimizer"))
    for rows, labels in batches:
        optimizer.zero_grad()
        loss(student(rows), teacher(rows).detach(), labels).backward()
        optimizer.step()
    yield from _compare(case, "student_after", student, list(student.parameters()))


def _text_loss(case: Case) -> Iterator[Comparison]:
    """The part on hidden states has no gradient at the logits, and the others none at hidden states."""
    logits, teacher, labels = (case.inputs[name] for name in ("logit_s", "logit_t", "label"))
    alpha, rows = case.hyper["alpha"], LossInputs(logits, labels, teacher)
    # `logit-mse` has half of the mean square
    soft = LogitMse(weight=2.0) if "logits_mse" in case.name else KdMse(temperature=case.hyper["temperature"])
    yield Comparison("cross-entropy", "train_loss", evaluate([CrossEntropy()], rows)[0], case.outputs["train_loss"])
    yield Comparison(soft.kind, "soft_loss", evaluate([soft], rows)[0], case.outputs["soft_loss"])
    both = [soft.model_copy(update={"weight": alpha * soft.weight}), CrossEntropy(weight=1.0 - alpha)]
    gradient = evaluate(both, rows)[1]
    yield Comparison(soft.kind, "grad_logit_s", gradient, case.outputs["grad_logit_s"], is_gradient=True)
    yield from _patient_loss(case)


def _patient_loss(case: Case) -> Iterator[Comparison]:
    """On the first token of all layers but the last; `hidden_s` and `hidden_t` begin with the embeddings."""
    own, other = case.inputs["hidden_s"][1:-1], case.inputs["hidden_t"][1:]
    layers = [other[number] for number in case.hyper["teacher_layers_after_embedding_index"]]
    sides = {f"s{number}": each for number, each in enumerate(own)} | {
        f"t{number}": each for number, each in enumerate(layers)
    }
    bench = Bench(sides, [f"t{number}" for number in range(len(layers))])
    spec = Pkd(pairs=[pair(f"s{number}", f"t{number}") for number in range(len(layers))])
    loss, gradients = bench.run(bench.build(spec))
    yield Comparison("pkd", "pkd_loss", loss, case.outputs["pkd_loss"])
    for number in range(len(layers)):
        found, expected = case.hyper["beta"] * gradients[f"s{number}"], case.outputs["grad_hidden_s"][number + 1]
        yield Comparison("pkd", f"grad_hidden_s[{number + 1}]", found, expected, is_gradient=True)


def _objective(case: Case) -> Objective:
    alpha, temperature = case.hyper["alpha"], case.hyper["temperature"]
    # their mean square is of logits that are divided by the temperature
    mse = LogitMse(weight=2.0 * alpha / temperature**2)
    soft: Loss = Kd(temperature=temperature, weight=alpha) if case.hyper["kd"] == "kl" else mse
    return Objective([soft, CrossEntropy(weight=1.0 - alpha)], LossBuilder({}, {}, 3), [Teacher(model="golden")])


def _loss(objective: Objective, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    seen = BatchOutputs(student, labels, {"teacher": TeacherSignal(teacher)}, teacher_learns=True)
    return objective(seen, objective.count(labels))[TOTAL]


def _rates(case: Case, name: str) -> dict[str, float]:
    return {field: value for field, value in case.hyper[name].items() if field != "kind"}


def _descend(net: nn.Module, gradients: Sequence[Tensor], **settings: float) -> None:
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        parameter.grad = gradient
    torch.optim.SGD(net.parameters(), **settings).step()


def _compare(case: Case, output: str, net: nn.Module, found: Sequence[Tensor]) -> Iterator[Comparison]:
    is_gradient = output == "teacher_meta_grad"
    within = META_GRADIENT if is_gradient else 1e-9
    for (name, _), each in zip(net.named_parameters(), found, strict=True):
        full = f"{output}.{name}"
        yield Comparison("meta", full, each.detach(), case.outputs[full], is_gradient, within=within)
