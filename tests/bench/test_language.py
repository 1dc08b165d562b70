"""The comparison of language models runs on any text, and writes its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from bench import language
from bench.language import ALONE, job_of, read_methods, teacher_job
from tests.worker.tasks.language import sentences


@pytest.mark.parametrize("name", read_methods())
def test_every_method_is_a_job_that_the_contract_accepts(name: str) -> None:
    job = JobSpec.model_validate(job_of(read_methods()[name], 0))
    assert not find_problems(job)
    assert (job.teacher is None) == (name == ALONE)


def test_all_models_read_the_same_tokens() -> None:
    alone = JobSpec.model_validate(job_of(read_methods()[ALONE], 0))
    assert alone.data.tokenizer == JobSpec.model_validate(teacher_job()).data.tokenizer


@pytest.mark.long
def test_the_page_has_a_line_for_each_method(tmp_path: Path) -> None:
    page, text = tmp_path / "page.md", tmp_path / "text"
    page.write_text("before\n<!-- language: begin -->\nold\n<!-- language: end -->\nafter\n")
    text.write_text("\n".join(sentences(60)))
    language.main(
        ["--text", str(text), "--epochs", "1", "--seeds", "2", "--methods", ALONE, "kd", "--write", str(page)]
    )
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == ["| method", "| alone", "| kd"]
    assert "nan" not in page.read_text()
