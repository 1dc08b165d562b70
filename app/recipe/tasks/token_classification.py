"""Token classification: a class for every word of a text, such as parts of speech or the names of entities."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.base import TaskOption
from app.recipe.data.augmentation import TokenDelete
from app.recipe.data.sources import CsvData, HfData, JsonlData, ParquetData, Table
from app.recipe.losses.base import LossSpec
from app.recipe.problem import Problem
from app.recipe.students.hugging_face import TEXT_MODEL_TYPES
from app.recipe.students.inputs import Input, TextInput
from app.recipe.tasks.base import CLASS_BYTES, MainMetric, TaskSpec


class TokenClassificationSpec(TaskSpec):
    """Tags of the words of texts; the first token of each word has its prediction."""

    name = "token-classification"
    reads = ("texts",)
    formats = (CsvData, JsonlData, ParquetData, HfData)
    model_types = TEXT_MODEL_TYPES
    answers = "classes"
    sized_by = "classes"
    per_token = True
    metrics = {
        **{"entity_f1": True, "entity_precision": True, "entity_recall": True},
        **{"accuracy": True, "nll": False, "ece": False, "adaptive_ece": False, "brier": False},
    }
    main_metric = MainMetric("entity_f1", higher_is_better=True, tie_breaker="nll", stand_in="accuracy")

    def fits(self, option: type[TaskOption]) -> bool:
        """Losses on the logits of one row at a time, because a row is a word, or on features without their padding; no
        augmentation that moves tokens away from their tags."""
        return super().fits(option) and not self.why_unfit(option)

    def why_unfit(self, option: type[TaskOption]) -> str:
        if issubclass(option, LossSpec) and super().fits(option):
            return option.why_not_by_token()
        if option.of_samples:
            return "it needs one class for each sample"
        return "it moves tokens away from their tags" if issubclass(option, TokenDelete) else ""

    def target_bytes(self, sample: Input, outputs: int) -> int:
        return CLASS_BYTES * sample.length if isinstance(sample, TextInput) else CLASS_BYTES

    def column_problems(self, data: Table) -> Iterator[Problem]:
        yield from super().column_problems(data)
        for field, names, held in (
            ("input_columns", data.input_columns, "lists of words"),
            ("label_columns", data.label_columns, "lists of tags"),
        ):
            if len(names) > 1:
                yield Problem(f"data.{field}", f"names {len(names)} columns of {held}", "one column")
