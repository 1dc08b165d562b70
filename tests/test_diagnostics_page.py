"""The page of diagnostics has what the contract has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.recipe.diagnostics import DIAGNOSTICS, DiagnosticSpec
from app.recipe.tasks import tasks_for

PAGE = (Path(__file__).parents[1] / "docs" / "diagnostics.md").read_text()


def section(kind: str) -> str:
    """What the page says of one kind."""
    return PAGE.partition(f"\n## `{kind}`\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("diagnostic", DIAGNOSTICS, ids=lambda diagnostic: diagnostic.__name__)
def test_every_kind_is_described_with_its_source_tasks_and_options(diagnostic: type[DiagnosticSpec]) -> None:
    fields = dict(diagnostic.model_fields)
    said = section(fields.pop("kind").default)
    assert said
    assert diagnostic.applies
    assert diagnostic.paper is None or f"https://arxiv.org/abs/{diagnostic.paper.arxiv}" in said
    assert all(task in said for task in tasks_for(diagnostic))
    for name, field in fields.items():
        assert field.description
        assert f"- `{name}` ({field.default})" in said


def test_no_kind_is_described_that_is_gone() -> None:
    known = {diagnostic.model_fields["kind"].default for diagnostic in DIAGNOSTICS}
    assert set(re.findall(r"^## `(.+)`$", PAGE, re.MULTILINE)) == known
