"""On a past whose truth is known, the better recipes are found, and the quality is measured on unseen data sets."""

from __future__ import annotations

import random
import statistics

import pytest

from app.recommendations.features import Features
from app.recommendations.regression import MAX_FOLDS, PastJob, folds, leave_out, rank_correlation, recommend

KINDS = ("kd", "dkd", "nkd", "dist")
EFFECT = {"kd": 0.9, "dkd": 0.8, "nkd": 0.7, "dist": 0.6}


def features(kind: str, level: float | None = None, weight: float = 1.0) -> Features:
    found = {f"recipe.losses.{kind}.kind={kind}": 1.0, f"recipe.losses.{kind}.weight": weight, "log data.samples": 2.0}
    return found | ({} if level is None else {"data.embedding.0": level})


def past(sets: int, effect: dict[str, float], noise: float = 0.01, seed: int = 0) -> list[PastJob]:
    """For every data set two jobs of each kind of loss; the ratio is its effect, and an offset of the data set."""
    draw = random.Random(seed)
    jobs = []
    for index in range(sets):
        offset = draw.gauss(0, 0.03)
        for kind in KINDS * 2:
            ratio = effect[kind] + offset + draw.gauss(0, noise)
            jobs.append(PastJob(features(kind, float(index)), features(kind), ratio, f"set {index}", True))
    return jobs


def test_the_better_recipe_is_expected_to_be_better() -> None:
    found = recommend(past(5, EFFECT), [features(kind) for kind in KINDS])
    expected = [prediction.expected for prediction in found.predictions]
    assert expected == sorted(expected, reverse=True)
    assert expected == pytest.approx(list(EFFECT.values()), abs=0.06)
    assert all(each.lowest <= each.expected <= each.highest for each in found.predictions)
    assert found.rank_correlation is not None
    assert found.rank_correlation > 0.8
    assert found.mean_absolute_error is not None
    assert found.mean_absolute_error < 0.08


def test_it_depends_on_the_data_where_the_past_does() -> None:
    """Where small data sets need one recipe and large ones another, a new one gets that of its size."""
    jobs = []
    for index, size in enumerate([1.0, 1.1, 1.2, 4.0, 4.1, 4.2]):
        for kind, ratio in (("kd", 0.9), ("dkd", 0.6)) if size < 2 else (("kd", 0.7), ("dkd", 0.85)):
            found = features(kind) | {"log data.samples": size}
            jobs += [PastJob(found, found, ratio, f"set {index}", True)] * 3
    small, large = (
        recommend(jobs, [features(kind) | {"log data.samples": size} for kind in ("kd", "dkd")]).predictions
        for size in (1.15, 4.15)
    )
    assert small[0].expected > small[1].expected + 0.1
    assert large[0].expected < large[1].expected - 0.05


def test_a_feature_that_only_a_candidate_has_changes_nothing() -> None:
    known, new = features("kd"), features("kd") | {"student.depth": 20.0}
    assert len({each.expected for each in recommend(past(3, EFFECT), [known, new]).predictions}) == 1


def test_where_the_order_is_another_on_every_data_set_the_quality_is_not_positive() -> None:
    jobs = []
    for index in range(4):
        turned = dict(zip(KINDS, (*list(EFFECT.values())[index:], *list(EFFECT.values())[:index]), strict=True))
        jobs += [job._replace(data_set=f"set {index}") for job in past(1, turned)]
    found = recommend(jobs, [features("kd")])
    assert found.rank_correlation is not None
    assert found.rank_correlation < 0.3


def test_a_left_out_data_set_is_predicted_from_the_others_only() -> None:
    """One data set is the opposite of all others: its own jobs would show it, those of the others can't."""
    opposite = {kind: 1.5 - ratio for kind, ratio in EFFECT.items()}
    odd = [job._replace(data_set="odd") for job in past(1, opposite, seed=1)]
    tests = {test.data_set: test for test in leave_out([*past(4, EFFECT), *odd])}
    assert len(tests) == 5
    wrong = rank_correlation(tests["odd"].predicted, tests["odd"].measured)
    assert wrong is not None
    assert wrong < -0.5
    others = [rank_correlation(test.predicted, test.measured) for name, test in tests.items() if name != "odd"]
    assert statistics.fmean(each for each in others if each is not None) > 0.5


def test_many_data_sets_are_left_out_in_groups_that_cover_all() -> None:
    jobs = past(2 * MAX_FOLDS + 3, EFFECT)
    groups = folds(jobs)
    assert len(groups) == MAX_FOLDS
    assert sorted(name for group in groups for name in group) == sorted({job.data_set for job in jobs})


def test_data_sets_of_other_tasks_are_never_left_out() -> None:
    jobs = past(3, EFFECT)
    others = [job._replace(counts=False, data_set=f"other {job.data_set}") for job in jobs]
    assert {name for group in folds([*jobs, *others]) for name in group} == {"set 0", "set 1", "set 2"}
    assert folds(past(1, EFFECT)) == []


def test_rank_correlation_is_spearmans() -> None:
    """Equal values share the mean of their ranks: here 1, 2.5, 2.5, 4 beside 1, 3, 2, 4."""
    found = rank_correlation([0.1, 0.2, 0.2, 9.0], [0.0, 5.0, 3.0, 6.0])
    assert found == pytest.approx(4.5 / (4.5 * 5.0) ** 0.5)
    assert rank_correlation([3.0, 2.0, 1.0], [0.0, 1.0, 7.0]) == pytest.approx(-1.0)
    assert rank_correlation([1.0, 2.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) is None
    assert rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == 0.0
