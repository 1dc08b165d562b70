"""The comparison of robustness runs on a set of any source, and writes its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.recipe.job import JobSpec
from bench import robustness
from bench.quality import DIGITS, Size
from tests.bench.test_quality import write_set


@pytest.mark.parametrize("name", robustness.STUDENTS)
def test_every_student_is_a_job_that_the_contract_accepts(name: str) -> None:
    recipe, teachers = robustness.STUDENTS[name]
    job = JobSpec.model_validate(robustness._job(DIGITS, recipe, teachers, Size(40, 1, 1, 1, 1), 0))
    assert [teacher.name for teacher in job.all_teachers] == list(teachers)


@pytest.mark.long
def test_every_model_is_attacked_and_gets_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    students = ("alone", "mtard")
    monkeypatch.setattr(robustness, "STUDENTS", {name: robustness.STUDENTS[name] for name in students})
    page = tmp_path / "page.md"
    page.write_text("<!-- robustness-tiny: begin -->\nold\n<!-- robustness-tiny: end -->\n")
    sizes = ["--train", "20", "--shrink", "2", "--teacher-epochs", "1", "--epochs", "1", "--seeds", "2"]
    robustness.main(["--set", str(write_set(tmp_path)), *sizes, "--write", str(page)])
    rows = [line.split(" | ") for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == ["| clean teacher", "| robust teacher", "| alone", "| mtard"]
    assert all(len(row) == 4 for row in rows)
    assert all("±" in cell for row in rows[3:] for cell in row[1:])
