"""Every part of the benchmark runs and yields figures. Their values are not tested."""

from __future__ import annotations

import math

import pytest

from bench.__main__ import PARTS
from bench.rows import Row, Target, markdown


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_a_part_yields_finite_figures(part: str) -> None:
    rows = list(PARTS[part].measure(PARTS[part].SHORT))
    assert rows
    assert all(math.isfinite(row.figure) for row in rows)


def test_a_row_shows_whether_its_target_is_reached() -> None:
    under = Target("figure", "under", 2.0)
    assert Row("x", 1.0, "s", target=under).reached is True
    assert Row("x", 2.0, "s", target=under).reached is False
    half = Target("ratio", "at least", 0.5)
    assert Row("x", 5.0, "/s", reference=10.0, target=half).reached is True
    assert Row("x", 4.0, "/s", reference=10.0, target=half).reached is False
    assert Row("x", 4.0, "/s", target=half).reached is False, "what was not measured is not reached"
    assert Row("x", 4.0, "/s").reached is None


def test_the_table_has_a_line_for_every_row() -> None:
    table = markdown([Row("one", 1.0, "s"), Row("two", 2.0, "s", reference=4.0, reference_name="other")])
    assert [line.split(" | ")[0] for line in table.splitlines()] == ["| what", "| ---", "| one", "| two"]
    assert "4.00 s other" in table
    assert "0.50" in table
