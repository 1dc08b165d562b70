"""The comparison of detectors consists of jobs that the contract accepts, and writes its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from bench import anomalies as bench
from bench.quality import DIGITS, Size

TINY = Size(train=40, shrink=1, teacher_epochs=1, epochs=2, seeds=2)


@pytest.mark.parametrize("what", [bench.LABELS, bench.VIEWS, bench.RANDOM])
def test_every_encoder_is_a_job_that_the_contract_accepts(what: str) -> None:
    job = JobSpec.model_validate(bench.encoder_of(what, TINY, 1))
    assert not find_problems(job)
    assert (job.recipe.max_steps == 1) == (what == bench.RANDOM)


@pytest.mark.parametrize("setting", bench.METRICS)
def test_every_row_is_a_job_that_the_contract_accepts(setting: str) -> None:
    for row in bench.ROWS:
        job = JobSpec.model_validate(bench.job_of(row, setting, TINY, 3))
        assert not find_problems(job), row
        assert job.data.normal_classes == (["2"] if setting == bench.ONE_CLASS else None)


def test_every_second_image_has_a_defect_under_its_mask(tmp_path: Path) -> None:
    images = np.full((6, 9, 9), 50, np.uint8)
    np.savez(tmp_path / "train.npz", x=images, y=np.arange(6))
    np.savez(tmp_path / "test.npz", x=images, y=np.arange(6))
    bench.write_defects(tmp_path)
    made = np.load(tmp_path / "defects.npz")
    assert made["y"].tolist() == [0, 1] * 3
    assert made["mask"].sum((1, 2)).tolist() == [0, 9] * 3
    assert (made["x"][made["mask"] == 0] == 50).all()
    assert list(np.load(tmp_path / "normal.npz")) == ["x"]


def test_a_row_has_mean_and_spread_of_every_metric() -> None:
    text = bench.section(DIGITS, TINY, {"both losses": [[0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.3, 0.4]]}, 90.0, "python x")
    assert "| both losses | 0.200 ± 0.141 | 0.200 ± 0.000 | 0.300 ± 0.000 | 0.400 ± 0.000 |" in text
    assert "| student | one class: image_auroc | defects: image_auroc | defects: pixel_auroc | defects: pro |" in text
