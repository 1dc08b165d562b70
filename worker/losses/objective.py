"""The objective: the weighted sum of a stage's terms, divided once by the count of valid rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from app.recipe.losses import CrossEntropy, Loss
from app.recipe.losses.taps import Tap
from app.recipe.losses.weights import weight_at
from app.recipe.teachers.teacher import Teacher, TeacherShare, Weighting
from worker.kernels.rows import row_loss, runs_on_triton
from worker.kernels.spec import RowSpec
from worker.losses import build_term
from worker.losses.base import Features, LossInputs, LossTerm, Reporting
from worker.losses.builder import LossBuilder
from worker.losses.passes import Pass, in_kernels, kernel_divergence
from worker.outputs import HiddenStates, TeacherSignal
from worker.tensors import IGNORED, surely_none

TOTAL = "loss"
NO_FEATURES: Mapping[Tap, Tensor] = {}


@dataclass(frozen=True, eq=False)
class BatchOutputs:
    """Outputs of student and teachers for a part (B rows) of a batch."""

    student: Tensor | HiddenStates
    """The student's outputs (B, C), floating; of a language model the inputs of its last layer."""
    targets: Tensor
    """(B,) int64, or (B, C) floating probabilities or values; of a language model (B, S) int64."""
    signals: Mapping[str, TeacherSignal]
    """Teacher outputs, by the teachers' names."""
    features: Mapping[Tap, Tensor] = field(default_factory=dict)
    """The student's activations (B, ...), floating."""
    tokens: Tensor | None = None
    """(B, S) bool: the student's tokens that aren't padding; none if its inputs aren't texts."""
    tokens_per_row: Tensor | None = None
    """See `Features`."""
    teacher_learns: bool = False
    """Whether the teachers' outputs have a gradient, and gradients of the losses are differentiated again: all terms
    are then computed in plain PyTorch."""
    rows_per_sample: int = 1
    """See `Batch.rows_per_sample`."""
    epoch: float = 0.0
    """See `LossInputs`; set by the objective."""
    sample_index: Tensor | None = None
    """See `LossInputs`."""

    @property
    def outputs(self) -> Tensor:
        """The student's outputs for whole samples (B, C), floating. Raises TypeError for a language model."""
        if not isinstance(self.student, Tensor):
            raise TypeError("the logits of a language model are computed where they are used, some rows at a time")
        return self.student

    @property
    def states(self) -> HiddenStates:
        """The student's hidden states, of a language model. Raises TypeError for any other student."""
        if isinstance(self.student, Tensor):
            raise TypeError("outputs for whole samples have no hidden states")
        return self.student


class _Weighted(NamedTuple):
    spec: Loss
    term: LossTerm


class Objective:
    """Named terms and their weighted sum.

    A batch may be computed in parts. Each call divides by the count of the whole batch, so its result is the part's
    share of the batch's mean: the shares of all parts add up to the loss of the batch, and so do their gradients.
    """

    def __init__(
        self,
        specs: Sequence[Loss],
        builder: LossBuilder,
        teachers: Sequence[Teacher | TeacherShare] = (),
        weighting: Weighting = "fixed",
        path: str = "recipe.losses",
    ) -> None:
        builder.new_stage()
        self._teachers, self._weighting = {teacher.name: teacher.weight for teacher in teachers}, weighting
        self._coded = builder.codes is not None
        self._terms: dict[str, _Weighted] = {}
        for index, (name, spec) in enumerate(zip(unique_names([spec.kind for spec in specs]), specs, strict=True)):
            builder.param = f"{path}[{index}]"
            self._terms[name] = _Weighted(spec, build_term(spec, builder))
        self.trained = nn.ModuleList(builder.aux_modules[name] for name in sorted(builder.trained - builder.frozen))
        """Modules that are trained together with the student."""
        self.frozen = nn.ModuleList(builder.aux_modules[name] for name in sorted(builder.frozen))

    @property
    def teachers(self) -> set[str]:
        """Names of the teachers that its terms use."""
        learning = [spec for spec, _ in self._terms.values() if spec.needs_teacher]
        return {name for spec in learning for name in (spec.named_teachers().values() or self._teachers)}

    def figures(self) -> dict[str, dict[str, float]]:
        """Figures of its terms for the report, by their names; terms without any are left out."""
        return {name: term.figures() for name, (_, term) in self._terms.items() if isinstance(term, Reporting)}

    def only(self, wanted: Callable[[Loss], bool]) -> Self:
        """A copy with the wanted terms alone; they keep their names."""
        some = copy(self)
        some._terms = {name: term for name, term in self._terms.items() if wanted(term.spec)}
        return some

    def prepare(self) -> None:
        """Set the modules' modes for training: the trained ones get gradients, the frozen ones are in evaluation
        mode."""
        self.trained.requires_grad_(True).train()
        self.frozen.requires_grad_(False).eval()

    def count(self, targets: Tensor, everywhere: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Valid rows of a whole batch, a scalar int64, from targets (B, ...); at least 1, so that a batch of ignored
        rows has the loss 0 and not NaN.

        `everywhere` sums over the processes that share the batch.
        """
        count = valid_rows(targets).sum()
        return (everywhere(count) if everywhere else count).clamp(min=1)

    def __call__(self, seen: BatchOutputs, count: Tensor, epoch: float = 0.0, epochs: float = 1.0) -> dict[str, Tensor]:
        """Share of a part of a batch with `count` valid rows, a scalar int64: `loss`, and each term's `loss/<kind>`
        before its weight, floating scalars.

        Weights that change depend on `epoch` of the stage's `epochs`, both with fraction.
        """
        seen = replace(seen, epoch=epoch)
        valid, targets = _rows_that_count(seen.targets), seen.targets
        if valid is not None and targets.ndim != 2:
            targets = targets.where(valid, 0)
        count = count.to(torch.promote_types(seen.outputs.dtype, torch.float32))  # once, not in every division
        weights = {name: weight_at(spec.weight, epoch, epochs) for name, (spec, _) in self._terms.items()}
        totals, values = self._at_rows(seen, weights, count) if self._suits_kernels(seen, weights) else ([], {})
        for name, (spec, term) in self._terms.items():
            if name not in values:
                values[name] = self._sum(spec, term, seen, targets, valid) / count
                totals.append(weights[name] * values[name])
        return {TOTAL: sum(totals[1:], totals[0]), **{f"{TOTAL}/{name}": values[name] for name in self._terms}}

    def _suits_kernels(self, seen: BatchOutputs, weights: Mapping[str, float]) -> bool:
        """Whether the row kernels compute the terms that they support: outputs are not for codes that classes share,
        all rows have the same teacher weights, and no supported term has weight 0, whose value they would leave out.
        There are no row kernels for a CPU, where few rows of few classes take longer in the row losses than in the
        terms. Their gradients can't be differentiated."""
        by_row = self._weighting == "entropy" and len(self._teachers) > 1
        if by_row or self._coded or seen.teacher_learns or seen.targets.ndim != 1 or not runs_on_triton(seen.outputs):
            return False
        return all(weights[name] != 0.0 for name, (spec, _) in self._terms.items() if in_kernels(spec))

    def _at_rows(
        self, seen: BatchOutputs, weights: Mapping[str, float], count: Tensor
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Shares in the loss, and the values by name, of the terms that the kernels support: one launch for
        cross-entropy and a divergence, gradient included.

        The gradient is written over the logits, so each pass gets a copy of them.
        """
        totals: list[Tensor] = []
        values: dict[str, Tensor] = {}
        shares = torch.ones_like(seen.targets, dtype=torch.promote_types(seen.outputs.dtype, torch.float32)) / count
        for each in self._passes():
            teacher = None if each.teacher is None else seen.signals[each.teacher].logits
            student = seen.outputs.clone(memory_format=torch.contiguous_format)
            losses = row_loss(student, teacher, seen.targets, self._spec_of(each, weights), row_weights=shares)
            totals.append(losses.total.sum())
            if each.cross_entropy is not None:
                values[each.cross_entropy] = losses.cross_entropy.sum() / count
            if each.divergence is not None:
                found = self._share(each.teacher, each.divergence) * losses.divergence.sum() / count
                values[each.divergence] = values.get(each.divergence, 0.0) + found
        return totals, values

    def _passes(self) -> list[Pass]:
        """Passes over the logits; cross-entropy shares one with the first divergence."""
        kinds = {name: spec for name, (spec, _) in self._terms.items()}
        plain = [name for name, spec in kinds.items() if isinstance(spec, CrossEntropy)]
        taught = [(name, by) for name, spec in kinds.items() if kernel_divergence(spec) for by in self._names(spec)]
        return [Pass(one, *(pair or (None, None))) for one, pair in zip_longest(plain, taught)]

    def _spec_of(self, each: Pass, weights: Mapping[str, float]) -> RowSpec:
        plain, taught = (
            None if name is None else self._terms[name].spec for name in (each.cross_entropy, each.divergence)
        )
        hard = weights[each.cross_entropy] if each.cross_entropy is not None else 0.0
        soft = weights[each.divergence] * self._share(each.teacher, each.divergence) if each.divergence else 0.0
        return each.spec(plain, taught, hard, soft)

    def _share(self, teacher: str | None, name: str) -> float:
        """Weight of a teacher in a term that uses several; the weights add up to 1."""
        names = self._names(self._terms[name].spec)
        return 1.0 if teacher is None else self._teachers[teacher] / sum(self._teachers[each] for each in names)

    def _sum(self, spec: Loss, term: LossTerm, seen: BatchOutputs, targets: Tensor, valid: Tensor | None) -> Tensor:
        """Over the rows that count."""
        losses = self._loss(spec, term, seen, targets, valid)
        return (losses if valid is None else losses.where(valid, 0)).sum()

    def _loss(self, spec: Loss, term: LossTerm, seen: BatchOutputs, targets: Tensor, valid: Tensor | None) -> Tensor:
        """Loss of each row (B,): with the teacher that the term names, or the weighted sum over all of them."""
        names = self._names(spec)
        if len(names) < 2 or spec.joint:
            return term(row_inputs(seen, targets, valid, names[0] if names else None))
        losses = torch.stack([term(row_inputs(seen, targets, valid, name)) for name in names])
        return (self._shares(seen, names) * losses).sum(0)

    def _names(self, spec: Loss) -> list[str]:
        """Names of the teachers that a term uses."""
        if not spec.needs_teacher:
            return []
        return list(spec.named_teachers().values())[:1] or list(self._teachers)

    def _shares(self, seen: BatchOutputs, names: list[str]) -> Tensor:
        """Weights of the teachers (T, B) or (T, 1); they add up to 1 for each row."""
        weights = seen.outputs.new_tensor([self._teachers[name] for name in names], dtype=torch.float32).unsqueeze(-1)
        if self._weighting == "entropy":
            logs = torch.stack([seen.signals[name].logits.float().log_softmax(-1) for name in names])
            weights = weights * (logs.exp() * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(-1).exp()
        return weights / weights.sum(0)


def unique_names(kinds: Sequence[str]) -> list[str]:
    """A name for each kind; kinds that appear several times are numbered: kd-1, kd-2."""
    totals, seen = Counter(kinds), Counter[str]()
    names = []
    for kind in kinds:
        seen[kind] += 1
        names.append(f"{kind}-{seen[kind]}" if totals[kind] > 1 else kind)
    return names


def row_inputs(seen: BatchOutputs, targets: Tensor, valid: Tensor | None, name: str | None) -> LossInputs:
    """Inputs of a term for a micro-batch, with targets as `LossInputs.labels`, `valid` (B,) bool, and outputs of the
    teacher called `name`."""
    signal = seen.signals[name] if name is not None else None
    features = Features(
        seen.features,
        signal.features if signal else NO_FEATURES,
        seen.tokens,
        signal.tokens if signal else None,
        seen.tokens_per_row,
    )
    teachers = {other: each.logits for other, each in seen.signals.items()}
    logits, head = (signal.logits, signal.head) if signal else (None, None)
    return LossInputs(
        seen.outputs,
        targets,
        logits,
        valid,
        head,
        features,
        teachers,
        teacher_learns=seen.teacher_learns,
        rows_per_sample=seen.rows_per_sample,
        epoch=seen.epoch,
        sample_index=seen.sample_index,
    )


def _rows_that_count(targets: Tensor) -> Tensor | None:
    """Valid rows (B,) bool; none: all rows are valid, if that is known without waiting for a device."""
    valid = valid_rows(targets)
    return None if surely_none(~valid) else valid


def valid_rows(targets: Tensor) -> Tensor:
    """Rows (B, ...) bool of a batch with these targets that count."""
    if targets.dtype == torch.int64:
        return targets != IGNORED
    return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
