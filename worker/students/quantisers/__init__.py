"""Quantised layers of built-in networks, one module per kind of the contract (`app.recipe.students.quantisation`)."""

from __future__ import annotations

from worker.students.quantisers import binary, qat, shift_quant
from worker.students.quantisers.layers import QuantisedLayer as QuantisedLayer
from worker.students.quantisers.layers import quantised as quantised
from worker.students.quantisers.layers import quantised_layers as quantised_layers
from worker.students.quantisers.layers import without_quantisers as without_quantisers

__all__ = ["QuantisedLayer", "binary", "qat", "quantised", "quantised_layers", "shift_quant", "without_quantisers"]
