"""`stillhouse diagnose`, on answers of the client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stillhouse import Client, Job
from stillhouse.cli.main import app


def test_it_asks_for_the_kinds_on_the_data_and_prints_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def diagnose(client: Client, model: str, wanted: dict[str, Any], *, folder: Path) -> Job:
        asked.append((model, wanted, folder))
        return Job.model_construct(id="job_new", status="queued", spec={})

    monkeypatch.setenv("STILLHOUSE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("STILLHOUSE_API_KEY", "sk_none")
    monkeypatch.setattr(Client, "diagnose", diagnose)
    line = ["diagnose", "model_1", "--kind", "hessian", "--kind", "widedeep", "--data", "a.npz", "--eval", "b.npz"]
    line += ["--set", "seed=3"]
    shown = CliRunner().invoke(app, [*line, "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.stdout)["id"] == "job_new"
    (model, wanted, folder), *_ = asked
    assert (model, folder) == ("model_1", Path.cwd())
    assert wanted == {
        "data": {"train": "a.npz", "eval": "b.npz"},
        "evaluation": {"diagnostics": [{"kind": "hessian"}, {"kind": "widedeep"}]},
        "seed": 3,
    }


def test_it_needs_a_kind_and_data() -> None:
    result = CliRunner().invoke(app, ["diagnose", "model_1"])
    assert result.exit_code == 2
