"""Two students that inherit from each other's features, and explore what the other's lack."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from app.recipe.students.architectures import CifarResNet
from tests.worker.methods.test_mutual import networks, ran, report, vectors
from tests.worker.training.builders import document, play, require_same_bits, stage, weights
from tests.worker.training.test_loop import prepare
from worker.losses.features.inheritance import Encoders
from worker.methods.mutual import ENCODERS, MutualStep
from worker.methods.peer_features import PeerFeatures
from worker.protocol import Failed, Metrics
from worker.students.model import Model
from worker.students.weights import load_model
from worker.training.loop import Stage, set_rate
from worker.training.stages import begin_stage, wrap_learners
from worker.training.state import TrainState, fresh_learner, fresh_student

RESNET: dict[str, Any] = {"architecture": "cifar-resnet", "depth": 8, "width": 2}
PAIR = {"student": "stages.2", "teacher": "stages.2"}
FEATURES: dict[str, Any] = {"kind": "inheritance-exploration", "pair": PAIR}
METHOD: dict[str, Any] = {"kind": "mutual", "features": FEATURES}
STEPS, LR, WEIGHT = 3, 0.1, 0.5
Predicted = tuple[Tensor, tuple[Tensor, Tensor]]
"""Logits and codes of a student."""


def scene(method: dict[str, Any]) -> tuple[Stage, TrainState, PeerFeatures]:
    """A stage in float64 before its first step, with encoders for both students."""
    built, state = prepare(CifarResNet(depth=8, width=2), method=method)
    peer = fresh_student(state.student.config, 7).double()
    learner = fresh_learner(built.recipe, peer)
    spec: Any = built.recipe.method
    state.student.double()
    samples = built.batches.samples.to(torch.device("cpu"))
    samples.inputs["images"] = samples.inputs["images"].double()
    features = PeerFeatures(spec.features, [state.student, peer], samples, 0)
    for encoders in features.encoders:
        encoders.double()
    learner.aux_modules[ENCODERS] = features.encoders[1]
    built.objective.trained.append(features.encoders[0])
    state.learners["peer-1"] = learner
    wrap_learners(state, built.ranks)
    begin_stage(built, state)
    return built, state, features


def predict(model: Model, encoders: Encoders, images: Tensor) -> Predicted:
    found: list[Tensor] = []
    handle = model.network.get_submodule("stages.2").register_forward_hook(lambda *args: found.append(args[-1]))
    logits = model(images)
    handle.remove()
    return logits, encoders(found[0])


def unit(code: Tensor) -> Tensor:
    rows = code.flatten(1)
    return rows / rows.norm(dim=1, keepdim=True)


def distance(a: Tensor, b: Tensor, cosine: bool, explores: bool) -> Tensor:
    """As the paper has it, with p = 1; of cosines, the two losses differ."""
    if not cosine:
        return (unit(a) - unit(b)).abs().mean() * (-1 if explores else 1)
    cosines = (unit(a) * unit(b)).sum(1)
    return cosines.abs().mean() if explores else (1 - cosines).mean()


def loss_of(own: Predicted, other: Predicted, labels: Tensor, *, cosine: bool) -> Tensor:
    p, q = own[0].softmax(-1), other[0].detach().softmax(-1)
    total = F.cross_entropy(own[0], labels) + (q * (q.log() - p.log())).sum(-1).mean()
    inherited = distance(own[1][0], other[1][0].detach(), cosine, explores=False)
    explored = distance(own[1][1], other[1][1].detach(), cosine, explores=True)
    return total + WEIGHT * (0.7 * inherited + 0.3 * explored)


@pytest.mark.parametrize("updates", ["in-turn", "together"])
@pytest.mark.parametrize("distance_of", ["norm", "cosine"])
def test_both_students_take_the_steps_of_the_equations(updates: str, distance_of: str) -> None:
    features = {**FEATURES, "weight": WEIGHT, "inherit": 0.7, "explore": 0.3, "distance": distance_of}
    built, state, peers = scene({**METHOD, "features": features, "updates": updates})
    models, coders = deepcopy(networks(state)), deepcopy(peers.encoders)
    for number in range(STEPS):
        batch = built.batches.at(number)
        images, labels = batch.inputs["images"].double(), batch.targets
        pairs = list(zip(models, coders, strict=True))
        before = [predict(*pair, images) for pair in pairs]
        for index, (model, encoders) in enumerate(pairs):
            theirs = before[1 - index] if updates == "together" else predict(*pairs[1 - index], images)
            loss = loss_of(predict(model, encoders, images), theirs, labels, cosine=distance_of == "cosine")
            parameters = [*model.parameters(), *encoders.parameters()]
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for weight, gradient in zip(parameters, gradients, strict=True):
                    weight -= LR * gradient
    step = MutualStep(built.recipe.method, peers)  # type: ignore[arg-type]
    for number in range(STEPS):
        set_rate(built, state)
        inputs = built.step_inputs(number)
        for micro_batch in (inputs.batch, *inputs.micro_batches):
            micro_batch.inputs["images"] = micro_batch.inputs["images"].double()
        values = step(built, state, inputs)
        state.step += 1
    assert {"loss/inheritance-exploration", "peer-1/loss/inheritance-exploration"} <= values.keys()
    found = vectors([*networks(state), *peers.encoders])  # type: ignore[list-item]
    for ours, expected in zip(found, vectors([*models, *coders]), strict=True):  # type: ignore[list-item]
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-11)


def recipe(method: dict[str, Any] = METHOD, **changes: Any) -> dict[str, Any]:
    return {"losses": [{"kind": "cross-entropy"}], "method": method, "epochs": 2, **changes}


def test_a_job_that_is_stopped_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = recipe(ema_decay=0.8, precision="bf16", optimizer={"kind": "adamp", "lr": 0.01})
    require_same_bits(partial(stage, student=RESNET, recipe=settings), tmp_path)
    straight, halting = (report(tmp_path / name)["learners"] for name in ("straight", "halting"))
    assert straight == halting
    load_model(tmp_path / "straight" / "bundle")  # refuses tensors that are not the network's


def test_the_losses_of_both_are_reported_and_change_the_student(tmp_path: Path) -> None:
    other = {"architecture": "cifar-resnet", "depth": 8, "width": 3}
    method = {**METHOD, "architectures": [other], "features": {**FEATURES, "factors": 3}}
    played = ran(tmp_path / "both", student=RESNET, recipe=recipe(method))
    values = {name: value for metrics in played.of(Metrics) for name, value in metrics.values.items()}
    for name in ("train/loss/inheritance-exploration", "train/peer-1/loss/inheritance-exploration"):
        assert math.isfinite(values[name])
    ran(tmp_path / "logits", student=RESNET, recipe=recipe({**method, "features": None}))
    assert weights(tmp_path / "both") != weights(tmp_path / "logits")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"recipe": recipe({**METHOD, "students": 3})}, "recipe.method.features"),
        ({"recipe": recipe({**METHOD, "features": {**FEATURES, "name": "mine"}})}, "recipe.method.features.name"),
        ({"recipe": recipe({**METHOD, "features": {**FEATURES, "teacher": "x"}})}, "recipe.method.features.teacher"),
        ({"recipe": recipe(accumulate=2)}, "recipe.accumulate"),
        ({"recipe": recipe(), "resources": {"processes": 2, "queue": "cpu"}}, "resources.processes"),
        ({"recipe": recipe(), "task": "token-classification"}, "recipe.method.features"),
        ({"recipe": recipe(), "task": "text-classification"}, "recipe.method.features"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_field(changes: dict[str, Any], field: str) -> None:
    job = JobSpec.model_validate(document(**changes))
    assert field in [problem.param for problem in find_problems(job)]


@pytest.mark.parametrize(
    ("pair", "field"),
    [
        ({**PAIR, "student": "nowhere"}, "recipe.method.features.pair.student"),
        ({**PAIR, "teacher": "nowhere"}, "recipe.method.features.pair.teacher"),
        ({**PAIR, "teacher": "head"}, "recipe.method.features.pair.teacher"),
    ],
)
def test_a_place_without_a_map_is_refused(tmp_path: Path, pair: dict[str, str], field: str) -> None:
    method = {**METHOD, "features": {**FEATURES, "pair": pair}}
    word = play(stage(tmp_path, student=RESNET, recipe=recipe(method)), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", field)
