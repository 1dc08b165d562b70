"""Weight-shared networks whose sub-networks are trained together and searched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.plan import plan_training
from app.recipe.students.architectures import Transformers
from app.recipe.students.sub_spaces import PRESETS, SubNetwork, SubSpace
from tests.kinds import BERT
from tests.worker.methods.supernet_scene import (
    SIZES,
    SPACE,
    TEACHER,
    attended,
    job,
    plain_relation,
    relation,
    sliced,
)
from worker.data.batches import Batches, whole_split
from worker.methods.supernet_step import SupernetState, SupernetStep, draw
from worker.students.model import Model
from worker.students.super_network import SuperNetwork
from worker.students.weights import load_model
from worker.tasks.embedding import VECTORS
from worker.training.loop import Stage, set_rate
from worker.training.stages import build_stages, fresh_optimizer, open_teacher
from worker.training.state import TrainState, initial_state


@pytest.fixture
def models(inputs: dict[str, str]) -> tuple[Model, Model, SuperNetwork]:
    """A teacher, the shared network of `SPACE` with random weights, and its sub-networks; in float64."""
    teacher = load_model(Path(inputs["encoder"])).double()
    networks = SubSpace(**SPACE).networks(TEACHER)
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 24}
    shape = {"architecture": Transformers(config={**BERT, **SIZES, **sizes}), "targets": 12}
    torch.manual_seed(3)
    student = Model(teacher.config.model_copy(update=shape)).double()
    return teacher, student, SuperNetwork(student.config, networks)


def tokens() -> Tensor:
    ids = torch.randint(5, 40, (4, 8), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((8, 5, 3, 7)):
        ids[row, 0], ids[row, length - 1], ids[row, length:] = 2, 3, 0
    return ids


def test_sub_networks_are_leading_slices_with_evenly_chosen_layers(models: tuple[Model, Model, SuperNetwork]) -> None:
    _, student, space = models
    assert space.kept(SubNetwork(3, 8, 2, 16)) == [0, 1, 2]
    assert space.kept(SubNetwork(2, 8, 2, 16)) == [0, 2]
    for sizes in space.networks:
        encoder, parameters = sliced(student, sizes)
        ids = tokens()
        expected = attended(encoder, parameters, ids)
        taps = JobSpec.model_validate(job()).recipe.losses[0].taps().student
        recording = SuperNetwork(student.config, space.networks, taps)
        recording.call(student, sizes)(ids)
        for found, wanted in zip(recording.take(sizes).values(), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def scene(
    teacher: Model, student: Model, space: SuperNetwork, ids: Tensor, **recipe: Any
) -> tuple[Stage, TrainState, SupernetStep]:
    """A stage of plain gradient descent without dropout on one batch, in float64."""
    descent = {"kind": "sgd", "lr": 0.1, "momentum": 0.0}
    spec = JobSpec.model_validate(job({"losses": [relation()], "optimizer": descent, **recipe}))
    plan = plan_training(spec.recipe, len(ids))
    samples = whole_split({"tokens": ids}, torch.zeros(len(ids), 3, dtype=torch.float64))
    state = initial_state(spec.recipe, student)
    state.method = SupernetState()
    taught = {"teacher": open_teacher(teacher, spec, "teacher")}
    stage = build_stages(VECTORS, spec, plan, Batches(samples, len(ids), 0), state, taught, 0)[0]
    state.optimizer = fresh_optimizer(stage, student)
    set_rate(stage, state)
    taps = spec.recipe.losses[0].taps().student
    return stage, state, SupernetStep(1, [SuperNetwork(student.config, space.networks, taps)], plan)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_adds_the_gradients_of_its_sub_networks(
    models: tuple[Model, Model, SuperNetwork], accumulate: int
) -> None:
    """In float64, against the objective and the slices written out."""
    teacher, student, space = models
    chosen, ids = draw(space.networks, 1, 0, 0, 0), tokens()
    whole = {name: weight.detach().clone().requires_grad_() for name, weight in student.network.named_parameters()}
    copy = Model(student.config).double()
    copy.network.load_state_dict(whole)
    with torch.no_grad():
        taught = attended(*sliced(teacher, TEACHER), ids)
    totals = []
    for sizes in chosen:
        loss = plain_relation(attended(*sliced(copy, sizes), ids), taught, ids != 0, 2)
        loss.backward()
        totals.append(loss.item())
    assert (chosen[0], chosen[-1], len(chosen)) == (space.networks[-1], space.networks[0], 3)
    stage, state, step = scene(teacher, student, space, ids, accumulate=accumulate)
    values = step(stage, state, stage.step_inputs(0))
    assert float(values["loss"]) == pytest.approx(sum(totals), rel=1e-9)
    assert float(values["loss/smallest"]) == pytest.approx(totals[0], rel=1e-9)
    assert float(values["loss/drawn"]) == pytest.approx(totals[1], rel=1e-9)
    assert float(values["loss/largest"]) == pytest.approx(totals[2], rel=1e-9)
    for (name, weight), other in zip(student.network.named_parameters(), copy.network.parameters(), strict=True):
        gradient = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(weight, whole[name] - 0.1 * gradient, rtol=1e-9, atol=1e-12)


def test_draws_depend_on_the_step_alone_and_take_no_sub_network_twice() -> None:
    networks = PRESETS["base"].networks(SubNetwork(12, 768, 12, 3072))
    for step in range(20):
        chosen = draw(networks, 5, 1, step, 0)
        assert chosen == draw(networks, 5, 1, step, 0)
        assert (chosen[0], chosen[-1]) == (networks[-1], networks[0])
        assert len(set(chosen)) == len(chosen) == 7
    assert len({tuple(draw(networks, 2, 1, step, 0)) for step in range(20)}) > 15
    assert len(draw(networks[:3], 5, 1, 0, 0)) == 3
    assert draw(networks[:1], 5, 1, 0, 0) == networks[:1]


def test_presets_are_rounded_to_what_a_teacher_allows() -> None:
    base = PRESETS["tiny"].networks(SubNetwork(12, 768, 24, 3072))
    assert (base[0], base[-1], len(base)) == (SubNetwork(7, 224, 7, 784), SubNetwork(4, 128, 4, 256), 64)
    small = PRESETS["small"].networks(SubNetwork(6, 384, 12, 1536))
    assert {sizes.width for sizes in small} == {128, 160, 192}
    assert all(sizes.width == 32 * sizes.heads and sizes.hidden <= 1536 for sizes in small)
