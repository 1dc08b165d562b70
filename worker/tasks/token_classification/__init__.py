"""A class for every word of a text; outputs and targets are those of the words' first tokens.

N texts of S tokens, n words of all of them that have a token, C tags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, chain

import numpy as np
import torch
from torch import Tensor

from app.recipe.data.sources import Texts
from app.recipe.job import EvaluationSpec, JobSpec
from app.recipe.plan import EVAL_BATCH
from app.recipe.students.model import ModelConfig
from worker.data.batches import Batch
from worker.data.formats.columns import Samples, Values
from worker.data.holdout import hold_out_any
from worker.data.labels import class_targets, find_classes
from worker.data.readers import WORDS, Readers
from worker.data.task_data import AlignedSplit, Targets, TaskData
from worker.errors import UserError
from worker.metrics.entities import entity_scores, marks_entities
from worker.students.model import Model
from worker.tasks.base import Call, Evaluation, Metrics
from worker.tasks.classification import Classification
from worker.tasks.prediction import evaluating
from worker.tasks.token_classification.alignment import align_tags, lost_notes, tags_of_pieces
from worker.tasks.token_classification.card import TagCard
from worker.tasks.token_classification.columns import PieceTags, Tag, WordColumns
from worker.tasks.token_classification.objective import WordObjective
from worker.tensors import IGNORED


class TokenClassification(Classification):
    """Models give logits (N, S, C), targets are (N, S) int64. What is evaluated, compared and kept of outputs are the
    rows (n, C) of words."""

    objective = WordObjective
    reads_words = True

    def __init__(self) -> None:
        super().__init__("token-classification", texts=True)
        self.columns, self.card = WordColumns(self.name), TagCard(self.name)

    def targets(self, job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]) -> Targets:
        """By file as `tags_of_pieces` gives them, for `align`."""
        assert isinstance(job.data, Texts)  # the contract refuses other formats
        flat = {param: one._replace(labels=_flat(one.labels)) for param, one in samples.items()}
        classes = find_classes(job, teachers, flat)
        found, notes = {}, [*classes.notes]
        for param, one in samples.items():
            rows: list[PieceTags] = list(one.labels)
            tags, own = class_targets(flat[param], classes, job.data, param, _rows_of(rows))
            begins = [[tag is not None for tag in row] for row in rows]
            found[param] = tags_of_pieces(begins, tags, job.data.max_length)
            notes += own
        return Targets(found, classes, notes)

    def align(self, split: Batch, readers: Readers | None, param: str) -> AlignedSplit:
        assert readers is not None  # there are texts
        if readers.others:
            message = "data.tokenizer: student and teachers read other tokens, and are compared token by token"
            raise UserError("invalid_job", f"{message}; accepted: the same tokenizer for all of them", "data.tokenizer")
        key, pad = readers.student.input_key, readers.student.pad
        ids, words = split.inputs[key], split.inputs[WORDS + key]
        full = (ids[:, -1] != pad) & (ids.shape[1] == readers.lengths[key])
        targets, cut, dropped = align_tags(split.targets, words, full)
        if not bool((targets != IGNORED).any()):
            message = f"no word of {param} has a token; accepted: a tokenizer that knows words of it"
            raise UserError("invalid_data", message, param)
        notes = lost_notes(cut, dropped, int(split.targets[:, 0].sum()), param)
        return AlignedSplit(replace(split, targets=targets), list(notes))

    def hold_out(self, train: Batch, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Whole texts."""
        return hold_out_any(train.samples, count, seed)

    def label_notes(self, train: Tensor, evaluation: Tensor, model: ModelConfig) -> list[str]:
        return super().label_notes(_tags(train), _tags(evaluation), model)

    def outputs_of(self, call: Call, samples: Batch, input_key: str) -> Tensor:
        """Rows of the words' first tokens (n, C)."""
        found = []
        for part in samples.parts(EVAL_BATCH):
            outputs = call(part.inputs[input_key])
            found.append(outputs[(part.targets != IGNORED).to(outputs.device)].float().cpu())
        return torch.cat(found)

    def evaluate(
        self, outputs: Tensor, targets: Tensor, options: EvaluationSpec, teacher: Tensor | None = None
    ) -> Evaluation:
        """As of a classifier, word by word."""
        return super().evaluate(outputs, _tags(targets), options, teacher)

    def evaluate_as(
        self,
        names: Sequence[str] | None,
        outputs: Tensor,
        targets: Tensor,
        options: EvaluationSpec,
        teacher: Tensor | None = None,
    ) -> Evaluation:
        """Besides, where the names are those of entities: `entity_precision`, `entity_recall` and `entity_f1` of their
        spans (as `seqeval` has them), and the same by type as the report's `entities`."""
        found = self.evaluate(outputs, targets, options, teacher)
        if names is None or not marks_entities(names):
            return found
        metrics, by_type = _entities(outputs.argmax(-1), targets, names)
        return found._replace(metrics=metrics | found.metrics, figures={"entities": by_type})

    def baseline(self, job: JobSpec, data: TaskData, held_out: Batch) -> tuple[Metrics, str]:
        """The likeliest tag of the training words."""
        train, held = (replace(each, targets=_tags(each.targets)) for each in (data.train, held_out))
        found, which = super().baseline(job, replace(data, train=train), held)
        names = data.model.class_names
        if names is None or not marks_entities(names):
            return found, which
        always = torch.full_like(held.targets, int(torch.bincount(train.targets).argmax()))
        return found | _entities(always, held_out.targets, names)[0], which

    def oddities(self, outputs: Tensor, targets: Tensor, model: ModelConfig) -> Iterator[str]:
        return super().oddities(outputs, _tags(targets), model)

    def sample_outputs(self, model: Model, held_out: Batch, most: int) -> Tensor:
        with evaluating(model):
            return self.outputs_of(model, held_out.between(0, most), model.input_key)[:most]


def _tags(targets: Tensor) -> Tensor:
    """Tags (n,) int64 of the words, on the CPU."""
    return targets[targets != IGNORED].cpu()


def _flat(rows: Values) -> Values:
    """The tags of all words, one after the other."""
    tags: list[Tag] = [tag for tag in chain.from_iterable(rows) if tag is not None]
    return tags if isinstance(tags[0], str) else np.array(tags, np.int64)


def _rows_of(rows: Sequence[PieceTags]) -> Callable[[int], str]:
    """Names the row of the tag at an index among those of all words; looks at no row behind it."""

    def name(index: int) -> str:
        ends = accumulate(len(tags) - tags.count(None) for tags in rows)
        return f"row {next(row for row, end in enumerate(ends) if index < end)}"

    return name


def _entities(choices: Tensor, targets: Tensor, names: Sequence[str]) -> tuple[Metrics, list[dict[str, object]]]:
    """Scores of the spans of all types together, and a row for each type."""
    lengths = (targets != IGNORED).sum(1).cpu()
    total, by_type = entity_scores(choices, _tags(targets), lengths, names)
    metrics = {f"entity_{name}": value for name, value in total._asdict().items() if name != "support"}
    return metrics, [{"type": kind, **scores._asdict()} for kind, scores in by_type.items()]


TAGS = TokenClassification()
