"""Deep mutual learning of several students (arXiv 1706.00384)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.methods.base import FIELD, LEARNING
from app.recipe.methods.mutual import Mutual
from app.recipe.students.model import ModelConfig
from worker.data.batches import Batch
from worker.data.randomness import derive_seed
from worker.errors import UserError
from worker.limits import Subject, reading
from worker.losses.objective import TOTAL
from worker.methods.base import Method
from worker.methods.batch_accuracy import ACCURACY, accuracy_share, classes_of
from worker.methods.peer_features import Codes, PeerFeatures
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.recorder import Recorder
from worker.tensors import IGNORED
from worker.training.ema import Ema
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

MUTUAL, FEATURES = f"{TOTAL}/mutual", f"{TOTAL}/inheritance-exploration"
"""Metrics of each student beside its other losses, before their weights: the divergence from the other students, and
the loss on features. Names of the peers' metrics begin with the peer's name."""
ENCODERS = "mutual-encoders"
"""Name of a student's encoders among the modules that learn with it."""


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

    _features: PeerFeatures | None = None
    """Made with the learners."""

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
        if self.spec.features is not None:
            (peer_learner,), samples = found.values(), self.inputs.data.train
            models = [self.inputs.student, peer_learner.model]
            self._features = PeerFeatures(self.spec.features, models, samples, self.inputs.seed)
            peer_learner.aux_modules[ENCODERS] = self._features.encoders[1]
        return found

    def modules(self) -> dict[str, nn.Module]:
        return {} if self._features is None else {ENCODERS: self._features.encoders[0]}

    def step(self, stage: Stage, state: TrainState) -> Step:
        """Build the step; raises UserError (`invalid_job`) for losses with modules, which several students would
        share."""
        if len(stage.objective.trained) > len(self.modules()) or len(stage.objective.frozen):
            message = f"recipe.losses: {FIELD}: mutual allows no loss with modules; accepted: losses without"
            raise UserError("invalid_job", message, "recipe.losses")
        return MutualStep(self.spec, self._features)

    def flops(self, state: TrainState, samples: int) -> dict[str, int]:
        passes = self.spec.passes(self.inputs.job.recipe)
        peers = [network_cost(config).flops * self.inputs.data.train.rows_per_sample for config in self._configs]
        learned = {name: samples * passes * each for name, each in zip(state.learners, peers, strict=True)}
        return {"student": samples * (passes - LEARNING) * self.inputs.student_flops, **learned}

    @cached_property
    def _configs(self) -> list[ModelConfig]:
        """Configs of the peers."""
        student, architectures = self.inputs.data.model, self.spec.architectures
        networks = architectures or [student.architecture] * (self.spec.students - 1)
        return [student.model_copy(update={"architecture": network}) for network in networks]


class _Peer(NamedTuple):
    """One of the students, with the stage that trains it."""

    name: str
    stage: Stage
    model: Model
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    learning: list[nn.Parameter]

    def metric(self, name: str) -> str:
        return f"{self.name}/{name}" if self.name else name


class _Prediction(NamedTuple):
    """What the other students learn from, without a graph."""

    logits: Tensor
    """(B, C), or (B, S, C) per token."""
    codes: Codes | None
    """Where features are compared."""


class MutualStep:
    """One optimizer step of every student. All run in training mode, also for predictions to the others, so that batch
    norm includes the statistics of every pass."""

    def __init__(self, spec: Mutual, features: PeerFeatures | None = None) -> None:
        self._spec, self._features = spec, features

    def __call__(self, stage: Stage, state: TrainState, step_inputs: StepInputs) -> dict[str, Tensor]:
        """See `Step`."""
        members = self._peers(stage, state)
        for member in members:
            member.model.train()
        stage.ranks.begin_step(stage.seed, state.step)
        if step_inputs.signals is None:  # the teachers run once for all students
            signals = [stage.teacher_signals(micro_batch) for micro_batch in step_inputs.micro_batches]
            step_inputs = replace(step_inputs, signals=signals)
        together = self._spec.updates == "together"
        predicted = [self._predict(number, member, step_inputs) for number, member in enumerate(members) if together]
        values: dict[str, Tensor] = {}
        for index, member in enumerate(members):
            others = [
                predicted[number] if together else self._predict(number, other, step_inputs)
                for number, other in enumerate(members)
                if other is not member
            ]
            found = self._update(index, member, state.step, step_inputs, others)
            values |= {member.metric(name): value for name, value in found.items()}
        return values

    def _update(
        self, index: int, member: _Peer, step: int, step_inputs: StepInputs, others: list[list[_Prediction]]
    ) -> dict[str, Tensor]:
        """Update student `index`; `others` are the predictions of the other students, by micro-batch."""
        stage, model = member.stage, member.model
        count, epoch = stage.count(step_inputs), stage.epoch_at(step)

        def shares(number: int, micro_batch: Batch, signals: Signals) -> dict[str, Tensor]:
            outputs = run_student(stage, model, micro_batch, signals)
            found = objective_shares(stage, outputs, member.optimizer, count, epoch)
            logits, targets = outputs.outputs, micro_batch.targets
            predicted, valid = [each[number] for each in others], classes_of(targets) != IGNORED
            rows = mutual_loss(logits, [each.logits for each in predicted], self._spec.peer_reduce)
            divergence = rows.where(valid, 0).sum() / count
            found[TOTAL], found[MUTUAL] = found[TOTAL] + self._spec.weight * divergence, divergence
            if (features := self._features) is not None and (codes := predicted[0].codes) is not None:
                rows = features.loss(features.encode(index, outputs.features, valid), codes, valid)
                found[FEATURES] = rows.where(valid, 0).sum() / count
                found[TOTAL] = found[TOTAL] + features.weight(epoch, stage.plan.epochs) * found[FEATURES]
            return {**found, ACCURACY: accuracy_share(logits, targets, count)}

        values = accumulate_gradients(stage, stage.trainable, step_inputs, shares)
        values[GRAD_NORM] = descend(stage, member.optimizer, member.learning)
        if member.ema is not None:
            member.ema.update(model, step + 1, stage.ranks.local)
        return values

    def _peers(self, stage: Stage, state: TrainState) -> list[_Peer]:
        """The job's student, then the others."""
        own = self._features.recorders if self._features else []
        student_stage = replace(stage, recorder=own[0]) if own else stage
        student, learning = state.student, stage.learning(state.student)
        found = [_Peer("", student_stage, student, state.optimizer, state.ema, learning)]
        for name, peer in state.learners.items():
            recorder = own[1] if own else Recorder(peer.model.network, ())
            peer_stage = replace(stage, forward=peer.model, recorder=recorder, trainable=peer.trainable)
            found.append(_Peer(name, peer_stage, peer.model, peer.optimizer, peer.ema, peer.learning))
        return found

    @torch.no_grad()
    def _predict(self, index: int, member: _Peer, step_inputs: StepInputs) -> list[_Prediction]:
        """Predictions of student `index` for every micro-batch."""
        stage = replace(member.stage, trains_student=False)  # so that no graph is built

        def compute(micro_batch: Batch) -> _Prediction:
            outputs = run_student(stage, member.model, micro_batch, {})
            valid, features = classes_of(micro_batch.targets) != IGNORED, self._features
            codes = None if features is None else features.encode(index, outputs.features, valid)
            return _Prediction(outputs.outputs, codes)

        return [stage.trainable(partial(compute, micro_batch)) for micro_batch in step_inputs.micro_batches]
