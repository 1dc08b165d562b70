"""The tasks that a student can be trained for."""

from __future__ import annotations

from typing import Literal

Task = Literal["image-classification", "text-classification", "regression", "keypoints", "causal-lm"]
CLASSIFICATION: tuple[Task, ...] = ("image-classification", "text-classification")
"""Tasks whose answer is one of several classes."""
NUMBERS: tuple[Task, ...] = ("regression", "keypoints")
"""Tasks whose answer is a list of numbers."""
CAUSAL_LM: Task = "causal-lm"
"""The task whose answer is, at every token of a text, which one comes next."""
ALL_TASKS: tuple[Task, ...] = (*CLASSIFICATION, *NUMBERS, CAUSAL_LM)
