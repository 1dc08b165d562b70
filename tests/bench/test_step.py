"""The table of steps has a row for every selected method, and targets for those that use logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import step
from bench.quality import ALONE, read_methods
from bench.step import Size, Times, compare, table

TINY = Size(side=8, batch=4, rounds=1)


def test_a_method_is_timed_beside_the_plain_step_and_the_teacher() -> None:
    [(name, times)] = compare(TINY, ["kd"])
    assert name == "kd"
    assert times.logits_alone
    assert all(figure is not None and figure > 0 for figure in times[:5])


def test_a_method_on_features_runs_the_teacher_and_has_no_target() -> None:
    [(_, times)] = compare(TINY, ["overhaul"])
    assert (times.warm, times.over_plain, times.logits_alone) == (None, None, False)
    assert times.over_both is not None


def test_a_method_without_a_teacher_is_held_against_the_plain_step() -> None:
    [(_, times)] = compare(TINY, ["uskd"])
    assert times.over_plain is not None
    assert (times.cold, times.over_both) == (None, None)


def test_the_table_shows_which_targets_are_reached() -> None:
    shown = table(
        [("near", Times(10.0, 10.9, 21.0, 1.09, 1.06, True)), ("far", Times(10.0, None, 30.0, None, 1.5, False))]
    )
    near, far = shown.splitlines()[2:]
    assert near == "| near | 10.0 | 10.9 | 1.09 | yes | 21.0 | 1.06 | NO |"
    assert far == "| far | 10.0 |  |  |  | 30.0 | 1.50 |  |"


def test_the_page_gets_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- step: begin -->\n<!-- step: end -->\n")
    monkeypatch.setattr(step, "read_methods", lambda: {name: read_methods()[name] for name in (ALONE, "nkd")})
    threads = str(torch.get_num_threads())
    step.main(["--side", "8", "--batch", "4", "--rounds", "1", "--threads", threads, "--write", str(page)])
    assert [line for line in page.read_text().splitlines() if line.startswith("| nkd")]
    assert "nkd" in capsys.readouterr().out
