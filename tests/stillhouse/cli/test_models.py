"""Commands for models, on answers of the client."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import CliRunner

from stillhouse import Client, StoredModel
from stillhouse.cli.main import app


@pytest.mark.parametrize(("words", "name"), [([], None), (["--name", "small"], "small")])
def test_extract_asks_for_the_row_and_prints_the_model(
    words: list[str], name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def extract(client: Client, *given: Any) -> StoredModel:
        asked.append(given)
        return StoredModel(id="model_new", name=name, parameters=10, created_at=datetime.now(UTC))

    monkeypatch.setenv("STILLHOUSE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("STILLHOUSE_API_KEY", "sk_none")
    monkeypatch.setattr(Client, "extract", extract)
    line = ["extract", "model_searched", "--row", "7", *words]
    shown = CliRunner().invoke(app, line)
    assert shown.exit_code == 0, shown.output
    assert "model_new" in shown.stdout
    assert json.loads(CliRunner().invoke(app, [*line, "--json"]).stdout)["id"] == "model_new"
    assert asked == [("model_searched", 7, name)] * 2


def test_extract_needs_a_row() -> None:
    result = CliRunner().invoke(app, ["extract", "model_searched"])
    assert result.exit_code == 2
    assert "--row" in result.output
