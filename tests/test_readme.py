"""What the README and the docs show works: job files, commands and links."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import TypeAdapter

from app.models.schemas import ModelRequest
from app.recipe import documents
from app.recipe.checks import find_problems
from app.recipe.data.sources import AnyData
from app.recipe.job import JobSpec
from app.recipe.students.architectures import Student
from app.recipe.teachers.teacher import Teacher
from stillhouse.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARTS: dict[str, TypeAdapter[Any]] = {
    "teacher": TypeAdapter(Teacher),
    "data": TypeAdapter(AnyData),
    "student": TypeAdapter(Student),
}
"""Parts of a job that are shown by themselves."""
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


@pytest.mark.parametrize("page", ["README.md", "docs/http.md", "docs/jobs.md"])
def test_documents_that_are_shown_are_valid(page: str) -> None:
    shown = [*blocks(ROOT / page, "yaml"), *blocks(ROOT / page, "json")]
    assert shown
    for text in shown:
        document = documents.parse(text)
        if "recipe" in document:
            assert not find_problems(JobSpec.model_validate_json(json.dumps(document)))
        elif document.keys() <= PARTS.keys():
            for name, part in document.items():
                PARTS[name].validate_python(part)
        else:
            ModelRequest.model_validate_json(json.dumps(document))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_shown_exist(page: Path) -> None:
    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # the top is a group
    shown = set(re.findall(r"(?:bin/|`|\[)stillhouse[ ,]+([a-z]+)", page.read_text()))
    assert shown <= known


def test_the_readme_names_every_command() -> None:
    named = set(re.findall(r"`([a-z]+)(?: [a-z]+)?`", (ROOT / "README.md").read_text()))
    assert set(typer.main.get_command(app).commands) <= named  # type: ignore[attr-defined]  # the top is a group


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
