"""The comparison of codebooks runs on any text, and writes its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from bench import codebook
from bench.language import job_of
from tests.worker.tasks.language import sentences


@pytest.mark.parametrize("row", codebook.students())
def test_every_row_is_a_job_that_the_contract_accepts(row: str) -> None:
    job = JobSpec.model_validate(job_of(codebook.students()[row], 0))
    assert not find_problems(job)
    assert (job.student.head.kind == "vq-logits") == (row != codebook.FULL)


@pytest.mark.long
def test_the_page_has_a_line_for_each_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook, "SIZES", (8,))
    page, text = tmp_path / "page.md", tmp_path / "text"
    page.write_text("before\n<!-- codebook: begin -->\nold\n<!-- codebook: end -->\nafter\n")
    text.write_text("\n".join(sentences(60)))
    codebook.main(["--text", str(text), "--epochs", "1", "--seeds", "2", "--write", str(page)])
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    full, coded = (line.split(" | ") for line in lines if line.startswith(("| full", "| 8")))
    assert full[3].strip() == ""
    assert float(coded[3]) > 0.0
    assert float(coded[2]) >= float(coded[3])  # no student is below the bound
