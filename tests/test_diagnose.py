"""A stored model is diagnosed over HTTP, by every kind of diagnostic for classifiers, and from the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from app.recipe.diagnostics import DIAGNOSTICS
from stillhouse import Client, ServiceError
from tests import kinds
from tests.stillhouse.process import environment, running
from worker.students.weights import WEIGHTS

SECONDS = 600
KINDS = [kind for one in DIAGNOSTICS if (kind := one.model_fields["kind"].default) != "anomaly-maps"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    kinds.write_data(folder)
    kinds.write_teachers(folder)
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with running(environment(tmp_path_factory.mktemp("data"))) as (_, hello), Client(hello["url"], hello["key"]) as one:
        yield one


def registered(client: Client, folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    return client.register_model(client.upload(folder / WEIGHTS, reuse=False).id, config, folder.name).id


@pytest.mark.long
@pytest.mark.timeout(SECONDS)
def test_every_kind_runs_on_a_stored_model_and_a_teacher(client: Client, inputs: Path, tmp_path: Path) -> None:
    model, other = (registered(client, inputs / name) for name in ("vit", "cnn"))
    asked = [{"kind": kind, **kinds.DIAGNOSED.get(kind, {})} for kind in KINDS if kind != "decision-boundary"]
    asked = [{**one, "data": "classes.npz"} if "data" in one else one for one in asked]
    wanted = {
        "data": {"train": "classes.npz", "eval_fraction": 0.5},
        "evaluation": {"diagnostics": asked},
        "teachers": [{"model": other, "name": "cnn"}],
        "seed": 3,
    }
    jobs = [client.diagnose(model, wanted, folder=inputs) for _ in range(2)]
    before = {one.id for one in client.models()}
    reports = []
    for job in jobs:
        ended = client.wait(job.id, timeout_seconds=SECONDS)
        assert ended.status == "succeeded", ended.error
        assert ended.model_id is None
        report = json.loads(client.download(job.id, "report.json", tmp_path).read_text())
        reports.append(report["diagnostics"])
        pictures = {one["picture"] for one in reports[-1].values() if one["picture"]}
        assert {one.name for one in client.artifacts(job.id)} == {"report.json", "recipe.json", *pictures}
        assert client.result(job.id).model_id is None
    assert {one.id for one in client.models()} == before
    assert reports[0] == reports[1]
    assert list(reports[0]) == [one["kind"] for one in asked]
    for name, found in reports[0].items():
        assert set(found["figures"]) & {"student", "cnn"} or name == "calibration", found.get("left_out")
    weights = load_file(inputs / "vit" / WEIGHTS)
    count = sum(values.numel() for values in weights.values())
    assert reports[0]["hessian"]["figures"]["student"]["weights"] == count


@pytest.mark.long
@pytest.mark.timeout(SECONDS)
def test_a_wrong_field_is_named(client: Client, inputs: Path) -> None:
    model = registered(client, inputs / "cnn")
    wanted = {
        "data": {"train": "classes.npz"},
        "evaluation": {"diagnostics": [{"kind": "mahalanobis", "attacks": []}]},
    }
    with pytest.raises(ServiceError) as caught:
        client.diagnose(model, wanted, folder=inputs)
    assert caught.value.status == 422
    assert "evaluation.diagnostics[0]" in str(caught.value)
