"""A language model on held-out texts: what it is measured by, and what it writes.

Logits are made some rows at a time, so that memory does not grow with the number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.students.model import TextInput
from worker.bundle.report import Figures, Report
from worker.bundle.writer import Answers, BundleWriter
from worker.data.batches import NEXT, ROWS, Batch
from worker.data.tokens import TextTokenizer
from worker.losses.base import IGNORED
from worker.losses.tokens import CHUNK
from worker.metrics.language import TokenTally
from worker.students.decoding import greedy_continuation, next_logits
from worker.students.hidden_states import HiddenStates
from worker.students.model import Model
from worker.tasks.evaluation import MAIN_METRICS, Call, Evaluation, Metrics
from worker.training.best import consider
from worker.training.measure import flops, speed
from worker.training.metric_logger import diverged
from worker.training.state import TrainState

TOGETHER = 8192
"""Tokens that a model reads at a time."""
COMPARED = 128
"""Rows of logits that an exported file is held against the live model by; its NLL is, over all rows."""


class Said(Protocol):
    """An answer that gives logits of some rows."""

    def logits(self, rows: Tensor) -> Tensor:
        """Logits (n, V) of the tokens at `rows`, counted over all sequences."""
        ...


class FullLogits(NamedTuple):
    """The answer of a graph, which knows no other way than to give all logits at once."""

    values: Tensor
    """(B, S, V)."""

    def logits(self, rows: Tensor) -> Tensor:
        """See `Said`."""
        return self.values.flatten(0, 1)[rows]


class HeldOutTexts(NamedTuple):
    """HeldOutTexts-out texts."""

    samples: Batch
    bytes: int
    """Of them, in UTF-8, that is to be predicted; 0: nobody knows."""


class Taught(NamedTuple):
    """Teachers of a job, and their shares."""

    models: Sequence[Model]
    weights: Sequence[float]

    def alike(self, input_key: str) -> Taught:
        """Those that read the same tokens: what others say is about other tokens, and can't be held against it."""
        pairs = zip(self.models, self.weights, strict=True)
        same = [(model, weight) for model, weight in pairs if model.input_key == input_key]
        return Taught([model for model, _ in same], [weight for _, weight in same])

    def says(self, tokens: Tensor) -> list[HiddenStates]:
        """Of each teacher."""
        return [states_of(model, tokens) for model in self.models]

    def log_probabilities(self, said: Sequence[HiddenStates], rows: Tensor) -> Tensor | None:
        """Of their mixture (n, V), where a vocabulary that is shorter ends with nothing; none: there is no teacher."""
        logs = [F.log_softmax(each.logits(rows).float(), dim=-1) for each in said]
        if len(logs) < 2:
            return logs[0] if logs else None
        width, total = max(each.shape[1] for each in logs), sum(self.weights)
        shares = [torch.tensor(weight / total, device=rows.device).log() for weight in self.weights]
        wide = [F.pad(each, (0, width - each.shape[1]), value=-torch.inf) for each in logs]
        return torch.stack([each + share for each, share in zip(wide, shares, strict=True)]).logsumexp(0)


def states_of(model: Model, tokens: Tensor) -> HiddenStates:
    """What a language model says of token ids (B, S)."""
    said = model.forward_hidden(tokens)
    assert isinstance(said, HiddenStates)
    return said


@torch.inference_mode()
def examine(
    says: Callable[[Tensor], Said], held: HeldOutTexts, input_key: str, taught: Taught, at_once: int
) -> Answers:
    """Measures over all tokens that count, `at_once` sequences at a time, and the first rows of logits. Of teachers
    those that read the same tokens are heard."""
    tally, first, taught = TokenTally(), torch.empty(0), taught.alike(input_key)
    for part in held.samples.parts(at_once):
        said, known = says(tokens := part.inputs[input_key]), taught.says(tokens)
        labels = part.inputs.get(NEXT + input_key, part.targets).flatten()
        for rows in torch.split((labels != IGNORED).nonzero().squeeze(1), _rows_at_a_time(said)):
            logits = said.logits(rows)
            first = _more(first, logits)
            tally.add(logits, labels[rows], taught.log_probabilities(known, rows))
    return Answers(first, Evaluation(tally.metrics(held.bytes)))


def _more(first: Tensor, logits: Tensor) -> Tensor:
    """With as many rows of `logits` behind as are compared."""
    fresh = logits[: COMPARED - len(first)].float().cpu()
    return torch.cat((first, fresh)) if len(first) else fresh


def _rows_at_a_time(said: Said) -> int:
    return max(1, CHUNK // said.logits(torch.zeros(1, dtype=torch.int64)).shape[1])


@torch.inference_mode()
def first_logits(model: Model, samples: Batch, most: int) -> Tensor:
    """Logits (n, V) of the first tokens that count, float32 on the CPU: at most `most`, fewer of a large vocabulary."""
    most = min(most, max(1, CHUNK // model.config.outputs))
    found = torch.empty(0, model.config.outputs)
    for some in samples.parts(1):
        tokens, targets = some.inputs[model.input_key], some.inputs.get(NEXT + model.input_key, some.targets)
        rows = (targets.flatten() != IGNORED).nonzero().squeeze(1)[: most - len(found)]
        found = torch.cat((found, states_of(model, tokens).logits(rows).float().cpu()))
        if len(found) == most:
            break
    return found


def examine_model(model: Model, held: HeldOutTexts, taught: Taught) -> Answers:
    """The same of a model, in evaluation mode and full float32 (see `predict`)."""
    was_training = model.training
    model.eval()
    length = held.samples.inputs[model.input_key].shape[1]
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        found = examine(
            lambda tokens: states_of(model, tokens), held, model.input_key, taught, max(1, TOGETHER // length)
        )
    model.train(was_training)
    return found


class LanguageEvaluator:
    """Evaluates students on the held-out texts, beside their teachers."""

    teacher_logits = None
    """There are too many to keep."""

    def __init__(
        self,
        job: JobSpec,
        held: HeldOutTexts,
        input_key: str,
        evaluated: Callable[[], Model],
        teachers: Sequence[Callable[[], Model]],
    ) -> None:
        """`input_key` is what the student reads."""
        self._job, self._held, self._view, self._judged, self._teachers = job, held, input_key, evaluated, teachers
        self._weights = [teacher.weight for teacher in job.all_teachers]

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Metrics of the student as it is now, by their name in the job's metrics; raises UserError (`nan_loss`)."""
        taught = Taught([teacher() for teacher in self._teachers], self._weights).alike(self._view)
        with _brought_to(self._held.samples.device, taught.models):
            found = examine_model(evaluated := self._judged(), self._held, taught).judgement.metrics
        if not math.isfinite(found["nll"]):
            raise diverged(f"the logits of held-out texts are not finite after step {state.step}", state.step)
        consider(state, MAIN_METRICS[self._job.task], found, evaluated if self._job.evaluation.keep == "best" else None)
        return {f"eval/{name}": value for name, value in found.items()}


@contextmanager
def _brought_to(device: torch.device, models: Sequence[Model]) -> Iterator[None]:
    """Models that may lie elsewhere, for a while."""
    homes = [next(model.parameters()).device for model in models]
    for model in models:
        model.to(device)
    yield
    for model, home in zip(models, homes, strict=True):
        model.to(home)


class LanguageBundleWriter(BundleWriter):
    """Of a language model: measured token by token, and asked to write."""

    def report(self) -> Report:
        """The whole of it, with the vocabulary and the continuations."""
        told = super().report()
        sample = self.config.input
        assert isinstance(sample, TextInput)
        alignment = {"alignment": self._trained.alignment} if self._trained.alignment else {}
        return told | {"vocabulary": sample.vocabulary, **alignment, "continuations": self._continuations()}

    @property
    def _held(self) -> HeldOutTexts:
        return HeldOutTexts(self._trained.samples, self._trained.bytes)

    @property
    def _taught(self) -> Taught:
        models = [model.to(self._device) for model, _ in self._trained.teachers.values()]
        return Taught(models, [teacher.weight for teacher in self._trained.job.all_teachers])

    def _ask(self, model: Model) -> Answers:
        return examine_model(model.to(self._device), self._held, self._taught)

    def _ask_teacher(self, teacher: Model) -> Metrics:
        return examine_model(teacher.to(self._device), self._held, Taught((), ())).judgement.metrics

    def _ask_graph(self, call: Call) -> Answers:
        """One sequence at a time, on the CPU."""
        taught = self._taught
        for model in taught.models:
            model.cpu()
        held = self._held._replace(samples=self._held.samples.to(torch.device("cpu")))
        return examine(lambda tokens: FullLogits(call(tokens)), held, self._model.input_key, taught, at_once=1)

    def _flops(self, model: Model, sample: Tensor) -> int:
        """Of a sequence; the last layer is applied to every token."""
        states = states_of(model.to(sample.device), sample)
        return flops(model.forward_hidden, sample) + 2 * sample.numel() * states.weight.numel()

    def _speed(self, model: Model, samples: Tensor, prefix: str = "") -> dict[str, float]:
        """Of reading a sequence, and saying what comes next."""
        return speed(lambda tokens: next_logits(model, tokens), samples, prefix)

    @property
    def _looked_at(self) -> Batch:
        """Those that are continued; all are read as they lie, some at a time."""
        return self._trained.samples.between(0, max(1, self._trained.job.evaluation.prompts))

    @property
    def _timed(self) -> Tensor:
        return self._inputs[:1]

    def _continuations(self) -> list[Figures]:
        """What held-out texts begin with, how they go on, and how student and teachers go on."""
        trained = self._trained
        assert trained.tokenizer is not None
        options, reader = trained.job.evaluation, trained.tokenizer
        if not options.prompts:
            return []
        texts = self._inputs[: options.prompts].cpu()
        begin, count = _lengths(options, texts.shape[1])
        models = {"student": self._loaded} | {name: model for name, (model, _) in trained.teachers.items()}
        same = {name: model for name, model in models.items() if name not in trained.tokenizers}
        written = {"held_out": texts[:, : begin + count]}
        written |= {name: greedy_continuation(model.cpu(), texts[:, :begin], count) for name, model in same.items()}
        told = {name: [_until_end(reader, row[begin:].tolist()) for row in rows] for name, rows in written.items()}
        told |= {name: self._in_own_tokens(models[name].cpu(), own) for name, own in trained.tokenizers.items()}
        prompts = [reader.text(row[:begin].tolist()) for row in texts]
        return [
            {"prompt": prompt, **{name: rows[number] for name, rows in told.items()}}
            for number, prompt in enumerate(prompts)
        ]

    def _in_own_tokens(self, teacher: Model, reader: TextTokenizer) -> list[str]:
        """How a teacher with another tokenizer goes on behind all that it has read when the prompts end, which may be
        some characters less."""
        options, part = self._trained.job.evaluation, self._looked_at.to(torch.device("cpu"))
        texts, places = part.inputs[teacher.input_key], part.inputs[ROWS + teacher.input_key]
        begin, count = _lengths(options, places.shape[1])
        told = []
        for text, known in zip(texts, places[:, :begin].amax(1).clamp(min=0).tolist(), strict=True):
            prompt = text[: known + 1].unsqueeze(0)
            room = min(count, _context(teacher) - known - 1)
            told.append(_until_end(reader, greedy_continuation(teacher, prompt, room)[0, known + 1 :].tolist()))
        return told


def _context(model: Model) -> int:
    """Tokens that it reads at a time."""
    assert isinstance(model.config.input, TextInput)
    return model.config.input.length


def _lengths(options: EvaluationSpec, length: int) -> tuple[int, int]:
    """Tokens to begin with, and to write behind them, in sequences of `length`."""
    begin = min(options.prompt_tokens, max(1, length // 2))
    return begin, min(options.new_tokens, length - begin)


def _until_end(reader: TextTokenizer, ids: list[int]) -> str:
    end: Any = reader.end
    return reader.text(ids[: ids.index(end)] if end in ids else ids)
