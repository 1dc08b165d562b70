"""Any number of classes for each image or text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.plan import EVAL_BATCH
from app.recipe.students.model import ImageInput, ModelConfig, TextInput
from app.recipe.tasks.multi_label import LISTED_METRICS, MANY_LABELS, MultiLabelSpec
from worker.data.batches import Batch
from worker.data.formats.columns import Samples
from worker.data.formats.label_lists import LabelColumns
from worker.data.holdout import hold_out
from worker.data.label_notes import label_notes
from worker.data.label_sets import find_label_classes, label_targets
from worker.data.task_data import Targets, TaskData
from worker.metrics import many_labels
from worker.metrics import multi_label as metrics
from worker.metrics.permutation import Moved, moved_places
from worker.tasks.base import Call, ClassRow, Evaluation, Metrics
from worker.tasks.card import TaskCard
from worker.tasks.moved import listed_moves
from worker.tasks.samples import SampleTask
from worker.tensors import IGNORED

LISTED_LABELS = 1000
"""With more labels than this, the table of classes is left out, and no other order of them is looked for."""
RANKS = (1, 3, 5)
"""Of how many of the likeliest labels the precision is measured."""
LEFT_OUT = (*(name for name in MultiLabelSpec.metrics if name not in LISTED_METRICS), "agreement", "kl")
"""Metrics that listed labels do not have."""
RARE = 8
"""Positive samples that a label needs for its place to be judged."""


class MultiLabelCard(TaskCard):
    """A classifier of which every logit decides by itself."""

    def pipeline_tag(self, config: ModelConfig) -> str | None:
        kinds: dict[type, str] = {ImageInput: "image-classification", TextInput: "text-classification"}
        return kinds.get(type(config.input))

    def output(self, config: ModelConfig) -> str:
        return f"`logits` (N, {config.classes}), of which each one's sigmoid is the probability of its label,"

    def printed(self, outputs: str, last_axis: str, label: str) -> str:
        return f"print([[{label} for number, logit in enumerate(row) if logit > 0] for row in {outputs}])"


class MultiLabelClassification(SampleTask):
    """Targets (N, C) float32 of 0 and 1, outputs logits (N, C); of many classes the targets are lists (N, P) int32 of
    the classes of each sample, and outputs that are stored are summaries of the logits."""

    name = "multi-label-classification"

    def __init__(self) -> None:
        self.columns, self.card = LabelColumns(self.name, texts=True), MultiLabelCard()

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        classes = find_label_classes(job, teachers, samples)
        read = {param: label_targets(one, classes, job.data, param) for param, one in samples.items()}
        found = Targets.about(classes, read)
        return found if classes.count <= MANY_LABELS else found._replace(notes=[*found.notes, _left_out(classes.count)])

    def hold_out(self, train: Batch, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Of the samples by the rarest label that each has, and of those without any, their share."""
        if train.targets.dtype == torch.int32:
            return hold_out(_rarest(train.targets), count, seed)
        there = train.targets > 0
        frequency = there.sum(0).expand_as(there).where(there, len(train) + 1)
        rarest = frequency.argmin(-1).where(there.any(-1), train.targets.shape[1])
        return hold_out(rarest, count, seed)

    def answer(
        self,
        job: JobSpec,
        train: Batch,
        targets: Targets,
        teachers: Mapping[str, ModelConfig],
        inherited: ModelConfig | None,
    ) -> dict[str, Any]:
        return targets.class_fields()

    def label_notes(self, train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
        return label_notes(train, evaluation, model)

    def evaluate(
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """`map` where a class has a positive sample, `micro_f1`, `macro_f1`, `precision_at_k` of as many classes as
        there are, `ece`, `nll` (nats); likeness to the teacher: `agreement`, `kl`. With listed labels `precision_at_k`
        and `nll` alone, from summaries (see `worker.metrics.many_labels`)."""
        labels, classes = targets.cpu(), outputs.shape[-1]
        if labels.dtype == torch.int32:
            return _of_summary(outputs, labels)
        ranking = metrics.mean_average_precision(outputs, labels)
        found = {} if ranking is None else {"map": ranking}
        found |= {"micro_f1": metrics.micro_f1(outputs, labels), "macro_f1": metrics.macro_f1(outputs, labels)}
        found |= {f"precision_at_{k}": metrics.precision_at(outputs, labels, k) for k in RANKS if k <= classes}
        found["ece"] = metrics.calibration_error(outputs, labels, options.ece_bins)
        found["nll"] = metrics.negative_log_likelihood(outputs, labels)
        found |= {} if teacher is None else self.likeness(outputs, teacher)
        table = _class_table(outputs, labels) if classes <= LISTED_LABELS else None
        return Evaluation({name: float(value) for name, value in found.items()}, table)

    def outputs_of(self, call: Call, samples: Batch, input_key: str) -> Tensor:
        """Logits (n, C), or summaries of them where labels are listed."""
        if samples.targets.dtype != torch.int32:
            return super().outputs_of(call, samples, input_key)
        parts = samples.parts(EVAL_BATCH)
        return torch.cat([many_labels.summarise(call(part.inputs[input_key]), part.targets).cpu() for part in parts])

    def likeness(self, outputs: Tensor, reference: Tensor) -> dict[str, Tensor]:
        """`agreement`, the share of the same decisions about labels, and `kl`, the mean KL(reference || outputs) of a
        label's probability in nats."""
        return {
            "agreement": metrics.agreement(outputs, reference),
            "kl": metrics.divergence(outputs, reference),
        }

    def mixture(self, outputs: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Logits (N, C) of the mean probability of each label."""
        if len(outputs) == 1:
            return outputs[0]
        logits = torch.stack(list(outputs)).double()
        shares = (torch.tensor(weights, dtype=torch.float64) / sum(weights)).log().view(-1, 1, 1)
        there, absent = (torch.logsumexp(F.logsigmoid(sign * logits) + shares, dim=0) for sign in (1, -1))
        return (there - absent).float()

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """Each label's frequency among the training samples, half a sample away from never and always."""
        if data.train.targets.dtype == torch.int32:
            return self._listed_baseline(job, data, held_out), "the frequency of each label"
        targets = data.train.targets.cpu().double()
        least = 0.5 / len(targets)
        logits = targets.mean(0).clamp(least, 1 - least).logit().float().expand(len(held_out), -1)
        return self.evaluate(logits, held_out.targets, job.evaluation).metrics, "the frequency of each label"

    def _listed_baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> Metrics:
        train, positives = data.train.targets.cpu(), held_out.targets.cpu()
        least = 0.5 / len(train)
        frequency = torch.bincount(train[train != IGNORED], minlength=data.model.classes or 0).double() / len(train)
        logits = frequency.clamp(least, 1 - least).logit().float().unsqueeze(0)
        parts = [
            many_labels.summarise(logits.expand(len(part), -1), part) for part in torch.split(positives, EVAL_BATCH)
        ]
        return self.evaluate(torch.cat(parts), positives, job.evaluation).metrics

    def oddities(self, outputs: Tensor, targets: Tensor, model: ModelConfig) -> Iterator[str]:
        """Labels that would be right in another order."""
        names = model.class_names or [str(number) for number in range(model.classes or 0)]
        if len(names) <= LISTED_LABELS and (moved := _moved_labels(outputs, targets)):
            listed = listed_moves(moved, lambda number: repr(names[number]))
            yield f"seems to have its labels in another order: {listed}"

    def tolerances(
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, allowed: float
    ) -> Iterator[tuple[str, float]]:
        """The NLL moves by at most the difference of the logits; average precision by what changes places that are no
        further apart than twice that."""
        yield "nll", allowed
        if targets.dtype == torch.int32:
            return
        exact = metrics.mean_average_precision(outputs, targets.cpu())
        bounds = metrics.average_precision_bounds(outputs, targets.cpu(), 2 * allowed)
        if exact is not None and bounds is not None:
            yield "map", float(torch.maximum(bounds.high - exact, exact - bounds.low))

    def same_choice(self, outputs: Tensor, live: Tensor) -> Tensor | None:
        return metrics.agreement(outputs, live)


def _left_out(classes: int) -> str:
    return f"with {classes} labels, more than {MANY_LABELS}, there are no {', '.join(LEFT_OUT)} and no table of classes"


def _rarest(positives: Tensor) -> Tensor:
    """The rarest label (N,) int64 of each sample, of positives (N, P) int32; one more than all others without any."""
    there = positives != IGNORED
    frequency, listed = positives[there].bincount(), positives.long().clamp(min=0)
    most = int(frequency.sum()) + 1
    rarest = frequency[listed].where(there, most).argmin(1, keepdim=True)
    return listed.gather(1, rarest).squeeze(1).where(there.any(1), len(frequency))


def _of_summary(summary: Tensor, positives: Tensor) -> Evaluation:
    """Metrics of predictions of many labels."""
    found = {f"precision_at_{k}": many_labels.precision_at(summary, positives, k) for k in RANKS}
    found["nll"] = many_labels.negative_log_likelihood(summary)
    return Evaluation({name: float(value) for name, value in found.items()}, None)


def _class_table(logits: Tensor, labels: Tensor) -> list[ClassRow]:
    """Samples that have each label, and the share of them that are given it."""
    samples, given = (counts.tolist() for counts in metrics.recall_counts(logits, labels))
    pairs = enumerate(zip(samples, given, strict=True))
    return [ClassRow(number, count, hits / count if count else None) for number, (count, hits) in pairs]


def _moved_labels(outputs: Tensor, targets: Tensor) -> Moved:
    """Of the labels that enough samples have, and enough do not."""
    positive = targets.sum(0)
    judged = ((positive >= RARE) & (positive <= len(targets) - RARE)).nonzero().flatten()
    if len(judged) < 2:
        return {}
    moved = moved_places(outputs[:, judged].sigmoid(), targets[:, judged])
    return {int(judged[own]): int(judged[other]) for own, other in moved.items()}


LABELS = MultiLabelClassification()
