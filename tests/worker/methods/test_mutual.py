"""Students that learn from each other."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from tests.worker.training.builders import (
    Played,
    document,
    play,
    require_same_bits,
    require_same_bits_after_death,
    stage,
    weights,
)
from tests.worker.training.test_loop import prepare
from worker.methods.mutual import MutualStep
from worker.protocol import Assignment, Failed, Finished, Metrics
from worker.students.model import Model
from worker.training.loop import Stage, set_rate
from worker.training.stages import begin_stage, wrap_learners
from worker.training.state import TrainState, fresh_learner, fresh_student

MUTUAL: dict[str, Any] = {"kind": "mutual"}
RECIPE: dict[str, Any] = {"method": MUTUAL, "epochs": 2}
STEPS, LR = 4, 0.1


def scene(method: dict[str, Any], **settings: Any) -> tuple[Stage, TrainState]:
    """A stage in float64 before its first step."""
    stage, state = prepare(method={**MUTUAL, **method}, **settings)
    for number in range(method.get("students", 2) - 1):
        peer = fresh_student(state.student.config, 7 + number).double()
        state.learners[f"peer-{number + 1}"] = fresh_learner(stage.recipe, peer)
    state.student.double()
    wrap_learners(state, stage.ranks)
    begin_stage(stage, state)
    return stage, state


def networks(state: TrainState) -> list[Model]:
    return [state.student, *(learner.model for learner in state.learners.values())]


def vectors(models: list[Model]) -> list[Tensor]:
    return [torch.cat([weight.detach().flatten().clone() for weight in model.parameters()]) for model in models]


def objective(logits: Tensor, others: list[Tensor], labels: Tensor, weight: float, reduce: str) -> Tensor:
    """As the paper has it, written out with probabilities."""
    p = logits.softmax(-1)
    terms = [(q * (q.log() - p.log())).sum(-1).mean() for q in (other.detach().softmax(-1) for other in others)]
    return F.cross_entropy(logits, labels) + weight * sum(terms, torch.zeros(())) / (
        len(terms) if reduce == "mean" else 1
    )


@pytest.mark.parametrize("updates", ["in-turn", "together"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_the_weights_are_those_of_the_paper_s_steps(updates: str, reduce: str) -> None:
    method = {"students": 3, "updates": updates, "peer_reduce": reduce, "weight": 0.7}
    stage, state = scene(method, accumulate=3)
    others = networks(scene(method)[1])
    for number in range(STEPS):
        batch = stage.batches.at(number)
        images, labels = batch.inputs["images"], batch.targets
        before = [model(images).detach() for model in others]
        for index, model in enumerate(others):
            answers = before if updates == "together" else [each(images).detach() for each in others]
            rest = [logits for other, logits in enumerate(answers) if other != index]
            loss = objective(model(images), rest, labels, 0.7, reduce)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for weight, gradient in zip(model.parameters(), gradients, strict=True):
                    weight -= LR * gradient
    step = MutualStep(stage.recipe.method)  # type: ignore[arg-type]
    for number in range(STEPS):
        set_rate(stage, state)
        step(stage, state, stage.step_inputs(number))
        state.step += 1
    for found, expected in zip(vectors(networks(state)), vectors(others), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def ran(folder: Path, **changes: Any) -> Played:
    played = play(stage(folder, **changes), folder)
    assert isinstance(played.word, Finished), played.word
    return played


def report(folder: Path) -> Any:
    return json.loads((folder / "bundle" / "report.json").read_text())


@pytest.mark.parametrize(
    "recipe",
    [{}, {"ema_decay": 0.8, "optimizer": {"kind": "adamp", "lr": 0.01}, "schedule": {"kind": "cosine"}}],
    ids=["plain", "averaged"],
)
def test_a_job_that_is_stopped_resumes_to_the_same_bits(tmp_path: Path, recipe: dict[str, Any]) -> None:
    dropping = {"architecture": "mlp", "hidden": [8]}
    require_same_bits(partial(stage, student=dropping, recipe={**RECIPE, **recipe}), tmp_path)
    straight, halting = (report(tmp_path / name)["learners"] for name in ("straight", "halting"))
    assert straight == halting


def test_a_death_between_two_steps_repeats_those_since_the_checkpoint(tmp_path: Path) -> None:
    recipe = {**RECIPE, "checkpoint": {"every_steps": 2}}
    require_same_bits_after_death(partial(stage, recipe=recipe), MutualStep, tmp_path)


def test_every_student_is_measured_counted_and_reported(tmp_path: Path) -> None:
    students = [{"architecture": "mlp", "hidden": [5]}, {"architecture": "mlp", "hidden": [8, 8]}]
    method = {**MUTUAL, "students": 3, "architectures": students}
    played = ran(tmp_path, recipe={**RECIPE, "method": method, "precision": "bf16"})
    values = {name: value for metrics in played.of(Metrics) for name, value in metrics.values.items()}
    for name in ("", "peer-1/", "peer-2/"):
        for metric in ("loss", "loss/cross-entropy", "loss/mutual", "accuracy", "grad_norm"):
            assert f"train/{name}{metric}" in values
    found = report(tmp_path)
    assert set(found["learners"]) == {"peer-1", "peer-2"}
    assert all(0 <= peer["accuracy"] <= 1 for peer in found["learners"].values())
    train, samples = found["train"], found["samples"]["train"]
    forward = {"student": found["student"]["flops"], **{n: p["flops"] for n, p in found["learners"].items()}}
    for name, flops in forward.items():
        assert train[f"{name}_flops"] == 2 * samples * (3 + 2) * flops  # learns, and predicts for two others
        assert values[f"train/flops/{name}"] == train[f"{name}_flops"]
    assert train["flops"] == sum(train[f"{name}_flops"] for name in forward)


def test_seeds_determine_the_peers_and_not_the_student(tmp_path: Path) -> None:
    for name, seeds in (("a", [1]), ("b", [1]), ("c", [2])):
        ran(tmp_path / name, recipe={**RECIPE, "method": {**MUTUAL, "seeds": seeds}})
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert weights(tmp_path / "a") != weights(tmp_path / "c")


def test_a_weight_of_nothing_leaves_the_student_as_it_is(tmp_path: Path) -> None:
    ran(tmp_path / "alone", recipe={"epochs": 2})
    ran(tmp_path / "beside", recipe={**RECIPE, "method": {**MUTUAL, "weight": 0.0}})
    assert weights(tmp_path / "alone") == weights(tmp_path / "beside")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"recipe": {**RECIPE, "method": {**MUTUAL, "seeds": [1, 2]}}}, "recipe.method.seeds"),
        ({"recipe": {**RECIPE, "method": {**MUTUAL, "students": 3, "seeds": [1]}}}, "recipe.method.seeds"),
        (
            {"recipe": {**RECIPE, "method": {**MUTUAL, "students": 3, "architectures": [{"architecture": "mlp"}]}}},
            "recipe.method.architectures",
        ),
        ({"recipe": {**RECIPE, "compile": True}}, "recipe.compile"),
        (
            {"recipe": {**RECIPE, "stages": [{"losses": [{"kind": "cross-entropy"}], "epochs": 1}]}},
            "recipe.stages",
        ),
        ({"recipe": RECIPE, "task": "causal-lm"}, "recipe.method.kind"),
        (
            {"recipe": RECIPE, "resources": {"processes": 2, "queue": "cpu", "sharding": "fsdp"}},
            "resources.sharding",
        ),
        (
            {"recipe": {**RECIPE, "losses": [{"kind": "hint", "pairs": [{"teacher": "a", "student": "b"}]}]}},
            "recipe.losses[0].kind",
        ),
    ],
)
def test_fields_that_do_not_fit_it_are_refused_by_name(changes: dict[str, Any], field: str) -> None:
    job = JobSpec.model_validate(document(**changes))
    assert field in [problem.param for problem in find_problems(job)]


def test_a_peer_that_can_t_read_the_data_is_refused(tmp_path: Path) -> None:
    vit = {"architecture": "vit", "patch_size": 4, "width": 8, "depth": 1, "heads": 2}  # pictures of 6 x 6
    assignment: Assignment = stage(tmp_path, recipe={**RECIPE, "method": {**MUTUAL, "architectures": [vit]}})
    word = play(assignment, tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "recipe.method.architectures[0].patch_size")
