"""Quantised operands: integers, their scales, and sums of their products."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.bundle.spiking_reader import simulate
from worker.students.quantisers.binary import ScaledRelu, binary_weight, centred, fit_factors
from worker.students.quantisers.shift_quant import codes_of, shift_scales, weight_codes

SHIFT_QUANT, BINARY = "shift-quant", "binary"


def shift_quant(case: Case) -> Iterator[Comparison]:
    """Groups, codes and sums of a product of activations (N, C) and a weight (C, O); or the codes of a gradient, which
    are rounded with the noise `u`."""
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


def binary(case: Case) -> Iterator[Comparison]:
    """Binarisation and its gradient, without the authors' factor n (1 - 1/C_in) 10^9; or the conversion of a network
    and its spikes, where the authors leave the last matrix as it is."""
    yield from _spikes(case) if case.name == "if_network" else _binarised(case)


def _binarised(case: Case) -> Iterator[Comparison]:
    for name in ("conv", "fc"):
        before = case.inputs[f"w_{name}_before"]
        latent = centred(before).requires_grad_()
        weight = binary_weight(latent)
        yield Comparison(BINARY, f"w_{name}_centred", latent.detach(), case.outputs[f"w_{name}_centred"])
        yield Comparison(BINARY, f"w_{name}_bin", weight.detach(), case.outputs[f"w_{name}_bin"])
        (gradient,) = torch.autograd.grad(weight, latent, case.outputs[f"grad_{name}_raw"])
        factor = before[0].numel() * (1 - 1 / before.shape[1]) * 1e9
        yield Comparison(BINARY, f"grad_{name}_final", gradient * factor, case.outputs[f"grad_{name}_final"], True)


def _spikes(case: Case) -> Iterator[Comparison]:
    weights = [case.inputs[f"W{number}"] for number in range(3)]
    network = nn.Sequential()
    for weight in weights:
        layer = nn.Linear(*weight.shape, bias=False).to(weight)
        layer.weight.data = weight.T
        network.extend([layer, ScaledRelu().to(weight)])
    network = network[:-1]
    fit_factors(network, case.inputs["x_calib"], case.hyper["percentile"])
    factors = [layer.factor for layer in network if isinstance(layer, ScaledRelu)]
    yield Comparison(BINARY, "factors", torch.stack(factors), case.outputs["factors"])
    scaled = [weights[0] / factors[0], weights[1] * factors[0] / factors[1], weights[2]]
    for number, weight in enumerate(scaled):
        yield Comparison(BINARY, f"Wn{number}", weight, case.outputs[f"Wn{number}"])
    matrices, x = [weight.numpy() for weight in scaled], case.inputs["x"].numpy()
    sums, counts = simulate(matrices, x, case.hyper["timesteps"])
    for number, count in enumerate(counts, start=1):
        name = f"spike_counts{number}"
        yield Comparison(BINARY, name, torch.from_numpy(count), case.outputs[name], within=0.0)
    yield Comparison(BINARY, "output_sum", torch.from_numpy(sums), case.outputs["output_sum"])
    chosen = [simulate(matrices, x, steps + 1)[0].argmax(-1) for steps in range(case.hyper["timesteps"])]
    yield Comparison(BINARY, "pred_over_time", torch.from_numpy(np.stack(chosen)), case.outputs["pred_over_time"])
    with torch.no_grad():
        yield Comparison(BINARY, "ann_output", network(case.inputs["x"]), case.outputs["ann_output"])
