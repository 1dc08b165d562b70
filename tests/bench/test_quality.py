"""The comparison of methods runs on a set of any source, and writes its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.recipe.job import JobSpec
from bench import quality
from bench.quality import ALONE, Size, compare, read_methods

RESULT = quality.Result(accuracy=0.5, ece=0.1, agreement=0.6, step_ms=1.0)
TINY = Size(train=40, shrink=2, teacher_epochs=1, epochs=2, seeds=2)


def write_set(folder: Path) -> Path:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 10
    images = (labels[:, None, None] * 20 + random.integers(0, 40, (60, 16, 16))).astype(np.uint8)
    path = folder / "tiny.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    return path


def test_every_method_is_a_job_that_the_contract_accepts() -> None:
    for name, method in read_methods().items():
        document = quality.job_of(method, TINY, 0)
        assert JobSpec.model_validate(document).recipe.losses, name


@pytest.mark.long
def test_methods_differ_and_a_seed_repeats(tmp_path: Path) -> None:
    path = str(write_set(tmp_path))
    table = compare(path, TINY, [ALONE, "kd"])
    assert {name: len(results) for name, results in table.items()} == {"teacher": 1, ALONE: 2, "kd": 2}
    assert table[ALONE] != table["kd"]
    assert all(0.0 <= result.accuracy <= 1.0 for results in table.values() for result in results)
    [again] = compare(path, Size(40, 2, 1, 2, 1), [ALONE])[ALONE]
    assert again[:2] == table[ALONE][0][:2]


def test_the_page_has_a_place_for_each_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "compare", lambda *_: {name: [RESULT] for name in ("teacher", ALONE, "kd")})
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- tiny: begin -->\nold\n<!-- tiny: end -->\nafter\n")
    sizes = ["--train", "20", "--shrink", "2", "--teacher-epochs", "1", "--epochs", "1", "--seeds", "1"]
    quality.main(["--set", str(write_set(tmp_path)), "--methods", "alone,kd", *sizes, "--write", str(page)])
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after")
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == ["| method", "| alone", "| kd"]
    assert "old" not in lines


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    from bench.report import replace_part

    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="no place for digits"):
        replace_part(page, "digits", "text")
