"""The objective: the weighted sum of a stage's terms, divided in one place by the count of valid rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from app.recipe.losses import Loss
from app.recipe.taps import Tap
from app.recipe.teachers import Teacher, Weighting
from app.recipe.weights import weight_at
from worker.losses import build_term
from worker.losses.base import IGNORED, Features, Rows, Term
from worker.losses.workshop import Workshop
from worker.students.last_states import LastStates
from worker.teachers.signal import TeacherSignal

TOTAL = "loss"
NO_FEATURES: Mapping[Tap, Tensor] = {}


@dataclass(frozen=True, eq=False)
class Seen:
    """What both sides say of a part (B rows) of a batch."""

    answer: Tensor | LastStates
    """The student's logits or numbers (B, C), or what the last layer of a language model would make logits of."""
    targets: Tensor
    """(B,) int64, or (B, C) probabilities or numbers; of a language model (B, S) int64."""
    signals: Mapping[str, TeacherSignal]
    """What the teachers say, by their names."""
    features: Mapping[Tap, Tensor] = field(default_factory=dict)
    """The student's activations."""
    tokens: Tensor | None = None
    """(B, S) bool: which of the student's tokens aren't padding; none where it reads no text."""

    @property
    def outputs(self) -> Tensor:
        """The answer for whole samples. Raises TypeError for a language model's."""
        if not isinstance(self.answer, Tensor):
            raise TypeError("the logits of a language model are made where they are used, some rows at a time")
        return self.answer

    @property
    def states(self) -> LastStates:
        """The answer of a language model. Raises TypeError for any other."""
        if isinstance(self.answer, Tensor):
            raise TypeError("the answers for whole samples have no last states")
        return self.answer


class _Weighted(NamedTuple):
    spec: Loss
    term: Term


class Objective:
    """Named terms and their weighted sum.

    A batch may come in parts: each call gives its part's share of the batch's mean, because it divides by the count of
    the whole batch. So the shares of all parts add up to the loss of the batch, and so do their gradients.
    """

    def __init__(
        self,
        specs: Sequence[Loss],
        workshop: Workshop,
        teachers: Sequence[Teacher] = (),
        weighting: Weighting = "fixed",
        path: str = "recipe.losses",
    ) -> None:
        workshop.new_stage()
        self._teachers, self._weighting = {teacher.name: teacher.weight for teacher in teachers}, weighting
        self._terms: dict[str, _Weighted] = {}
        for index, (name, spec) in enumerate(zip(unique_names([spec.kind for spec in specs]), specs, strict=True)):
            workshop.param = f"{path}[{index}]"
            self._terms[name] = _Weighted(spec, build_term(spec, workshop))
        self.trained = nn.ModuleList(workshop.parts[name] for name in sorted(workshop.trained - workshop.frozen))
        """Parts that learn together with the student."""
        self.frozen = nn.ModuleList(workshop.parts[name] for name in sorted(workshop.frozen))

    @property
    def teachers(self) -> set[str]:
        """Names of the teachers that its terms learn from."""
        learning = [spec for spec, _ in self._terms.values() if spec.needs_teacher]
        return {name for spec in learning for name in (spec.named_teachers().values() or self._teachers)}

    def only(self, wanted: Callable[[Loss], bool]) -> Self:
        """The same with those terms alone, by their own names."""
        some = copy(self)
        some._terms = {name: term for name, term in self._terms.items() if wanted(term.spec)}
        return some

    def prepare(self) -> None:
        """Bring the parts into the mode that training needs: what learns learns, the rest stays as it is."""
        self.trained.requires_grad_(True).train()
        self.frozen.requires_grad_(False).eval()

    def count(self, targets: Tensor, everywhere: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Rows of a whole batch that count; at least 1, so that a batch of ignored rows gives 0 and not NaN.

        `everywhere` adds up over the processes that have a share of the batch each.
        """
        own = _valid(targets).sum()
        return (everywhere(own) if everywhere else own).clamp(min=1)

    def __call__(self, seen: Seen, count: Tensor, epoch: float = 0.0, epochs: float = 1.0) -> dict[str, Tensor]:
        """Share of a part of a batch with `count` valid rows: `loss`, and each term's `loss/<kind>` before its weight.

        `epoch` of the stage's `epochs`, both with fraction, decide weights that change.
        """
        valid = _valid(seen.targets)
        targets = seen.targets if seen.targets.ndim == 2 else seen.targets.where(valid, 0)
        values = {}
        total = seen.outputs.new_zeros((), dtype=torch.promote_types(seen.outputs.dtype, torch.float32))
        for name, (spec, term) in self._terms.items():
            value = self._loss(spec, term, seen, targets, valid).where(valid, 0).sum() / count
            values[f"{TOTAL}/{name}"] = value
            total = total + weight_at(spec.weight, epoch, epochs) * value
        return {TOTAL: total, **values}

    def _loss(self, spec: Loss, term: Term, seen: Seen, targets: Tensor, valid: Tensor) -> Tensor:
        """Of each row (B,): against the teacher that the term names, or shared by all of them."""
        names = self._names(spec)
        if len(names) < 2 or spec.joint:
            return term(_rows(seen, targets, valid, names[0] if names else None))
        losses = torch.stack([term(_rows(seen, targets, valid, name)) for name in names])
        return (self._shares(seen, names) * losses).sum(0)

    def _names(self, spec: Loss) -> list[str]:
        """Teachers that a term is computed against."""
        if not spec.needs_teacher:
            return []
        return list(spec.named_teachers().values())[:1] or list(self._teachers)

    def _shares(self, seen: Seen, names: list[str]) -> Tensor:
        """Weights of the teachers (T, B) or (T, 1); they add up to 1."""
        weights = seen.outputs.new_tensor([self._teachers[name] for name in names], dtype=torch.float32).unsqueeze(-1)
        if self._weighting == "entropy":
            logs = torch.stack([seen.signals[name].logits.float().log_softmax(-1) for name in names])
            weights = weights * (logs.exp() * logs.clamp(min=torch.finfo(logs.dtype).min)).sum(-1).exp()
        return weights / weights.sum(0)


def unique_names(kinds: Sequence[str]) -> list[str]:
    """Each kind's name; kinds that appear several times are numbered: kd-1, kd-2."""
    totals, seen = Counter(kinds), Counter[str]()
    names = []
    for kind in kinds:
        seen[kind] += 1
        names.append(f"{kind}-{seen[kind]}" if totals[kind] > 1 else kind)
    return names


def _rows(seen: Seen, targets: Tensor, valid: Tensor, name: str | None) -> Rows:
    said = seen.signals[name] if name is not None else None
    features = Features(
        seen.features, said.features if said else NO_FEATURES, seen.tokens, said.tokens if said else None
    )
    everyone = {other: signal.logits for other, signal in seen.signals.items()}
    logits, head = (said.logits, said.head) if said else (None, None)
    return Rows(seen.outputs, targets, logits, valid, head, features, everyone)


def _valid(targets: Tensor) -> Tensor:
    if targets.dtype == torch.int64:
        return targets != IGNORED
    return torch.ones(len(targets), dtype=torch.bool, device=targets.device)
