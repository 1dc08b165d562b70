"""The comparison of ways to fine-tune runs on a set of any source, and writes its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.recipe.job import JobSpec
from bench import rollback
from bench.quality import Size
from tests.bench.test_quality import write_set


@pytest.mark.parametrize("name", rollback.RECIPES)
def test_every_recipe_is_a_job_of_as_many_epochs(name: str) -> None:
    recipe = JobSpec.model_validate(rollback._new(name, Size(40, 1, 1, 8, 1), 0)).recipe
    assert sum(stage.epochs for stage in recipe.all_stages) == 8


@pytest.mark.long
def test_every_recipe_gets_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--train", "20", "--shrink", "2", "--teacher-epochs", "1", "--epochs", "4", "--seeds", "2"]
    rollback.main(["--set", str(write_set(tmp_path)), *sizes])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0][2:] for row in rows[1:]] == list(rollback.RECIPES)
    assert all("±" in row[2] for row in rows[1:])
