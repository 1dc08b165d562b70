"""Metrics of language models on held-out texts.

Logits are computed some rows at a time, so that memory does not grow with the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.job import JobSpec
from worker.data.batches import NEXT, Batch
from worker.losses.tokens import CHUNK
from worker.metrics.language import TokenTally
from worker.outputs import HiddenStates
from worker.students.model import Model
from worker.tasks.base import Call, Evaluation, HeldOut, Metrics, NonFiniteOutputs, Predictions, weights_of
from worker.tensors import IGNORED

TOKENS_AT_ONCE = 8192
"""Tokens of a forward pass."""
COMPARED = 128
"""Rows of logits by which an exported file is compared with the live model; the NLL is compared over all rows."""


class RowLogits(Protocol):
    """Outputs for a batch of sequences from which logits of some rows can be computed."""

    def logits(self, rows: Tensor) -> Tensor:
        """Logits (n, V) floating of the tokens at `rows` (n,) int64, counted over all sequences."""
        ...


class FullLogits(NamedTuple):
    """Outputs of a graph, which returns all logits at once."""

    values: Tensor
    """(B, S, V) float32 logits."""

    def logits(self, rows: Tensor) -> Tensor:
        """See `RowLogits`."""
        return self.values.flatten(0, 1)[rows]


class TeacherMixture(NamedTuple):
    """Teachers of a job, and their relative weights."""

    models: Sequence[Model]
    weights: Sequence[float]

    def reading(self, input_key: str) -> TeacherMixture:
        """The teachers that read the input of this key; logits of other tokens can't be compared."""
        pairs = zip(self.models, self.weights, strict=True)
        same = [(model, weight) for model, weight in pairs if model.input_key == input_key]
        return TeacherMixture([model for model, _ in same], [weight for _, weight in same])

    def hidden_states(self, tokens: Tensor) -> list[HiddenStates]:
        """Hidden states of each teacher for token ids (B, S) int64."""
        return [hidden_states_of(model, tokens) for model in self.models]

    def log_probabilities(self, states: Sequence[HiddenStates], rows: Tensor) -> Tensor | None:
        """Log-probabilities (n, V) float32 of the mixture at `rows` (n,) int64, shorter vocabularies padded with -inf;
        none: there is no teacher."""
        logs = [F.log_softmax(each.logits(rows).float(), dim=-1) for each in states]
        if len(logs) < 2:
            return logs[0] if logs else None
        width, total = max(each.shape[1] for each in logs), sum(self.weights)
        shares = [torch.tensor(weight / total, device=rows.device).log() for weight in self.weights]
        wide = [F.pad(each, (0, width - each.shape[1]), value=-torch.inf) for each in logs]
        return torch.stack([each + share for each, share in zip(wide, shares, strict=True)]).logsumexp(0)


NO_TEACHERS = TeacherMixture((), ())


def hidden_states_of(model: Model, tokens: Tensor) -> HiddenStates:
    """Hidden states of a language model for token ids (B, S) int64."""
    states = model.forward_hidden(tokens)
    assert isinstance(states, HiddenStates)
    return states


@torch.inference_mode()
def evaluate_rows(
    forward: Callable[[Tensor], RowLogits], held: HeldOut, input_key: str, teachers: TeacherMixture, at_once: int
) -> Predictions:
    """Metrics over all valid tokens, `at_once` sequences at a time, and the first rows of logits (n, V) float32;
    compared with the teachers that read the same tokens."""
    tally, first, teachers = TokenTally(), torch.empty(0), teachers.reading(input_key)
    for part in held.samples.parts(at_once):
        outputs, states = forward(tokens := part.inputs[input_key]), teachers.hidden_states(tokens)
        labels = labels_of(part, input_key)
        for rows in torch.split((labels != IGNORED).nonzero().squeeze(1), _rows_at_a_time(outputs)):
            logits = outputs.logits(rows)
            first = _append_rows(first, logits)
            tally.add(logits, labels[rows], teachers.log_probabilities(states, rows))
    return Predictions(first, Evaluation(tally.metrics(held.bytes)))


def labels_of(part: Batch, input_key: str) -> Tensor:
    """Labels (n,) int64 of all sequences of the input of this key: the next tokens, or `IGNORED`."""
    return part.inputs.get(NEXT + input_key, part.targets).flatten()


def _append_rows(first: Tensor, logits: Tensor) -> Tensor:
    """Append rows of `logits` (n, V), up to `COMPARED` in all; float32 on the CPU."""
    fresh = logits[: COMPARED - len(first)].float().cpu()
    return torch.cat((first, fresh)) if len(first) else fresh


def _rows_at_a_time(outputs: RowLogits) -> int:
    return max(1, CHUNK // outputs.logits(torch.zeros(1, dtype=torch.int64)).shape[1])


@torch.inference_mode()
def first_logits(model: Model, samples: Batch, most: int) -> Tensor:
    """Logits (n, V) float32 on the CPU of the first valid tokens: at most `most`, fewer for a large vocabulary."""
    most = min(most, max(1, CHUNK // model.config.outputs))
    found = torch.empty(0, model.config.outputs)
    for some in samples.parts(1):
        tokens = some.inputs[model.input_key]
        rows = (labels_of(some, model.input_key) != IGNORED).nonzero().squeeze(1)[: most - len(found)]
        found = torch.cat((found, hidden_states_of(model, tokens).logits(rows).float().cpu()))
        if len(found) == most:
            break
    return found


def evaluate_model(model: Model, held: HeldOut, teachers: TeacherMixture = NO_TEACHERS) -> Predictions:
    """`evaluate_rows` for a model, in evaluation mode and full float32 (see `predict`)."""
    was_training = model.training
    model.eval()
    at_once = max(1, TOKENS_AT_ONCE // held.samples.inputs[model.input_key].shape[1])
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        found = evaluate_rows(partial(hidden_states_of, model), held, model.input_key, teachers, at_once)
    model.train(was_training)
    return found


class TokenEvaluator:
    """Evaluates language models on the held-out texts, in comparison with their teachers, whose logits are too large to
    store."""

    teacher_outputs: Tensor | None = None
    """None: they would be (N, V) float32 for all tokens."""

    def __init__(self, job: JobSpec, held: HeldOut, teachers: Sequence[Callable[[], Model]]) -> None:
        self._job, self._held, self._teachers = job, held, teachers

    def evaluate(self, model: Model) -> Predictions:
        """See `TaskEvaluator`."""
        device = self._held.samples.device
        teachers = self._mixture(model)
        with _moved_to(device, teachers.models):
            found = evaluate_model(model.to(device), self._held, teachers)
        if not math.isfinite(found.evaluation.metrics["nll"]):
            raise NonFiniteOutputs("the logits of held-out texts are not finite")
        return found

    def evaluate_alone(self, model: Model) -> Metrics:
        """See `TaskEvaluator`."""
        return evaluate_model(model.to(self._held.samples.device), self._held).evaluation.metrics

    def evaluate_graph(self, call: Call, model: Model) -> Predictions:
        """See `TaskEvaluator`; one sequence at a time."""
        teachers, cpu = self._mixture(model), torch.device("cpu")
        held = self._held._replace(samples=self._held.samples.to(cpu))
        with _moved_to(cpu, teachers.models):
            return evaluate_rows(lambda tokens: FullLogits(call(tokens)), held, model.input_key, teachers, at_once=1)

    def beside(self, teachers: Mapping[str, Model]) -> TokenEvaluator:
        """See `TaskEvaluator`."""
        return TokenEvaluator(self._job, self._held, [partial(_same, model) for model in teachers.values()])

    def teacher_evaluation(self) -> Evaluation | None:
        """See `TaskEvaluator`."""
        return None

    def _mixture(self, model: Model) -> TeacherMixture:
        """The teachers that read the same tokens as `model`."""
        models = [teacher() for teacher in self._teachers]
        return TeacherMixture(models, weights_of(self._job)).reading(model.input_key)


def _same(model: Model) -> Model:
    return model


@contextmanager
def _moved_to(device: torch.device, models: Sequence[Model]) -> Iterator[None]:
    """Move models to `device` within the context, and back after it."""
    devices = [next(model.parameters()).device for model in models]
    for model in models:
        model.to(device)
    yield
    for model, original in zip(models, devices, strict=True):
        model.to(original)
