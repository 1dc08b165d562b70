"""The step of shared networks: gradients of some of their sub-networks are added (AutoDistil, arXiv 2201.12507)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from app.recipe.plan import TrainingPlan
from app.recipe.students.sub_spaces import SubNetwork
from worker.data.batches import Batch
from worker.data.randomness import generator
from worker.losses.objective import TOTAL, BatchOutputs, valid_rows
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.super_network import SuperNetwork
from worker.training.ema import Ema
from worker.training.flop_counter import BACKWARD
from worker.training.loop import GRAD_NORM, Stage, descend, objective_shares
from worker.training.state import MethodState, TrainState
from worker.training.step_inputs import Signals, StepInputs

LARGEST, SMALLEST, DRAWN = (f"{TOTAL}/{name}" for name in ("largest", "smallest", "drawn"))
"""Metrics of a step: the objective of the largest and of the smallest sub-network, and the mean over those that were
drawn. Names of the metrics of later sub-spaces begin with `space-2/` and so on."""


class SupernetState(MethodState):
    """Operations so far."""

    flops: list[int] = []
    """Operations of the sub-networks of each sub-space in training, for one row of each sample and over all attempts;
    without those of the largest one of the first sub-space, which is counted as the student."""


class SupernetStep:
    """One optimizer step of every shared network, with the gradients of some of its sub-networks added."""

    def __init__(self, drawn: int, spaces: list[SuperNetwork], plan: TrainingPlan) -> None:
        self._drawn, self._spaces, self._plan = drawn, spaces, plan

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
        """See `Step`."""
        assert isinstance(state.method, SupernetState)
        stage.ranks.begin_step(stage.seed, state.step)
        if step_inputs.signals is None:  # the teachers run once for all sub-networks
            signals = [stage.teacher_signals(micro_batch) for micro_batch in step_inputs.micro_batches]
            step_inputs = replace(step_inputs, signals=signals)
        samples = self._plan.samples_until(state.step + 1) - self._plan.samples_until(state.step)
        state.method.flops = state.method.flops or [0] * len(self._spaces)
        values: dict[str, Tensor] = {}
        for number, member in enumerate(_shared_networks(stage, state)):
            space = self._spaces[number]
            chosen = draw(space.networks, self._drawn, stage.seed, state.step, number)
            found = _update(member, space, chosen, state.step, step_inputs)
            values |= {f"{member.prefix}{name}": value for name, value in found.items()}
            counted = chosen if number else [sizes for sizes in chosen if sizes != space.networks[0]]
            costs = [network_cost(space.config_of(sizes)).flops for sizes in counted]
            state.method.flops[number] += samples * (1 + BACKWARD) * sum(costs)
        return values


@torch.no_grad()
def draw(networks: list[SubNetwork], count: int, seed: int, step: int, space: int) -> list[SubNetwork]:
    """The sub-networks of a step: the smallest, `count` drawn from the others without replacement, and the largest. The
    draw depends on seed, step and the number of the sub-space alone, so that all processes agree."""
    largest, smallest, between = networks[0], networks[-1], networks[1:-1]
    order = torch.randperm(len(between), generator=generator(seed, "sub-networks", step, space))
    return list(dict.fromkeys([smallest, *(between[index] for index in order[:count].tolist()), largest]))


class _SharedNetwork(NamedTuple):
    """One of the shared networks, with what trains it."""

    prefix: str
    """How the names of its metrics begin."""
    stage: Stage
    model: Model
    optimizer: torch.optim.Optimizer
    ema: Ema | None


def _shared_networks(stage: Stage, state: TrainState) -> list[_SharedNetwork]:
    found = [_SharedNetwork("", stage, state.student, state.optimizer, state.ema)]
    for name, learner in state.learners.items():
        own = replace(stage, trainable=learner.trainable)
        found.append(_SharedNetwork(f"{name}/", own, learner.model, learner.optimizer, learner.ema))
    return found


def _update(
    member: _SharedNetwork, space: SuperNetwork, chosen: list[SubNetwork], step: int, step_inputs: StepInputs
) -> dict[str, Tensor]:
    """Add the gradients of the `chosen` sub-networks, the largest last, and take the optimizer's step; metrics are
    floating scalars by name."""
    stage, model = member.stage, member.model
    count, epoch = stage.count(step_inputs), stage.epoch_at(step)
    tokens = tokens_per_row(model, step_inputs.batch, count, stage)
    assert step_inputs.signals is not None  # computed by the caller
    sums: dict[SubNetwork, dict[str, Tensor]] = {}
    for sizes in chosen:
        for micro_batch, signals in zip(step_inputs.micro_batches, step_inputs.signals, strict=True):
            # with the largest last, gradients are exchanged when all weights that any of them uses have one
            last = sizes is chosen[-1] and micro_batch is step_inputs.micro_batches[-1]
            with stage.ranks.micro_batch(stage.trainable, last=last):
                shares = partial(_shares, member, space, sizes, micro_batch, signals, count, epoch, tokens)
                found = stage.trainable(shares)
                found[TOTAL].backward()
            before = sums.setdefault(sizes, {name: torch.zeros_like(value) for name, value in found.items()})
            sums[sizes] = {name: before[name] + value.detach() for name, value in found.items()}
    values = _metrics(stage, space, sums)
    values[GRAD_NORM] = descend(stage, member.optimizer, list(model.parameters()))
    if member.ema is not None:
        member.ema.update(model, step + 1, stage.ranks.local)
    return values


def _shares(
    member: _SharedNetwork,
    space: SuperNetwork,
    sizes: SubNetwork,
    micro_batch: Batch,
    signals: Signals,
    count: Tensor,
    epoch: float,
    tokens: Tensor | None,
) -> dict[str, Tensor]:
    """The objective of a sub-network on a micro-batch; see `Shares`."""
    stage, model = member.stage, member.model
    with torch.autocast(stage.device.type, torch.bfloat16, enabled=stage.recipe.precision == "bf16"):
        outputs = space.call(model, sizes, train=True)(samples := micro_batch.inputs[model.input_key])
    features, rows = space.take(sizes), micro_batch.rows_per_sample
    seen = BatchOutputs(
        outputs, micro_batch.targets, signals, features, model.tokens(samples), tokens, rows_per_sample=rows
    )
    return objective_shares(stage, seen, member.optimizer, count, epoch)


def tokens_per_row(model: Model, batch: Batch, count: Tensor, stage: Stage | None = None) -> Tensor | None:
    """Mean number of tokens in the `count` (a scalar int64) rows of a batch that count, over all processes of `stage`,
    a floating scalar; none: the model reads no texts."""
    tokens = model.tokens(batch.inputs[model.input_key])
    if tokens is None:
        return None
    total = (tokens & valid_rows(batch.targets).unsqueeze(-1)).sum()
    return (total if stage is None else stage.ranks.sum(total)).clamp(min=1) / count


def _metrics(stage: Stage, space: SuperNetwork, sums: dict[SubNetwork, dict[str, Tensor]]) -> dict[str, Tensor]:
    """Metrics of a step, over all processes: sums of the objective and its terms over the sub-networks, and the
    objective by sub-network."""
    names = next(iter(sums.values()))
    values = {name: torch.stack([found[name] for found in sums.values()]).sum() for name in names}
    largest, smallest = space.networks[0], space.networks[-1]
    values |= {LARGEST: sums[largest][TOTAL], SMALLEST: sums[smallest][TOTAL]}
    drawn = [found[TOTAL] for sizes, found in sums.items() if sizes not in (largest, smallest)]
    return stage.ranks.sum_all(values | ({DRAWN: torch.stack(drawn).mean()} if drawn else {}))
