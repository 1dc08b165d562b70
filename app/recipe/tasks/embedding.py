"""Sentence embedding: a vector of a text, for comparison with others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from app.recipe.data.sources import ColumnsField, CsvData, HfData, JsonlData, ParquetData, Table
from app.recipe.optimizers import AdamW, Linear
from app.recipe.problem import Problem
from app.recipe.students.hugging_face import TEXT_MODEL_TYPES
from app.recipe.tasks.base import MainMetric, TaskSpec, TrainingDefaults


class EmbeddingSpec(TaskSpec):
    """Vectors of texts, learned from a teacher, from pairs, from lists of candidates or from scores."""

    name = "embedding"
    reads = ("texts",)
    formats = (CsvData, JsonlData, ParquetData, HfData)
    model_types = TEXT_MODEL_TYPES
    answers = "vectors"
    sized_by = "targets"
    metrics = {
        **{"spearman": True, "pearson": True},
        **{"mrr": True, "recall_at_1": True, "recall_at_5": True, "recall_at_10": True, "ndcg_at_10": True},
    }
    main_metric = MainMetric("spearman", higher_is_better=True, stand_in="mrr")
    options = frozenset(
        {
            *("embedding", "data.eval_input_columns", "data.eval_label_columns"),
            *("data.candidate_columns", "data.eval_candidate_columns", "data.corpus", "data.mining"),
        }
    )
    tuned = shrunk = TrainingDefaults(
        "a sentence encoder that goes on from trained weights: rate and warm-up of Sentence-BERT (1908.10084)",
        AdamW(lr=2e-5, weight_decay=0.01),
        Linear(warmup_ratio=0.1),
    )

    def column_problems(self, data: Table) -> Iterator[Problem]:
        """Problems of the columns: texts, pairs or lists of candidates for training, but no single texts for
        evaluation, and scores of pairs and candidates alone."""
        own = [name for name in get_args(ColumnsField) if getattr(data, f"eval_{name}") is not None]
        if own and data.holds_out:
            yield Problem("data.eval", "is missing, and columns of it are named", "a file, or no columns of its own")
            return
        yield from _texts_problems(data, "data.train")
        yield from _corpus_problems(data)
        if data.mining is not None and len(data.source_columns) == 1:
            yield Problem("data.mining", "is given, and single texts have no positives", "none, or pairs or candidates")
        if own:
            yield from _texts_problems(data, "data.eval")
        elif len(data.source_columns) == 1 and data.holds_out:
            yield Problem("data.eval", "is missing, and single texts can't be evaluated", "a file with pairs of texts")
        if not data.holds_out and len(data.at("data.eval").source_columns) == 1:
            yield Problem("data.eval_input_columns", "must name two columns: evaluation compares texts", "two columns")


def _corpus_problems(data: Table) -> Iterator[Problem]:
    held_out = data.at("data.eval")
    if data.corpus is not None and data.holds_out:
        yield Problem("data.corpus", "is given without data.eval, whose queries search in it", "none, or data.eval")
    elif data.corpus is not None and held_out.label_columns and not held_out.candidate_columns:
        yield Problem("data.corpus", "is given, and scored pairs are not evaluated by search", "none")


def _texts_problems(data: Table, param: str) -> Iterator[Problem]:
    """Problems of the columns of one file."""
    found = data.at(param)
    texts, candidates, scores = found.input_columns, found.candidate_columns, found.label_columns
    most = 1 if candidates else 2
    if len(texts) > most:
        accepted = "one, of the queries" if candidates else "one, or two of a pair"
        yield Problem(data.field("input_columns", param), f"names {len(texts)} columns", accepted)
    if len(scores) > (len(found.source_columns) > 1):
        wrong = f"names {len(scores)} columns of scores for {len(found.source_columns)} of texts"
        yield Problem(data.field("label_columns", param), wrong, "one column, of pairs or candidates, or none")
    if not candidates:
        return
    if isinstance(data, CsvData):
        yield Problem(data.field("candidate_columns", param), "names lists, and csv has none", "none, or jsonl")
    for name in set(candidates) & {*texts, *scores}:
        where = data.field("candidate_columns", param)
        yield Problem(where, f"names {name!r}, which another field names, too", "columns of their own")
