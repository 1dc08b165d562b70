"""Deep mutual learning of several students (arXiv 1706.00384)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.methods.base import FIELD
from app.recipe.methods.mutual import Mutual
from app.recipe.students.model import ModelConfig
from worker.data.batches import Batch
from worker.data.randomness import derive_seed
from worker.errors import UserError
from worker.limits import Subject, reading
from worker.losses.objective import TOTAL
from worker.methods.base import Method
from worker.methods.batch_accuracy import ACCURACY, accuracy_share, classes_of
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.recorder import Recorder
from worker.tensors import IGNORED
from worker.training.ema import Ema
from worker.training.flop_counter import BACKWARD
from worker.training.job_inputs import BUILDING_SECONDS, WHOLE_MACHINE
from worker.training.loop import (
    GRAD_NORM,
    Stage,
    Step,
    accumulate_gradients,
    descend,
    objective_shares,
    run_student,
)
from worker.training.state import Learner, TrainState, fresh_learner, fresh_student
from worker.training.step_inputs import Signals, StepInputs

MUTUAL = f"{TOTAL}/mutual"
"""Metric of each student beside its other losses: the divergence from the other students before its weight. Names of
the peers' metrics begin with the peer's name."""


def mutual_loss(logits: Tensor, others: Sequence[Tensor], peer_reduce: str = "mean") -> Tensor:
    """Mean or sum over the others of KL(p_other || p) for each row, (B,) in float32 or wider; `logits` and `others` are
    logits (B, C) of any floating dtype, and the others receive no gradient."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p = F.log_softmax(logits.to(wide), dim=-1)
    log_others = [F.log_softmax(other.detach().to(wide), dim=-1) for other in others]
    divergences = torch.stack([F.kl_div(log_p, log, reduction="none", log_target=True).sum(-1) for log in log_others])
    return divergences.mean(0) if peer_reduce == "mean" else divergences.sum(0)


class MutualMethod(Method[Mutual]):
    """See `Mutual`."""

    def learners(self) -> dict[str, Learner]:
        """Peers `peer-1`, `peer-2`, …; their weights are drawn from separate seeds."""
        job, device = self.inputs.job, next(self.inputs.student.parameters()).device
        found = {}
        for number, config in enumerate(self._configs):
            seeds = self.spec.seeds
            seed = seeds[number] if seeds else derive_seed(self.inputs.seed, "peer", number)
            peer = Subject(f"a peer of {FIELD}", "invalid_architecture", FIELD)
            with torch.random.fork_rng(devices=[]), reading(peer, WHOLE_MACHINE, BUILDING_SECONDS):
                model = fresh_student(config, seed).to(device)
            model.input_key = self.inputs.student.input_key
            found[f"peer-{number + 1}"] = fresh_learner(job.recipe, model)
        return found

    def step(self, stage: Stage, state: TrainState) -> Step:
        """Build the step; raises UserError (`invalid_job`) for losses with modules, which several students would
        share."""
        if list(stage.objective.trained) or list(stage.objective.frozen):
            message = f"recipe.losses: {FIELD}: mutual allows no loss with modules; accepted: losses without"
            raise UserError("invalid_job", message, "recipe.losses")
        return MutualStep(self.spec)

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        passes = self.spec.students - 1 if self.spec.updates == "in-turn" else 1
        peers = [network_cost(config).flops * self.inputs.data.train.rows_per_sample for config in self._configs]
        learned = {
            name: samples * (passes + 1 + BACKWARD) * each for name, each in zip(state.learners, peers, strict=True)
        }
        return {"student": samples * passes * self.inputs.student_flops, **learned}

    @cached_property
    def _configs(self) -> list[ModelConfig]:
        """Configs of the peers."""
        student, architectures = self.inputs.data.model, self.spec.architectures
        networks = architectures or [student.architecture] * (self.spec.students - 1)
        return [student.model_copy(update={"architecture": network}) for network in networks]


class _Member(NamedTuple):
    """One of the students, with the stage that trains it."""

    name: str
    stage: Stage
    model: Model
    optimizer: torch.optim.Optimizer
    ema: Ema | None

    def metric(self, name: str) -> str:
        return f"{self.name}/{name}" if self.name else name


class MutualStep:
    """One optimizer step of every student. All run in training mode, also for predictions to the others, so that batch
    norm includes the statistics of every pass."""

    def __init__(self, spec: Mutual) -> None:
        self._spec = spec

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
        """See `Step`."""
        members = _members(stage, state)
        for member in members:
            member.model.train()
        stage.ranks.begin_step(stage.seed, state.step)
        if step_inputs.signals is None:  # the teachers run once for all students
            signals = [stage.teacher_signals(micro_batch) for micro_batch in step_inputs.micro_batches]
            step_inputs = replace(step_inputs, signals=signals)
        together = self._spec.updates == "together"
        predicted = [_predict(member, step_inputs) for member in members] if together else []
        values: dict[str, Tensor] = {}
        for index, member in enumerate(members):
            if together:
                others = [logits for other, logits in enumerate(predicted) if other != index]
            else:
                others = [_predict(other, step_inputs) for other in members if other is not member]
            found = self._update(member, state.step, step_inputs, others)
            values |= {member.metric(name): value for name, value in found.items()}
        return values

    def _update(
        self, member: _Member, step: int, step_inputs: StepInputs, others: list[list[Tensor]]
    ) -> dict[str, Tensor]:
        """Update one student; `others` are the logits (B, C) of the other students, by micro-batch."""
        stage, model = member.stage, member.model
        count, epoch = stage.count(step_inputs), stage.epoch_at(step)

        def shares(number: int, micro_batch: Batch, signals: Signals) -> dict[str, Tensor]:
            outputs = run_student(stage, model, micro_batch, signals)
            found = objective_shares(stage, outputs, member.optimizer, count, epoch)
            logits, targets = outputs.outputs, micro_batch.targets
            rows = mutual_loss(logits, [each[number] for each in others], self._spec.peer_reduce)
            divergence = rows.where(classes_of(targets) != IGNORED, 0).sum() / count
            total = found[TOTAL] + self._spec.weight * divergence
            return {**found, TOTAL: total, MUTUAL: divergence, ACCURACY: accuracy_share(logits, targets, count)}

        values = accumulate_gradients(stage, stage.trainable, step_inputs, shares)
        values[GRAD_NORM] = descend(stage, member.optimizer, list(model.parameters()))
        if member.ema is not None:
            member.ema.update(model, step + 1, stage.ranks.local)
        return values


def _members(stage: Stage, state: TrainState) -> list[_Member]:
    """The job's student, then the others."""
    found = [_Member("", stage, state.student, state.optimizer, state.ema)]
    for name, peer in state.learners.items():
        recorder = Recorder(peer.model.network, ())
        peer_stage = replace(stage, forward=peer.model, recorder=recorder, trainable=peer.trainable)
        found.append(_Member(name, peer_stage, peer.model, peer.optimizer, peer.ema))
    return found


@torch.no_grad()
def _predict(member: _Member, step_inputs: StepInputs) -> list[Tensor]:
    """Logits (B, C) of every micro-batch."""
    stage = replace(member.stage, trains_student=False)  # so that no graph is built

    def compute(micro_batch: Batch) -> Tensor:
        return run_student(stage, member.model, micro_batch, {}).outputs

    return [stage.trainable(partial(compute, micro_batch)) for micro_batch in step_inputs.micro_batches]
