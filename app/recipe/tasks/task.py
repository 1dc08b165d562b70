"""The tasks that a student can be trained for."""

from __future__ import annotations

from typing import Literal

Task = Literal["image-classification", "text-classification", "regression", "keypoints", "embedding", "causal-lm"]
CLASSIFICATION: tuple[Task, ...] = ("image-classification", "text-classification")
"""Tasks whose answer is one of several classes."""
NUMBERS: tuple[Task, ...] = ("regression", "keypoints")
"""Tasks whose answer is a list of numbers."""
EMBEDDING: Task = "embedding"
"""The task whose answer is a vector of a text, good for nothing but to be compared with others."""
CAUSAL_LM: Task = "causal-lm"
"""The task whose answer is, at every token of a text, which one comes next."""
TEXT_TASKS: tuple[Task, ...] = ("text-classification", EMBEDDING, CAUSAL_LM)
"""Tasks whose samples are texts."""
ALL_TASKS: tuple[Task, ...] = (*CLASSIFICATION, *NUMBERS, EMBEDDING, CAUSAL_LM)
