"""Jobs of the two stages of CFCD: MadaCos, then local mining beside it, on batches of classes that are confused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.tasks.test_image_embedding import refusal, stage
from tests.worker.training.builders import finished, play, require_same_bits
from worker.protocol import Assignment, Finished, Metrics
from worker.students.weights import load_model
from worker.training import monitor

LOCAL: dict[str, Any] = {"kind": "cfcd-local", "feature": "stages.1", "margin": 1.0}
NETWORK: dict[str, Any] = {"architecture": "wide-resnet", "depth": 10}


def make(folder: Path, local: dict[str, Any] = LOCAL, **changes: Any) -> Assignment:
    recipe = {
        "stages": [{"losses": [{"kind": "cfcd"}], "epochs": 1}],
        **{"losses": [{"kind": "cfcd"}, local], "epochs": 1, "batch_size": 12, "samples_per_class": 4},
        "hard_negatives": {"pool": 30, "every": 3},
        **changes.pop("recipe", {}),
    }
    return stage(folder, student=NETWORK, data={"unseen_classes": 2}, recipe=recipe, **changes)


def test_a_job_of_both_stages_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    require_same_bits(make, tmp_path)
    report = json.loads((tmp_path / "straight" / "bundle" / "report.json").read_text())
    assert report["train"]["hard_negatives"]["refreshes"] >= 2
    plain = finished(tmp_path / "plain", make(tmp_path / "plain", recipe={"losses": [{"kind": "cfcd"}]}))
    one, other = (load_model(bundle).state_dict() for bundle in (tmp_path / "straight" / "bundle", plain))
    assert any(not torch.equal(values, other[name]) for name, values in one.items())


def test_the_local_loss_is_there_in_the_second_stage_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "SECONDS_BETWEEN_REPORTS", float("-inf"))
    run = play(make(tmp_path), tmp_path)
    assert isinstance(run.word, Finished)
    curves = {report.step: report.values for report in run.of(Metrics) if "train/loss" in report.values}
    local = {step: values["train/loss/cfcd-local"] for step, values in curves.items() if step > run.word.step // 2}
    assert not any("train/loss/cfcd-local" in values for step, values in curves.items() if step not in local)
    assert all(value >= 0.0 for value in local.values())
    assert max(local.values()) > 0.0


@pytest.mark.parametrize(
    ("student", "feature", "message"),
    [
        (NETWORK, "network.stages.1", "accepted: a path such as stages.1"),
        ({"architecture": "vit", "patch_size": 3, "width": 8, "depth": 1, "heads": 2}, "blocks.0", "a map (C, H, W)"),
        ({"architecture": "mlp", "hidden": [8]}, "2", "a map (C, H, W)"),
    ],
)
def test_a_feature_that_is_no_map_ends_the_job_by_its_field(
    tmp_path: Path, student: dict[str, Any], feature: str, message: str
) -> None:
    assignment = make(tmp_path, {**LOCAL, "feature": feature})
    changed = assignment.spec.model_dump(mode="json") | {"student": student}
    word = refusal(assignment.model_copy(update={"spec": type(assignment.spec).model_validate(changed)}), tmp_path)
    assert (word.code, word.param) == ("invalid_job", "recipe.losses[1].feature")
    assert message in word.message
