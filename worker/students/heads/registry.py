"""The registry of heads."""

from __future__ import annotations

from worker.students.layers.registry import LayerRegistry

HEADS = LayerRegistry[int, int]()
"""Builders, from the width of the features and the number of outputs."""
