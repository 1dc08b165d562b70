"""Steps, samples and memory of a job."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.recipe.cost import student_cost
from app.recipe.data.sources import ImageData
from app.recipe.job import JobSpec, Recipe, Resources
from app.recipe.losses import CrossEntropy
from app.recipe.plan import NetworkCosts, kept_back_count, model_memory, plan_training, split_counts, training_flops
from app.recipe.students.architectures import Mlp
from app.recipe.students.inputs import ImageInput
from app.recipe.tally import Cost

IMAGE = ImageInput(channels=1, height=8, width=8)


def recipe(**settings: object) -> Recipe:
    return Recipe.model_validate({"losses": [CrossEntropy()], **settings})


def test_the_last_smaller_batch_of_an_epoch_counts() -> None:
    plan = plan_training(recipe(epochs=3, batch_size=32), 100)
    assert (plan.steps_per_epoch, plan.total_steps) == (4, 12)


def test_max_steps_ends_training_early_but_never_prolongs_it() -> None:
    assert plan_training(recipe(epochs=3, batch_size=50, max_steps=5), 100).total_steps == 5
    assert plan_training(recipe(epochs=3, batch_size=50, max_steps=500), 100).total_steps == 6


def test_stages_come_one_after_the_other_and_the_main_training_last() -> None:
    stage = {"losses": [CrossEntropy()], "epochs": 2}
    plan = plan_training(recipe(stages=[stage, stage], epochs=3, max_steps=5, batch_size=50), 100)
    assert [(part.first, part.end) for part in plan.stages] == [(0, 4), (4, 8), (8, 13)]
    assert plan.total_steps == 13
    assert [plan.stage_at(step) for step in (0, 3, 4, 7, 8, 12, 13)] == [0, 0, 1, 1, 2, 2, 2]


@given(samples=st.integers(1, 500), batch=st.integers(1, 600), step=st.integers(0, 200))
def test_samples_seen_follow_the_batches(samples: int, batch: int, step: int) -> None:
    plan = plan_training(recipe(batch_size=batch), samples)
    sizes = [min(batch, samples - first) for first in range(0, samples, batch)]
    assert plan.samples_until(step) == sum(sizes[number % len(sizes)] for number in range(step))


@given(samples=st.integers(2, 10_000), fraction=st.floats(0.001, 0.999))
def test_a_hold_out_leaves_both_sides_something(samples: int, fraction: float) -> None:
    kept, held = split_counts(ImageData(train="t", eval_fraction=fraction), samples)
    assert kept + held == samples
    assert kept >= 1
    assert held >= 1


def test_nothing_is_held_out_beside_an_evaluation_file() -> None:
    assert split_counts(ImageData(train="t", eval="e"), 10) == (10, 0)


def cost_of(student: Mlp) -> Cost:
    cost = student_cost(student, IMAGE, 10)
    assert cost is not None
    return cost


def test_operations_count_the_backward_pass_twice_and_the_teacher_once() -> None:
    settings = recipe(epochs=2, batch_size=4)
    plan, cost = plan_training(settings, 10), cost_of(Mlp())
    assert training_flops(plan, settings, NetworkCosts(cost)) == 3 * cost.flops * 20
    assert training_flops(plan, settings, NetworkCosts(cost, [cost])) == 4 * cost.flops * 20
    assert training_flops(plan, settings, NetworkCosts(cost, [cost], [cost, cost])) == 10 * cost.flops * 20


@pytest.mark.parametrize(
    ("method", "passes", "of_a_learner"),
    [
        ({"kind": "adversarial"}, 3 + 2 * 10, 3),
        ({"kind": "mutual", "students": 3}, 3 + 2, 3 + 2),
        ({"kind": "mutual", "students": 3, "updates": "together"}, 3 + 1, 3 + 1),
        ({"kind": "online"}, 3, 3),
        ({"kind": "hpm"}, 2 + 3, 0),
        ({"kind": "hpm", "mask_ratio": 0.5}, 3 + 3, 0),
        ({"kind": "meta"}, 3 + 3 + 2 + 3, 3 + 1),
        ({"kind": "meta", "quiz_batches": 2, "quiz_batch_size": 2}, 3 + 3 + 2 + 3, 3 + 1),
    ],
)
def test_operations_count_what_a_method_computes(method: dict[str, object], passes: int, of_a_learner: int) -> None:
    settings = recipe(epochs=2, batch_size=4, method=method)
    plan, cost = plan_training(settings, 10), cost_of(Mlp())
    assert training_flops(plan, settings, NetworkCosts(cost)) == passes * cost.flops * 20
    both = (passes + of_a_learner) * cost.flops * 20
    assert training_flops(plan, settings, NetworkCosts(cost, learners=[cost])) == both


@pytest.mark.parametrize(
    ("method", "batches"),
    [
        ({"kind": "meta"}, 2.7),
        ({"kind": "meta", "order": "finite-difference"}, 1),
        ({"kind": "adversarial"}, 1),
        ({"kind": "adversarial", "clean_teacher": "a", "robust_teacher": "b"}, 2),
        ({"kind": "smooth-adversarial"}, 2),
        ({"kind": "hpm"}, 0.25),
        ({"kind": "boundary-samples", "attack_size": 4}, 1.5),
        ({"kind": "boundary-samples"}, 2),
    ],
)
def test_memory_counts_the_batches_of_a_method(method: dict[str, object], batches: float) -> None:
    job = JobSpec(data=ImageData(train="t"), student=Mlp(), recipe=recipe(batch_size=8, method=method))
    cost = cost_of(Mlp())
    assert model_memory(job, NetworkCosts(cost), samples=100)[1] == 4 * 8 * round(batches * cost.activations)


def test_memory_of_a_network_that_is_trained_beside_the_student_is_that_of_a_student() -> None:
    teacher_optimizer = {"kind": "sgd", "lr": 0.1, "momentum": 0.0}
    settings = recipe(batch_size=8, method={"kind": "online", "teacher_optimizer": teacher_optimizer})
    job = JobSpec(data=ImageData(train="t"), student=Mlp(), recipe=settings)
    cost, other = cost_of(Mlp()), cost_of(Mlp(hidden=[30]))
    alone, both = (model_memory(job, NetworkCosts(cost, (), learners), samples=100) for learners in ((), (other,)))
    assert both[0] - alone[0] == 4 * 2 * other.parameters  # weights and gradients: this optimizer has no state
    assert both[1] - alone[1] == 4 * 8 * other.activations


def test_of_networks_that_are_trained_in_turn_one_has_activations_at_a_time() -> None:
    job = JobSpec(data=ImageData(train="t"), student=Mlp(), recipe=recipe(batch_size=8, method={"kind": "mutual"}))
    cost, other = cost_of(Mlp()), cost_of(Mlp(hidden=[500]))
    assert other.activations > cost.activations
    for learners, largest in (((cost, cost), cost), ((other, cost), other)):
        assert model_memory(job, NetworkCosts(cost, (), learners), samples=100)[1] == 4 * 8 * largest.activations


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        ({"optimizer": {"kind": "adamw"}}, 4),
        ({"optimizer": {"kind": "sgd", "lr": 0.1}}, 3),
        ({"optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0}}, 2),
        ({"optimizer": {"kind": "sgdp", "lr": 0.1}}, 3),
        ({"optimizer": {"kind": "adamp"}, "ema_decay": 0.9}, 5),
        ({"optimizer": {"kind": "nap", "inner": {"kind": "adamw"}}}, 4),
        ({"optimizer": {"kind": "normalized-gd"}}, 2),
        ({"optimizer": {"kind": "nap", "inner": {"kind": "sgd", "lr": 0.1, "momentum": 0.0}}}, 2),
    ],
)
def test_memory_counts_a_copy_of_the_weights_for_each_state(settings: dict[str, object], copies: int) -> None:
    job = JobSpec(data=ImageData(train="t"), student=Mlp(), recipe=recipe(batch_size=8, **settings))
    cost = cost_of(Mlp())
    assert model_memory(job, NetworkCosts(cost), samples=100) == (
        4 * cost.parameters * copies,
        4 * 8 * cost.activations,
    )


@pytest.mark.parametrize("kind", ["sinkgd", "swan"])
def test_stateless_optimizers_keep_moments_of_all_but_hidden_matrices(kind: str) -> None:
    def estimate(optimizer: dict[str, object]) -> int:
        student = Mlp(hidden=[20, 30])
        job = JobSpec(data=ImageData(train="t"), student=student, recipe=recipe(optimizer=optimizer))
        return sum(model_memory(job, NetworkCosts(cost_of(student)), samples=100))

    assert estimate({"kind": "adamw"}) - estimate({"kind": kind}) == 8 * (64 * 20 + 20 * 30)


def test_accumulation_and_bf16_lower_the_estimate() -> None:
    def estimate(**settings: object) -> int:
        job = JobSpec(data=ImageData(train="t"), student=Mlp(), recipe=recipe(batch_size=64, **settings))
        return sum(model_memory(job, NetworkCosts(cost_of(Mlp())), samples=100))

    assert estimate(accumulate=4) < estimate()
    assert estimate(precision="bf16") < estimate()


def test_processes_multiply_what_each_of_them_holds() -> None:
    def memory(**resources: object) -> int:
        job = JobSpec(
            data=ImageData(train="x"),
            student=Mlp(),
            recipe=Recipe(losses=[CrossEntropy()], batch_size=100),
            resources=Resources.model_validate({"queue": "cpu", **resources}),
        )
        return sum(model_memory(job, NetworkCosts(cost_of(Mlp())), samples=100))

    assert memory(processes=2) == memory() + 4 * 4 * cost_of(Mlp()).parameters
    assert memory(processes=2, sharding="fsdp") == memory()


@given(samples=st.integers(2, 10_000), fraction=st.floats(0.001, 0.999))
def test_a_method_that_keeps_samples_back_leaves_some_to_train_on(samples: int, fraction: float) -> None:
    settings = recipe(method={"kind": "meta", "quiz_fraction": fraction})
    assert 1 <= kept_back_count(settings, samples) <= samples - 1


def test_other_methods_keep_nothing_back() -> None:
    assert kept_back_count(recipe(), 100) == 0
    assert kept_back_count(recipe(method={"kind": "meta"}), 100) == 10
