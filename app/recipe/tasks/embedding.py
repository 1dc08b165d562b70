"""Sentence embedding: a vector of a text, for comparison with others."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.data.sources import CsvData, HfData, JsonlData, ParquetData, Table
from app.recipe.optimizers import AdamW, Linear
from app.recipe.problem import Problem
from app.recipe.students.hugging_face import TEXT_MODEL_TYPES
from app.recipe.tasks.base import MainMetric, TaskSpec, TrainingDefaults


class EmbeddingSpec(TaskSpec):
    """Vectors of texts, learned from a teacher, from pairs or from their scores."""

    name = "embedding"
    reads = ("texts",)
    formats = (CsvData, JsonlData, ParquetData, HfData)
    model_types = TEXT_MODEL_TYPES
    answers = "vectors"
    sized_by = "targets"
    metrics = {
        **{"spearman": True, "pearson": True},
        **{"mrr": True, "recall_at_1": True, "recall_at_5": True, "recall_at_10": True},
    }
    main_metric = MainMetric("spearman", higher_is_better=True, stand_in="mrr")
    options = frozenset({"embedding", "data.eval_input_columns", "data.eval_label_columns"})
    tuned = shrunk = TrainingDefaults(
        "a sentence encoder that goes on from trained weights: rate and warm-up of Sentence-BERT (1908.10084)",
        AdamW(lr=2e-5, weight_decay=0.01),
        Linear(warmup_ratio=0.1),
    )

    def column_problems(self, data: Table) -> Iterator[Problem]:
        """Problems of the columns: texts or pairs for training, pairs for evaluation, and scores of pairs alone."""
        own = data.eval_input_columns is not None or data.eval_label_columns is not None
        if own and data.holds_out:
            yield Problem("data.eval", "is missing, and columns of it are named", "a file, or no columns of its own")
            return
        yield from _texts_problems(data, "data.train")
        if own:
            yield from _texts_problems(data, "data.eval")
        elif len(data.input_columns) == 1 and data.holds_out:
            yield Problem("data.eval", "is missing, and single texts can't be evaluated", "a file with pairs of texts")
        if not data.holds_out and len(data.at("data.eval").input_columns) == 1:
            yield Problem("data.eval_input_columns", "must name two columns: evaluation compares texts", "two columns")


def _texts_problems(data: Table, param: str) -> Iterator[Problem]:
    texts, scores = data.at(param).input_columns, data.at(param).label_columns
    if len(texts) > 2:
        yield Problem(data.field("input_columns", param), f"names {len(texts)} columns", "one, or two of a pair")
    if len(scores) > (len(texts) > 1):
        found = f"names {len(scores)} columns of scores for {len(texts)} of texts"
        yield Problem(data.field("label_columns", param), found, "one column, of pairs of texts, or none")
