"""The picture of a training."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worker.bundle.curves import draw_curves
from worker.training.history import Point

POINTS = [
    Point(step=step, values={"train/loss": 1 / step, "train/loss/kd": 0.5 / step, "train/lr": 0.1, "eval/nll": step})
    for step in range(1, 9)
]


def pixels(points: list[Point], path: Path, best: int | None = None) -> np.ndarray:
    draw_curves(points, path, best)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_losses_share_a_panel_and_every_other_value_has_one(tmp_path: Path) -> None:
    height, width, _ = pixels(POINTS, tmp_path / "a.png").shape
    assert (width, height) == (1200, 260)
    more = [Point(step=point.step, values={**point.values, "eval/ece": 0.1}) for point in POINTS]
    assert pixels(more, tmp_path / "b.png").shape[:2] == (520, 1200)


def test_the_metrics_decide_the_panels(tmp_path: Path) -> None:
    other = [Point(step=point.step, values={**point.values, "eval/nll": 1 / point.step}) for point in POINTS]
    first, again = pixels(POINTS, tmp_path / "a.png"), pixels(POINTS, tmp_path / "b.png")
    assert np.array_equal(first, again)
    assert not np.array_equal(first, pixels(other, tmp_path / "c.png"))


def test_the_best_epoch_is_marked_where_something_was_evaluated(tmp_path: Path) -> None:
    plain, marked = pixels(POINTS, tmp_path / "a.png"), pixels(POINTS, tmp_path / "b.png", best=4)
    changed = (plain != marked).any(axis=(0, 2)).nonzero()[0]
    assert len(changed)
    assert changed.min() >= 800  # the third panel alone


@pytest.mark.parametrize("points", [POINTS[:1], [Point(step=1, values={"eval/rmse": 2.0})], []])
def test_little_can_be_drawn_too(tmp_path: Path, points: list[Point]) -> None:
    draw_curves(points, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_no_global_state_of_the_drawing_library_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it fails
    draw_curves(POINTS, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0
