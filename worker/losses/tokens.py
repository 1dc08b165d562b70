"""The objective of a language model: its rows are tokens, and the logits of all of them exist on neither side.

What the kernels know, cross-entropy and most divergences, is computed at the last layer, chunk by chunk, with the
gradients made on the way: one pass for cross-entropy with the first divergence, another for each further divergence or
teacher. Any other term that looks at logits gets those of some rows at a time, and they are made again in the backward
pass, for the price of one more product of the last layer. Terms that look at features see whole sequences.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from app.recipe.losses.taps import Taps
from app.recipe.losses.weights import weight_at
from worker.kernels.linear import HiddenTeacher, KernelTeacher, NoTeacher, linear_distillation
from worker.kernels.rows import widened
from worker.kernels.sparse import TopKTeacher
from worker.kernels.spec import RowLosses
from worker.kernels.top_k import TopK
from worker.losses.base import Features, LossInputs, LossTerm
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.losses.passes import Pass, in_kernels
from worker.outputs import HiddenStates, LikeliestTokens, TeacherSignal
from worker.tensors import IGNORED

CHUNK = 1 << 24
"""Logits of one side that a term outside the kernels is given at a time."""


class TokenObjective(Objective):
    """Named terms and their weighted sum, as `Objective`, with one row for each token that counts.

    `seen.states` is the student's answer, `seen.targets` (B, S) the next tokens. What a term says of the features of a
    whole sequence counts as often as the sequence has tokens that count.
    """

    def __call__(self, seen: BatchOutputs, count: Tensor, epoch: float = 0.0, epochs: float = 1.0) -> dict[str, Tensor]:
        """See `Objective`."""
        weights = {name: weight_at(spec.weight, epoch, epochs) for name, (spec, _) in self._terms.items()}
        total = torch.zeros((), device=seen.targets.device)
        values = dict.fromkeys(self._terms, total)
        for each in self._passes():
            losses = self._at_last_layer(each, weights, seen, count)
            total = total + losses.total
            if each.cross_entropy is not None:
                values[each.cross_entropy] = losses.cross_entropy
            if each.divergence is not None:
                share = self._share(each.teacher, each.divergence)
                values[each.divergence] = values[each.divergence] + share * losses.divergence
        for name, (spec, term) in self._terms.items():
            if not in_kernels(spec):
                several = self._some_rows_at_a_time if spec.taps() == Taps() else self._by_sequence
                values[name] = several(name, term, seen) / count
                total = total + weights[name] * values[name]
        return {TOTAL: total, **{f"{TOTAL}/{name}": value for name, value in values.items()}}

    def _at_last_layer(self, each: Pass, weights: Mapping[str, float], seen: BatchOutputs, count: Tensor) -> RowLosses:
        teacher = NoTeacher() if each.teacher is None else kernel_teacher(seen.signals[each.teacher])
        row, states = self._spec_of(each, weights), seen.states
        labels = seen.targets.flatten()
        return linear_distillation(states.rows, states.weight, teacher, labels, row, bias=states.bias, divisor=count)

    def _some_rows_at_a_time(self, name: str, term: LossTerm, seen: BatchOutputs) -> Tensor:
        """Sum of a term's losses over all rows that count."""
        rows = (seen.targets.flatten() != IGNORED).nonzero().squeeze(1)
        total = torch.zeros((), device=rows.device)
        for by in self._names(self._terms[name].spec):
            ours, theirs = same_text(seen.signals[by], rows)
            at_once = max(1, CHUNK // max(len(seen.states.weight), vocabulary_of(seen.signals[by])))
            for pair in zip(torch.split(ours, at_once), torch.split(theirs, at_once), strict=True):
                loss: Tensor = checkpoint(
                    self._of_rows, term, seen, by, *pair, use_reentrant=False, preserve_rng_state=False
                )
                total = total + self._share(by, name) * loss
        return total

    def _of_rows(self, term: LossTerm, seen: BatchOutputs, by: str, rows: Tensor, theirs: Tensor) -> Tensor:
        """Sum over some of the student's rows, each against the one at the same place of the teacher's."""
        labels, own, said = (
            seen.targets.flatten()[rows],
            seen.states.logits(rows),
            plain_logits(seen.signals[by], theirs),
        )
        width = max(own.shape[1], said.shape[1])
        return term(LossInputs(widened(own, width), labels, widened(said, width))).sum()

    def _by_sequence(self, name: str, term: LossTerm, seen: BatchOutputs) -> Tensor:
        """Sum of a term's losses over all sequences, each as often as it has tokens that count."""
        tokens, states = (seen.targets != IGNORED).sum(1), seen.states.hidden[:, 0]
        losses = torch.zeros((), device=tokens.device)
        for by in self._names(self._terms[name].spec):
            features = Features(seen.features, seen.signals[by].features)
            given = LossInputs(states, seen.targets[:, 0], None, tokens > 0, None, features)
            losses = losses + self._share(by, name) * (term(given) * tokens).sum()
        return losses


def kernel_teacher(signal: TeacherSignal) -> KernelTeacher:
    """What a teacher says, as the kernels take it."""
    said = signal.answer
    if isinstance(said, LikeliestTokens):
        kept = TopK(said.indices.flatten(0, 1), said.values.flatten(0, 1), said.rest.flatten().unsqueeze(1))
        return TopKTeacher(kept, said.vocabulary)
    assert isinstance(said, HiddenStates)  # of a language model
    return HiddenTeacher(said.rows, said.weight, said.bias)


def same_text(signal: TeacherSignal, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the student's `rows` (n,), counted over all sequences, that a teacher has a row for, and which."""
    if signal.rows is None:
        return rows, rows
    assert isinstance(signal.answer, HiddenStates)  # nothing is kept of a teacher with tokens of its own
    places = signal.rows.flatten()[rows]
    theirs = rows // signal.rows.shape[1] * signal.answer.hidden.shape[1] + places
    there = places >= 0
    return rows[there], theirs[there]


def vocabulary_of(signal: TeacherSignal) -> int:
    """Tokens that a language model tells the logits of."""
    said = signal.answer
    assert not isinstance(said, Tensor)
    return said.vocabulary if isinstance(said, LikeliestTokens) else len(said.weight)


def plain_logits(signal: TeacherSignal, rows: Tensor) -> Tensor:
    """Its logits (n, V) of some rows."""
    assert not isinstance(signal.answer, Tensor)  # of a language model
    return signal.answer.logits(rows)
