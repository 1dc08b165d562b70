"""Imports run one way, and no process carries what it has no business with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        pytest.param("app.main", ["torch", "triton", "onnxruntime", "sklearn"], id="the API starts without torch"),
        pytest.param(
            "stillhouse",
            ["app", "worker", "fastapi", "sqlalchemy", "numpy", "torch", "typer", "yaml"],
            id="the client speaks HTTP only",
        ),
        pytest.param("stillhouse.cli.main", ["torch", "sqlalchemy", "fastapi"], id="the command line speaks HTTP only"),
        pytest.param("app.recipe.job", ["torch", "numpy", "sqlalchemy"], id="the contract computes nothing"),
        pytest.param(
            "worker.supervisor.celery_app, worker.supervisor.celery_task",
            ["torch", "triton"],
            id="CUDA cannot be used after Celery's fork",
        ),
        pytest.param(
            "worker.trainer.__main__",
            ["sqlalchemy", "psycopg", "celery", "obstore", "fastapi"],
            id="the trainer knows no database, broker or store",
        ),
    ],
)
def test_a_fresh_process_imports_only_what_it_needs(module: str, unwanted: list[str]) -> None:
    program = f"import sys, {module}; print(*sorted(set({unwanted!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
