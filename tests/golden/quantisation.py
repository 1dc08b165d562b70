"""Quantised operands: integers, their scales, and sums of their products."""

from __future__ import annotations

from collections.abc import Iterator

from tests.golden import Case, NothingToCompare
from tests.golden.comparison import Comparison
from worker.students.quantisers.shift_quant import codes_of, shift_scales, weight_codes

SHIFT_QUANT = "shift-quant"


def shift_quant(case: Case) -> Iterator[Comparison]:
    """Groups, codes and sums of a product of activations (N, C) and a weight (C, O); or the codes of a gradient, which
    are rounded with the noise `u`."""
    if not case.name.startswith("shiftquant"):
        raise NothingToCompare("an L1 norm")
    values, stochastic = case.inputs["X"], "stoch" in case.name
    bits, groups = case.hyper["bits"], case.hyper["groups"]
    largest = 2 ** (bits - 1) - 1
    scales = shift_scales(values.abs().amax(0), largest, groups)
    codes = codes_of(values, scales.steps, largest, case.inputs["u"] if stochastic else None)
    yield Comparison(SHIFT_QUANT, "group", scales.groups, case.outputs["group"])
    yield Comparison(SHIFT_QUANT, "X_int", codes, case.outputs["X_int"], within=0.0)
    if stochastic:
        return
    weight, weight_scale = weight_codes(case.inputs["W"].T, largest)
    sums = (codes.long() << scales.shifts) @ weight.T.long()
    yield Comparison(SHIFT_QUANT, "scale0", scales.scale, case.outputs["scale0"])
    yield Comparison(SHIFT_QUANT, "W_int", weight.T, case.outputs["W_int"], within=0.0)
    yield Comparison(SHIFT_QUANT, "w_scale", weight_scale, case.outputs["w_scale"])
    yield Comparison(SHIFT_QUANT, "acc_int", sums, case.outputs["acc_int"], within=0.0)
    yield Comparison(SHIFT_QUANT, "Y", sums * scales.scale * weight_scale / 2 ** (groups - 1), case.outputs["Y"])
