"""Causal language modelling: predicts the next token at every token of a text."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.data.sources import CsvData, HfData, JsonlData, ParquetData, Table
from app.recipe.data.tokenizers import WordPiece
from app.recipe.optimizers import AdamW, Cosine
from app.recipe.problem import Problem
from app.recipe.students.hugging_face import DECODER_MODEL_TYPES
from app.recipe.tasks.base import MainMetric, TaskSpec, TrainingDefaults


class CausalLmSpec(TaskSpec):
    """Next tokens of texts or chats, which are their own labels."""

    name = "causal-lm"
    reads = ("texts",)
    formats = (CsvData, JsonlData, ParquetData, HfData)
    model_types = DECODER_MODEL_TYPES
    answers = "tokens"
    sized_by = None
    metrics = {"perplexity": False, "nll": False, "accuracy": True, "bits_per_byte": False}
    main_metric = MainMetric("perplexity", higher_is_better=False)
    options = frozenset({"data.chat_date"})
    packs_texts = True
    fresh = TrainingDefaults(
        "a language model that starts from random weights: rate, betas, weight decay and final rate of the small GPT-3"
        " (2005.14165)",
        AdamW(lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1),
        Cosine(warmup_ratio=0.1, final_ratio=0.1),
    )
    tuned = TrainingDefaults(
        "a language model that goes on from trained weights: rate, cosine and warm-up of Alpaca's fine-tuning of LLaMA",
        AdamW(lr=2e-5, weight_decay=0.0),
        Cosine(warmup_ratio=0.03),
    )
    shrunk = TrainingDefaults(
        "a language model made of parts of its teacher: peak rate of Minitron's retraining of pruned models"
        " (2407.14679)",
        AdamW(lr=1e-4, weight_decay=0.1),
        Cosine(warmup_ratio=0.1),
    )

    def column_problems(self, data: Table) -> Iterator[Problem]:
        if len(data.input_columns) > 1:
            yield Problem("data.input_columns", f"names {len(data.input_columns)} columns", "one, of texts or of chats")
        if data.label_columns:
            yield Problem("data.label_columns", "is given, and a text is its own answer", "no columns")
        if isinstance(data.tokenizer, WordPiece):
            found = "is wordpiece, which loses the spaces and lines of a text, so that none could be written"
            yield Problem("data.tokenizer.kind", found, "bpe, or teacher")
