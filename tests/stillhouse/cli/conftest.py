"""Runs command lines against a real service."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from stillhouse.cli.main import app
from tests.stillhouse.cli.command_lines import Run
from tests.stillhouse.conftest import LiveService


@pytest.fixture
def run(service: LiveService, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line against the service of this test."""
    monkeypatch.setenv("STILLHOUSE_URL", service.url)
    monkeypatch.setenv("STILLHOUSE_API_KEY", service.key)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def job_file(data_file: Path) -> Path:
    """A job beside its data file."""
    path = data_file.with_name("job.yaml")
    path.write_text(
        "name: tiny\nlabels: {team: vision}\ndata: {train: digits.npz}\n"
        "student: {architecture: mlp, hidden: [4]}\n"
        "recipe: {losses: [{kind: cross-entropy}], optimizer: {kind: adamw, lr: 1e-2}, epochs: 2}\n"
    )
    return path
