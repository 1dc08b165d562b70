"""Predicts score ratios by gradient boosting over features of past jobs, and measures how well on unseen data sets.

Imported only by the process of `app.recommendations.child`: scikit-learn takes seconds and 170 MB to import.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr
from sklearn.ensemble import HistGradientBoostingRegressor

from app.recommendations.features import Features, columns_of, matrix

ROUNDS, LEAVES, SMALLEST_LEAF, RATE = 60, 8, 3, 0.1
"""Trees, leaves of each, samples of the smallest leaf, and learning rate: small, as the past of a project is."""
MAX_FOLDS = 10
"""Models without a part of the data sets: one for each data set, or for each of so many groups of them."""
MIN_RANKED = 3
"""Jobs of a data set from which its rank correlation is computed."""


class PastJob(NamedTuple):
    """Features and outcome of a past job."""

    features: Features
    new_features: Features
    """The same without what is known only after running a job on its data."""
    ratio: float
    data_set: str
    counts: bool
    """Whether it is of the new job's task: only such data sets are left out for the error."""


class Prediction(NamedTuple):
    """Expected score ratio of a recipe."""

    expected: float
    lowest: float
    """Smallest prediction of the models that lack a part of the data sets."""
    highest: float


class LeftOut(NamedTuple):
    """The jobs of a data set that a model has not seen."""

    data_set: str
    predicted: list[float]
    measured: list[float]

    @property
    def errors(self) -> list[float]:
        """Absolute errors of the predictions."""
        return [abs(found - ratio) for found, ratio in zip(self.predicted, self.measured, strict=True)]


class Fitted(NamedTuple):
    """Predictions, and their quality on data sets that the model has not seen."""

    predictions: list[Prediction]
    mean_absolute_error: float | None
    """Mean over the left-out jobs; none: nothing could be left out."""
    rank_correlation: float | None
    """Mean over data sets of Spearman's correlation between predicted and measured ratios; none: no data set has
    enough jobs with ratios that differ."""


def recommend(past: Sequence[PastJob], candidates: Sequence[Features]) -> Fitted:
    """Predict the ratio of every candidate from all past jobs, with the spread over models without some data sets."""
    columns = columns_of([*(job.features for job in past), *candidates])
    wanted = matrix(candidates, columns)
    predictions, tests = [_Model(past, columns).predict(wanted)], list[LeftOut]()
    for names in folds(past):
        model = _without(past, names, columns)
        predictions.append(model.predict(wanted))
        tests += _tests(model, past, names, columns)
    errors = [error for test in tests for error in test.errors]
    correlations = [found for test in tests if (found := rank_correlation(test.predicted, test.measured)) is not None]
    return Fitted(
        [Prediction(values[0], min(values), max(values)) for values in zip(*predictions, strict=True)],
        statistics.fmean(errors) if errors else None,
        statistics.fmean(correlations) if correlations else None,
    )


def leave_out(past: Sequence[PastJob]) -> list[LeftOut]:
    """Predictions for every data set by a model that was fitted without it."""
    columns = columns_of(job.features for job in past)
    return [test for names in folds(past) for test in _tests(_without(past, names, columns), past, names, columns)]


def _without(past: Sequence[PastJob], names: Sequence[str], columns: list[str]) -> _Model:
    return _Model([job for job in past if job.data_set not in names], columns)


def _tests(model: _Model, past: Sequence[PastJob], names: Sequence[str], columns: list[str]) -> list[LeftOut]:
    """Predictions for the jobs of these data sets, as if nothing had run on them."""
    tests = []
    for name in names:
        jobs = [job for job in past if job.data_set == name]
        found = model.predict(matrix([job.new_features for job in jobs], columns))
        tests.append(LeftOut(name, found, [job.ratio for job in jobs]))
    return tests


def folds(past: Sequence[PastJob]) -> list[list[str]]:
    """Data sets that are left out together: each alone, or, if there are many, in `MAX_FOLDS` groups. None, if no job
    would be left."""
    names = sorted({job.data_set for job in past if job.counts})
    if len({job.data_set for job in past}) < 2:
        return []
    return [group for start in range(MAX_FOLDS) if (group := names[start::MAX_FOLDS])]


def rank_correlation(predicted: Sequence[float], measured: Sequence[float]) -> float | None:
    """Spearman's correlation; none for too few values, or if all measured ones are the same. Equal predictions rank
    nothing, and count as 0."""
    if len(measured) < MIN_RANKED or len(set(measured)) == 1:
        return None
    if len(set(predicted)) == 1:
        return 0.0
    return float(spearmanr(predicted, measured).statistic)


class _Model:
    """Gradient-boosted trees (`HistGradientBoostingRegressor`, which accepts missing features)."""

    def __init__(self, past: Sequence[PastJob], columns: list[str]) -> None:
        """Jobs count once with all their features and once as of new data: a new job mostly lacks what only a run on
        its data measures, and the trees must not rely on it."""
        rows = matrix([*(job.features for job in past), *(job.new_features for job in past)], columns)
        ratios = [job.ratio for job in past] * 2
        values = np.asarray(rows, np.float64).reshape(len(rows), len(columns))
        self._known = np.isfinite(values).any(0)  # the library does not accept a column without any value
        self._mean = statistics.fmean(ratios)
        self._trees = HistGradientBoostingRegressor(
            learning_rate=RATE,
            max_iter=ROUNDS,
            max_leaf_nodes=LEAVES,
            min_samples_leaf=2 * SMALLEST_LEAF,  # each job is in two rows
            early_stopping=False,
            random_state=0,
        )
        if self._known.any():
            self._trees.fit(values[:, self._known], ratios)

    def predict(self, rows: list[list[float]]) -> list[float]:
        """Expected ratios."""
        if not rows or not self._known.any():
            return [self._mean] * len(rows)
        return [float(value) for value in self._trees.predict(np.asarray(rows, np.float64)[:, self._known])]
