"""The test of recommendations has sound data sets and jobs, and its figures are those of what was left out."""

from __future__ import annotations

import pytest

from app.recipe.job import JobSpec
from app.recommendations.regression import LeftOut
from bench.quality import read_methods
from bench.recommend import METHODS, STUDENT, data_sets, job, line_of, section


def test_the_data_sets_have_all_classes_among_the_few_rows() -> None:
    found = data_sets()
    assert len(found) >= 5
    for name, samples in found.items():
        classes = set(samples.y.tolist())
        assert classes == set(range(len(classes))), name
        assert set(samples.y[: samples.few].tolist()) == classes, name


def test_every_job_is_one() -> None:
    for method in METHODS.split(","):
        document = job("file_few", {"test": "file_test"}, STUDENT, read_methods()[method], 3, method)
        assert JobSpec.model_validate(document | {"teacher": {"model": "model_1"}}).recipe.epochs == 3


def test_a_line_has_the_figures_of_a_left_out_data_set() -> None:
    line = line_of("iris", LeftOut("set", [0.5, 0.9, 0.7], [0.6, 0.8, 1.0]))
    assert (line.jobs, line.first, line.best) == (3, 0.8, 1.0)
    assert (line.correlation, line.error, line.mean) == pytest.approx((0.5, 0.5 / 3, 0.8))
    text = section([line, line._replace(name="wine", correlation=None)], 120.0, "python -m bench.recommend")
    assert "| iris | 3 | 0.50 | 0.167 | 0.800 | 0.800 | 1.000 |" in text.splitlines()
    assert "6 jobs on 2 data sets, one seed each, in 2 minutes" in text
