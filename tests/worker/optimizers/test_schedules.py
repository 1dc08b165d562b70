"""Learning-rate schedules as functions of the step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.recipe.optimizers import SCHEDULES, Constant, Cosine, Linear, MultiStep, Schedule
from app.recipe.plan import StagePlan
from worker.optimizers.schedules import SHAPES, rate_factor

PLAN = StagePlan(first=0, steps=100, steps_per_epoch=10)
ALL: list[Schedule] = [Constant(), Cosine(final_ratio=0.1), Linear(final_ratio=0.1), MultiStep(milestones=[3.0, 6.5])]


def test_every_schedule_of_the_contract_has_a_shape() -> None:
    assert set(SHAPES) == set(SCHEDULES)


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.kind)
def test_warm_up_rises_linearly_to_the_peak(spec: Schedule) -> None:
    warm = spec.model_copy(update={"warmup_steps": 4})
    assert [rate_factor(warm, step, PLAN) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_constant_stays_at_the_peak() -> None:
    assert {rate_factor(Constant(), step, PLAN) for step in range(100)} == {1.0}


def test_cosine_is_halfway_in_the_middle_and_near_its_final_ratio_at_the_end() -> None:
    spec = Cosine(final_ratio=0.2)
    assert rate_factor(spec, 0, PLAN) == 1.0
    assert rate_factor(spec, 50, PLAN) == pytest.approx(0.6)
    assert rate_factor(spec, 99, PLAN) == pytest.approx(0.2, abs=1e-3)


def test_linear_falls_by_the_same_amount_each_step() -> None:
    rates = [rate_factor(Linear(), step, PLAN) for step in range(100)]
    assert rates == pytest.approx([1 - step / 100 for step in range(100)])


def test_multi_step_drops_at_its_milestones_in_epochs() -> None:
    spec = MultiStep(milestones=[3.0, 6.5], gamma=0.1)
    assert [rate_factor(spec, step, PLAN) for step in (29, 30, 64, 65)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


@given(
    spec=st.sampled_from(ALL),
    warmup=st.integers(0, 300),
    steps=st.integers(1, 200),
    step=st.integers(0, 199),
)
def test_every_factor_lies_between_zero_and_one(spec: Schedule, warmup: int, steps: int, step: int) -> None:
    plan = StagePlan(first=0, steps=steps, steps_per_epoch=10)
    factor = rate_factor(spec.model_copy(update={"warmup_steps": warmup}), min(step, steps - 1), plan)
    assert 0.0 <= factor <= 1.0


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_a_warmup_may_be_a_share_of_the_stage(kind: str) -> None:
    plan = StagePlan(first=0, steps=40, steps_per_epoch=10)
    by_share = TypeAdapter(Schedule).validate_python({"kind": kind, "warmup_ratio": 0.1})
    by_steps = TypeAdapter(Schedule).validate_python({"kind": kind, "warmup_steps": 4})
    rates = [rate_factor(by_share, step, plan) for step in range(40)]
    assert rates == [rate_factor(by_steps, step, plan) for step in range(40)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]


def test_a_warmup_is_given_once() -> None:
    with pytest.raises(ValidationError, match="warmup_steps or warmup_ratio"):
        Cosine(warmup_steps=4, warmup_ratio=0.1)
