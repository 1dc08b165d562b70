"""The objective of a language model: its rows are tokens, and logits of all tokens at once are never computed.

The terms that the kernels support, cross-entropy and most divergences, are computed at the last layer, chunk by chunk,
together with their gradients: one pass for cross-entropy with the first divergence, another for each further divergence
or teacher. Any other term on logits gets those of some rows at a time. They are recomputed in the backward pass, at the
cost of one more product of the last layer. Terms on features get whole sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

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
from worker.losses.codebook import CodebookTeacher, codebook_distillation
from worker.losses.objective import TOTAL, BatchOutputs, Objective
from worker.losses.passes import Pass, in_kernels
from worker.outputs import HiddenStates, LikeliestTokens, TeacherSignal
from worker.tensors import IGNORED

CHUNK = 1 << 24
"""Logits of one model that a term outside the kernels gets at a time."""


class TokenObjective(Objective):
    """Named terms and their weighted sum, as `Objective`, with one row for each valid token.

    `seen.states` are the student's hidden states, `seen.targets` (B, S) int64 the next tokens. The loss of a term on
    the features of a sequence is weighted with the sequence's number of valid tokens.
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
        if states.codes is not None:
            signal = None if each.teacher is None else seen.signals[each.teacher]
            logits = None if signal is None else partial(plain_logits, signal)
            width = 0 if signal is None else vocabulary_of(signal)
            return codebook_distillation(states, logits, width, labels, row, count)
        return linear_distillation(states.rows, states.weight, teacher, labels, row, bias=states.bias, divisor=count)

    def _some_rows_at_a_time(self, name: str, term: LossTerm, seen: BatchOutputs) -> Tensor:
        """Sum of a term's losses over all valid rows."""
        rows = (seen.targets.flatten() != IGNORED).nonzero().squeeze(1)
        total = torch.zeros((), device=rows.device)
        for by in self._names(self._terms[name].spec):
            student, teacher = same_text(seen.signals[by], rows)
            at_once = max(1, CHUNK // max(seen.states.vocabulary, vocabulary_of(seen.signals[by])))
            for pair in zip(torch.split(student, at_once), torch.split(teacher, at_once), strict=True):
                loss: Tensor = checkpoint(
                    self._of_rows, term, seen, by, *pair, use_reentrant=False, preserve_rng_state=False
                )
                total = total + self._share(by, name) * loss
        return total

    def _of_rows(self, term: LossTerm, seen: BatchOutputs, by: str, rows: Tensor, teacher_rows: Tensor) -> Tensor:
        """Sum over some of the student's `rows` (n,), each with the teacher's row of the same text."""
        labels, student_logits, teacher_logits = (
            seen.targets.flatten()[rows],
            seen.states.logits(rows),
            plain_logits(seen.signals[by], teacher_rows),
        )
        width = max(student_logits.shape[1], teacher_logits.shape[1])
        return term(LossInputs(widened(student_logits, width), labels, widened(teacher_logits, width))).sum()

    def _by_sequence(self, name: str, term: LossTerm, seen: BatchOutputs) -> Tensor:
        """Sum of a term's losses over all sequences, each weighted with its number of valid tokens."""
        tokens, states = (seen.targets != IGNORED).sum(1), seen.states.hidden[:, 0]
        losses = torch.zeros((), device=tokens.device)
        for by in self._names(self._terms[name].spec):
            features = Features(seen.features, seen.signals[by].features)
            inputs = LossInputs(states, seen.targets[:, 0], None, tokens > 0, None, features)
            losses = losses + self._share(by, name) * (term(inputs) * tokens).sum()
        return losses


def kernel_teacher(signal: TeacherSignal) -> KernelTeacher:
    """A teacher's outputs in the form that the kernels take: one row per token."""
    outputs = signal.outputs
    if isinstance(outputs, LikeliestTokens):
        top_k = TopK(outputs.indices.flatten(0, 1), outputs.values.flatten(0, 1), outputs.rest.flatten().unsqueeze(1))
        return TopKTeacher(top_k, outputs.vocabulary)
    assert isinstance(outputs, HiddenStates)  # of a language model
    if outputs.codes is not None:
        return CodebookTeacher(outputs)
    return HiddenTeacher(outputs.rows, outputs.weight, outputs.bias)


def same_text(signal: TeacherSignal, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The student's `rows` (n,) int64, counted over all sequences, that have a row of a teacher, and that row for each:
    both (m,) int64."""
    if signal.rows is None:
        return rows, rows
    assert isinstance(signal.outputs, HiddenStates)  # outputs of a teacher with another tokenizer are not cached
    positions = signal.rows.flatten()[rows]
    teacher_rows = rows // signal.rows.shape[1] * signal.outputs.hidden.shape[1] + positions
    found = positions >= 0
    return rows[found], teacher_rows[found]


def vocabulary_of(signal: TeacherSignal) -> int:
    """Size of a language model's vocabulary."""
    outputs = signal.outputs
    assert not isinstance(outputs, Tensor)
    return outputs.vocabulary


def plain_logits(signal: TeacherSignal, rows: Tensor) -> Tensor:
    """A language model's logits (n, V), floating, of `rows` (n,) int64."""
    assert not isinstance(signal.outputs, Tensor)  # of a language model
    return signal.outputs.logits(rows)
