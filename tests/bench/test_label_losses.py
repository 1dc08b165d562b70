"""The comparison of losses of labels consists of jobs that the contract accepts, and writes its tables."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from bench import label_losses as bench
from bench.quality import DIGITS, Size, read_set

TINY = Size(train=200, shrink=1, teacher_epochs=1, epochs=2, seeds=2)
TABLES = bench.tables(TINY)


@pytest.mark.parametrize(("table", "row"), [(table, row) for table, what in TABLES.items() for row in what.losses])
def test_every_row_is_a_job_that_the_contract_accepts(table: str, row: str) -> None:
    what = TABLES[table]
    job = JobSpec.model_validate(bench.job_of(what.losses[row], what.classes, TINY, 1))
    assert not find_problems(job)


def test_labels_are_wrong_as_often_as_stated_and_depend_on_the_seed() -> None:
    arrays = read_set(DIGITS, TINY)
    right = arrays["y_train"][: TINY.train]
    found = [bench.wrong(arrays, TINY, 0.2, seed) for seed in (1, 1, 2)]
    assert all((each["y_train"] != right).sum() == 40 for each in found)
    assert np.array_equal(found[0]["y_train"], found[1]["y_train"])
    assert not np.array_equal(found[0]["y_train"], found[2]["y_train"])
    assert np.array_equal(found[0]["y_test"], arrays["y_test"])


def test_the_rare_class_is_rare_in_training_alone() -> None:
    arrays = read_set(DIGITS, TINY)
    found = bench.rare(arrays, TINY, 3)
    assert found["y_train"].mean() == pytest.approx(bench.RARE, abs=0.01)
    assert np.array_equal(found["y_test"] == 1, arrays["y_test"] == 3)


def test_f1_is_that_of_scikit_learn() -> None:
    labels, predicted = np.array([0] * 8 + [1] * 4), np.array([1, 1, *[0] * 6, 1, 1, 1, 0])
    others, own = ({"samples": count, "student": share} for count, share in ((8, 0.75), (4, 0.75)))
    assert bench.f1(others, own) == pytest.approx(f1_score(labels, predicted))
    assert bench.f1(others, {"samples": 4, "student": 0.0}) == 0.0


def test_a_row_has_mean_and_spread_of_every_column() -> None:
    found = {
        table: {row: [[50.0] * len(what.columns), [60.0] * len(what.columns)] for row in what.losses}
        for table, what in TABLES.items()
    }
    text = bench.section(DIGITS, TINY, found, 90.0, "python -m bench.label_losses")
    assert "| ldr | 55.0 ± 7.1 | 55.0 ± 7.1 | 55.0 ± 7.1 |" in text
    assert "| ensloss | 55.0 ± 7.1 |" in text
