"""Teachers on held-out samples before anything learns from them: how good they are, and what is odd about it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.job import JobSpec
from app.recipe.tasks.metrics import METRICS
from app.recipe.tasks.task import CAUSAL_LM, CLASSIFICATION, EMBEDDING
from worker.data.batches import NEXT, Batch
from worker.data.load import TaskData
from worker.data.randomness import generator
from worker.errors import UserError
from worker.metrics.permutation import Moved, moved_classes, moved_places, permuted_hits
from worker.students.model import Model
from worker.tasks.evaluation import MAIN_METRICS, Metrics, judge, predict
from worker.tasks.language import HeldOutTexts, Taught, examine_model
from worker.tensors import IGNORED
from worker.training.warning_log import Warned

CHECKED = 1024
"""HeldOutTexts-out samples that a teacher is asked about, where no more are needed; drawn from the seed."""
CHECKED_TOKENS = 4096
"""The same for language models, in whole sequences."""
COUNTED = 256
"""Training sequences whose tokens are counted."""
MAX_REPORT_BYTES = 2**26


class Checked(NamedTuple):
    """What was found out about the teachers of a job."""

    warnings: list[Warned]
    outputs: dict[str, Tensor]
    """Answers (N, C) to all held-out samples, on the CPU, by the teachers' names; empty where only some were asked."""


class _Examiner(Protocol):
    """Measures models on held-out samples."""

    samples: int

    def measure(self, model: Model) -> tuple[Metrics, Tensor | None]:
        """Metrics of the task, and the answers where they are kept."""
        ...

    def trivial(self, model: Model) -> tuple[Metrics, str]:
        """What answers have that look at no sample, and which those are."""
        ...

    def oddities(self, answers: Tensor | None) -> Iterator[str]:
        """What is odd about answers; goes on from the teacher's name."""
        ...


def check_teachers(
    job: JobSpec, models: Mapping[str, Model], folders: Mapping[str, Path], task: TaskData, seed: int
) -> Checked:
    """Measure every teacher on the held-out samples: a part of them that `seed` decides, or all where there are no
    more, or where the job requires something of its teachers.

    Raises UserError: `weak_teacher` for one that falls short of `evaluation.require_teacher`, `invalid_job` for a
    metric that these samples do not give.
    """
    if not models:
        return Checked([], {})
    whole = job.evaluation.require_teacher is not None
    examiner: _Examiner = (_Texts if job.task == CAUSAL_LM else _Samples)(job, task, seed, whole)
    warnings, outputs = [], {}
    for name, model in models.items():
        found, answers = examiner.measure(model)
        _require(job, name, found, examiner.samples)
        for odd in _odd(job, model, folders[name], examiner, found, answers):
            warnings.append(odd._replace(message=f"teacher {name!r} {odd.message}"))
        if answers is not None and len(answers) == len(task.eval):
            outputs[name] = answers
    return Checked(warnings, outputs)


def _odd(
    job: JobSpec, model: Model, folder: Path, examiner: _Examiner, found: Metrics, answers: Tensor | None
) -> Iterator[Warned]:
    """What is odd about a teacher; messages go on from its name."""
    name, count = MAIN_METRICS[job.task].of(found), examiner.samples
    higher, (trivial, which) = METRICS[job.task][name], examiner.trivial(model)
    here = f"{name} {found[name]:.4g} on {count} held-out {'tokens' if job.task == CAUSAL_LM else 'samples'}"
    if name in trivial and _hardly_better(found[name], trivial[name], count, higher):
        message = f"is hardly better than none: {here}, and {trivial[name]:.4g} for {which}"
        yield Warned("teacher_near_chance", message)
    said = _reported(folder, job.task, name)
    if said is not None and _far_worse(found[name], said, higher):
        message = f"is far from what its own report says: {here}, and {said:.4g} in the report"
        yield Warned("teacher_below_report", message)
    yield from (Warned("teacher_permuted", message) for message in examiner.oddities(answers))


def _hardly_better(found: float, trivial: float, count: int, higher: bool) -> bool:
    """Within two standard errors of a share or a correlation; or within a twentieth of an error."""
    if not math.isfinite(found):
        return True
    if not higher:
        return found >= 0.95 * trivial
    error = math.sqrt(max(trivial * (1 - trivial), 0.0) / count) if trivial else 1 / math.sqrt(count)
    return found <= trivial + 2 * error


def _far_worse(found: float, reported: float, higher: bool) -> bool:
    return found < reported - 0.2 if higher else found > 2 * reported


def _reported(folder: Path, task: str, metric: str) -> float | None:
    """What the report beside a model says of it; none: there is none, or of another task."""
    path = folder / "report.json"
    try:
        if not path.is_file() or path.stat().st_size > MAX_REPORT_BYTES:
            return None
        report = json.loads(path.read_bytes())
        value = report["student"][metric] if report["task"] == task else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _require(job: JobSpec, name: str, found: Metrics, count: int) -> None:
    for metric, bound in (job.evaluation.require_teacher or {}).items():
        param = f"evaluation.require_teacher.{metric}"
        if metric not in found:
            message = f"{param}: the held-out samples do not give it; accepted: one of {', '.join(found)}"
            raise UserError("invalid_job", message, param)
        higher = METRICS[job.task][metric]
        if not (found[metric] >= bound if higher else found[metric] <= bound):
            least = f"at {'least' if higher else 'most'} {bound:g}"
            message = f"teacher {name!r} has {metric} {found[metric]:.4g} on {count} held-out samples, not {least}"
            raise UserError("weak_teacher", message, param)


class _Samples:
    """Of all tasks but language models."""

    def __init__(self, job: JobSpec, task: TaskData, seed: int, whole: bool) -> None:
        self._job, self._task = job, task
        held = task.eval
        if not whole and held.samples > CHECKED:
            chosen = torch.randperm(held.samples, generator=generator(seed, "teacher-check"))[:CHECKED].sort().values
            held = held.take_samples(chosen.to(held.storage_device))
        self._held, self.samples = held, held.samples

    def measure(self, model: Model) -> tuple[Metrics, Tensor | None]:
        """See `_Examiner`."""
        answers = predict(model, self._held.inputs[model.input_key])
        return self._judge(answers), answers

    def trivial(self, model: Model) -> tuple[Metrics, str]:
        """The likeliest class, or the mean, of the training samples; of vectors what chance has."""
        targets, count = self._task.train.targets.cpu(), len(self._held)
        if self._job.task == EMBEDDING:
            by_chance = sum(1 / place for place in range(1, self.samples + 1)) / self.samples
            return {"spearman": 0.0, "mrr": by_chance}, "chance"
        if self._job.task not in CLASSIFICATION:
            mean = targets.double().mean(0, keepdim=True).float().expand(count, -1)
            return self._judge(mean), "the mean of the training samples"
        classes = self._task.model.classes or 0
        likeliest = int(torch.bincount(targets, minlength=classes).argmax())
        share = float((self._held.targets.cpu() == likeliest).double().mean())
        if share < 1 / classes:
            return {"accuracy": 1 / classes}, "chance"
        return {"accuracy": share}, f"always answering {self._names()[likeliest]!r}"

    def oddities(self, answers: Tensor | None) -> Iterator[str]:
        """Answers that would be right in another order."""
        if answers is None or self._job.task == EMBEDDING:
            return
        targets = self._held.targets.cpu()
        if self._job.task in CLASSIFICATION:
            yield from self._permuted(answers.argmax(-1), targets)
            return
        points = self._job.task == "keypoints"
        if moved := moved_places(answers, targets, 2 if points else 1):
            kind = "points" if points else "numbers"
            yield f"seems to answer with its {kind} in another order (counted from 0): {_pairs(moved, str)}"

    def _permuted(self, choices: Tensor, labels: Tensor) -> Iterator[str]:
        names = self._names()
        if moved := moved_classes(choices, labels):
            hits, plain, _ = permuted_hits(choices, labels, moved)
            right = int((choices == labels).sum())
            shares = f"accuracy {right / len(labels):.4g} as it is, {(right - plain + hits) / len(labels):.4g} then"
            told = _pairs(moved, lambda number: repr(names[number]))
            yield f"seems to have its classes in another order: {told} ({shares})"

    def _names(self) -> list[str]:
        model = self._task.model
        return model.class_names or [str(number) for number in range(model.classes or 0)]

    def _judge(self, answers: Tensor) -> Metrics:
        return judge(self._job.task, answers, self._held.targets, self._job.evaluation).metrics


def _pairs(moved: Moved, name: object) -> str:
    assert callable(name)
    told = [f"{name(own)} is answered with {name(other)}" for own, other in sorted(moved.items())]
    return ", ".join(told[:20]) + (f" and {len(told) - 20} more" if len(told) > 20 else "")


class _Texts:
    """Of language models."""

    def __init__(self, job: JobSpec, task: TaskData, seed: int, whole: bool) -> None:
        self._task, self._seed = task, seed
        self._held = task.eval
        length = max(samples.shape[1] for samples in task.eval.inputs.values())
        most = max(1, CHECKED_TOKENS // length)
        if not whole and self._held.samples > most:
            chosen = torch.linspace(0, self._held.samples - 1, most).long()
            self._held = self._held.take(chosen.to(self._held.storage_device))
        self._bytes = task.bytes if self._held is task.eval else 0
        self.samples = len(_labels(self._held, task.input_key or ""))

    def measure(self, model: Model) -> tuple[Metrics, Tensor | None]:
        """See `_Examiner`; logits are not kept."""
        return examine_model(model, HeldOutTexts(self._held, self._bytes), Taught((), ())).judgement.metrics, None

    def trivial(self, model: Model) -> tuple[Metrics, str]:
        """How often each token comes in training texts, once more than that for each."""
        train, width = self._task.train, model.config.outputs
        some = train.between(0, min(len(train), COUNTED))
        counts = torch.bincount(_labels(some, model.input_key), minlength=width).double() + 1
        logs = F.log_softmax(counts.log(), dim=0)
        nll = -float(logs[_labels(self._held, model.input_key)].mean())
        return {"perplexity": math.exp(min(nll, 700.0))}, "how often each token comes"

    def oddities(self, answers: Tensor | None) -> Iterator[str]:
        """None that would show in what is kept."""
        yield from ()


def _labels(samples: Batch, input_key: str) -> Tensor:
    """Tokens (n,) that a model is to say, on the CPU; packed texts give them some rows at a time."""
    parts = (part.inputs.get(NEXT + input_key, part.targets).flatten().cpu() for part in samples.parts(COUNTED))
    labels = torch.cat(list(parts))
    return labels[labels != IGNORED]
