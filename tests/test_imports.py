"""Imports run one way, and no process carries what it has no business with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import imports_picture

ROOT = Path(__file__).parents[1]


def test_the_import_contracts_hold() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    return imports_picture.arrows()


def test_the_picture_of_imports_is_up_to_date(arrows: dict[str, set[str]]) -> None:
    page = imports_picture.PAGE.read_text(encoding="utf-8")
    assert imports_picture.with_picture(page, arrows) == page, "`make picture` writes it anew"


def test_no_rooms_import_each_other_in_a_circle(arrows: dict[str, set[str]]) -> None:
    assert imports_picture.circle(arrows) == []


def test_a_circle_is_found_and_arrows_that_follow_are_left_out() -> None:
    line = {"top": {"middle", "low"}, "middle": {"low"}, "low": set[str]()}
    assert imports_picture.circle(line) == []
    assert imports_picture.reduced(line) == {"top": {"middle"}, "middle": {"low"}, "low": set()}
    round_trip = {**line, "middle": {"top", "low"}}
    assert set(imports_picture.circle(round_trip)) == {"top", "middle"}
    assert imports_picture.reduced(round_trip) == {"top": {"middle", "low"}, "middle": {"top", "low"}, "low": set()}


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="takes the picture between"):
        imports_picture.with_picture("a page", {})


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
