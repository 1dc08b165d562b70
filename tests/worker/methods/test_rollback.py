"""Rolling a pretrained student back, period by period."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from app.recipe.plan import plan_training
from app.recipe.students.architectures import CifarResNet
from tests.worker.training.builders import document, finished, play, stage, write_teacher
from worker.methods.rollback import RollbackMethod, roll_back
from worker.protocol import Assignment, CheckpointSaved, Failed
from worker.students.depth import depth_groups
from worker.students.weights import load_model
from worker.training.loop import Stage
from worker.training.state import TrainState

PRETRAINED = {"architecture": "pretrained", "model": "teacher"}
SGD = {"kind": "sgd", "lr": 0.1}


def scene(folder: Path, method: dict[str, Any] | None = None, **recipe: Any) -> Assignment:
    """A job that fine-tunes a residual network of three stages; 40 samples, 3 steps an epoch."""
    settings = {"method": {"kind": "rollback", "periods": 3, **(method or {})}, "epochs": 1, "optimizer": SGD}
    assignment = stage(folder, student=PRETRAINED, recipe={**settings, **recipe})
    write_teacher(folder / "teacher", CifarResNet(depth=8, width=2))
    return assignment


class Watched:
    """What a run's periods begin with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: list[dict[str, Tensor]] = []
        self.after: list[dict[str, Tensor]] = []
        self.rates: list[list[tuple[float, int]]] = []
        begin = RollbackMethod.begin

        def watched(method: RollbackMethod, period: Stage, state: TrainState) -> None:
            self.before.append(_copied(state))
            begin(method, period, state)
            self.after.append(_copied(state))
            groups = state.optimizer.param_groups
            self.rates.append([(round(each.get("lr_ratio", 1.0), 6), len(each["params"])) for each in groups])

        monkeypatch.setattr(RollbackMethod, "begin", watched)


def _copied(state: TrainState) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.student.network.state_dict().items()}


def test_all_but_the_lowest_groups_and_the_head_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    finished(tmp_path, scene(tmp_path))
    first = load_model(tmp_path / "teacher").network.state_dict()
    stem, head = ("conv.", "norm."), "head."
    assert len(watched.after) == 2
    for number, kept in enumerate([stem, (*stem, "stages.0.")]):
        before, after = watched.before[number], watched.after[number]
        for name, tensor in after.items():
            expected = before if name.startswith((*kept, head)) else first
            assert torch.equal(tensor, expected[name]), name
    moved = {name for name, tensor in watched.before[0].items() if not torch.equal(tensor, first[name])}
    assert {"conv.weight", "norm.running_mean", "norm.num_batches_tracked", "head.weight"} <= moved
    assert watched.rates[1][1] == (0.1, watched.rates[1][1][1])


def test_every_period_has_its_rates_and_begins_its_schedule_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []
    step = torch.optim.SGD.step

    def watched(optimizer: torch.optim.SGD, *args: Any) -> Any:
        seen.append({f"{len(group['params'])}": group["lr"] for group in optimizer.param_groups})
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    finished(tmp_path, scene(tmp_path, epochs=2, schedule={"kind": "multi-step", "milestones": [1.0]}))
    network = load_model(tmp_path / "teacher").network
    total = len(list(network.parameters()))
    stem = len([1 for name, _ in network.named_parameters() if name.startswith(("conv.", "norm."))])
    low = len([1 for name, _ in network.named_parameters() if name.startswith(("conv.", "norm.", "stages.0."))])
    assert len(seen) == 18
    rates = [sorted((int(count), round(lr, 9)) for count, lr in found.items()) for found in seen[::3]]
    assert rates[0] == sorted([(2, 1.0), (total - 2, 0.1)])
    assert rates[1] == sorted([(2, 0.1), (total - 2, 0.01)])
    assert sum(count for count, _ in rates[2]) <= total
    assert (total - stem, 0.1) in rates[2]
    assert (total - stem, 0.01) in rates[3]
    assert (total - low, 0.1) in rates[4]


@pytest.mark.parametrize("recipe", [{}, {"ema_decay": 0.8, "optimizer": {"kind": "adamw", "lr": 0.01}}])
@pytest.mark.parametrize("steps", [2, 3, 4], ids=["within", "between", "after"])
def test_a_job_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path, recipe: dict[str, Any], steps: int) -> None:
    straight, halting = tmp_path / "straight", tmp_path / "halting"
    finished(straight, scene(straight, **recipe))
    assignment = scene(halting, **recipe)
    saved = play(assignment, halting, steps=steps).of(CheckpointSaved)[-1].path
    finished(halting, assignment.model_copy(update={"resume": saved}))
    names = ("bundle/model.safetensors", "bundle/report.json")
    assert (straight / names[0]).read_bytes() == (halting / names[0]).read_bytes()
    one, other = (json.loads((folder / names[1]).read_text())["train"]["rollback"] for folder in (straight, halting))
    assert one == other


def test_the_report_has_every_period(tmp_path: Path) -> None:
    bundle = finished(tmp_path, scene(tmp_path))
    report = json.loads((bundle / "report.json").read_text())
    found = report["train"]["rollback"]
    assert found["head"] == ["head"]
    assert [period["kept"] for period in found["periods"]] == [[], ["conv", "norm"], ["conv", "norm", "stages.0"]]
    assert found["periods"][-1]["metrics"]["accuracy"] == report["student"]["accuracy"]
    assert report["train"]["steps"] == 9


@pytest.mark.parametrize(
    ("method", "place"),
    [
        ({"groups": [["conv"], ["nowhere.*"]]}, "recipe.method.groups"),
        ({"head": ["classifier"]}, "recipe.method.head"),
        ({"periods": 7}, "recipe.method.groups"),
    ],
)
def test_groups_that_the_student_lacks_are_the_users_fault(tmp_path: Path, method: dict[str, Any], place: str) -> None:
    word = play(scene(tmp_path, method), tmp_path).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("user", "invalid_job", place)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"student": {"architecture": "mlp", "hidden": [8]}}, "student.architecture"),
        ({"recipe": {"max_steps": 5}}, "recipe.max_steps"),
        ({"recipe": {"stages": [{"losses": [{"kind": "cross-entropy"}], "epochs": 1}]}}, "recipe.stages"),
        ({"recipe": {"optimizer": {**SGD, "groups": [{"match": "conv", "lr": 0.1}]}}}, "recipe.optimizer.groups"),
        ({"recipe": {"method": {"kind": "rollback", "groups": [["conv"]]}}}, "recipe.method.groups"),
        ({"resources": {"processes": 2, "sharding": "fsdp"}}, "resources.sharding"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], param: str) -> None:
    settings: dict[str, Any] = {"student": PRETRAINED, **changes}
    settings["recipe"] = {"method": {"kind": "rollback"}, **changes.get("recipe", {})}
    found = [problem.param for problem in find_problems(JobSpec.model_validate(document(**settings)))]
    assert param in found


def test_periods_count_as_steps() -> None:
    job = JobSpec.model_validate(document(student=PRETRAINED, recipe={"method": {"kind": "rollback"}, "epochs": 2}))
    plan = plan_training(job.recipe, 40)
    assert [(stage.first, stage.steps) for stage in plan.stages] == [(0, 6), (6, 6), (12, 6), (18, 6)]


def test_statistics_go_back_with_their_layer() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(torch.randn(4, 1, 3, 3))
    assert not torch.equal(network.state_dict()["1.running_mean"], first["1.running_mean"])
    returned = roll_back(network.state_dict(), first, ["0"])
    assert returned == [name for name in first if not name.startswith("0.")]
    assert all(torch.equal(network.state_dict()[name], first[name]) for name in returned)


def test_more_than_four_blocks_are_divided_into_thirds() -> None:
    blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(7))
    network = nn.ModuleDict({"embeddings": nn.Embedding(3, 2), "layers": blocks, "head": nn.Linear(2, 2)})
    groups = depth_groups(network)
    assert groups[0] == ["embeddings"]
    assert groups[1:] == [[f"layers.{number}" for number in part] for part in ((0, 1), (2, 3, 4), (5, 6))]
    assert depth_groups(nn.Linear(2, 2)) == []
