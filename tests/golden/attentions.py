"""Attention of the zoo's layers: values, weights of pairs and gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from app.recipe.students.layers import AttentionShape, NalaAttention, SoftAttention
from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.kernels.sigmoid_attention import AttentionMask, sigmoid_attention
from worker.students.layers.attentions import ATTENTIONS
from worker.students.layers.attentions.nala import grid_angles
from worker.students.layers.attentions.soft import SoftSelfAttention, normalised_inverse, ridge_inverse
from worker.students.layers.attentions.softplus import softplus_weights

QKV = ("q", "k", "v")
SOFT_PARTS = {
    "Qlandmark_op_weight": "landmark.weight",
    "Qnorm_act_0_weight": "landmark_norm.weight",
    "Qnorm_act_0_bias": "landmark_norm.bias",
    "conv_weight": "local.weight",
}
NALA_PARTS = {
    f"{theirs}_{leaf}": f"{ours}.{leaf}"
    for theirs, ours in (("qkvg", "qkvg"), ("lepe", "local"), ("out_proj", "out"), ("ln", "norm"))
    for leaf in ("weight", "bias")
}
AUTHORS_INVERSE = partial(normalised_inverse, alike=True)


def sigmoid_attentions(case: Case) -> Iterator[Comparison]:
    """Tokens come before heads there; padded queries give zeros."""
    given = [case.inputs[name].clone().requires_grad_() for name in QKV]
    window, causal = case.hyper["window"], case.hyper["causal"]
    mask = AttentionMask(case.inputs.get("key_mask"), causal, None if window[0] < 0 else tuple(window))
    found = sigmoid_attention(*(each.transpose(1, 2) for each in given), case.hyper["sigmoid_bias"], mask)
    found = found.transpose(1, 2)
    if "query_mask" in case.inputs:
        found = found * case.inputs["query_mask"][:, :, None, None]
    yield from _compared(case, "sigmoid", found, dict(zip(("grad_q", "grad_k", "grad_v"), given, strict=True)))


def lssa(case: Case) -> Iterator[Comparison]:
    """Weights, with and without re-weighting, and the outputs."""
    given = [case.inputs[name].clone().requires_grad_() for name in QKV]
    query, key, value = given
    causal = case.hyper.get("causal", not case.name.startswith("full"))
    power, offset = case.hyper.get("p"), case.hyper.get("offset", 0.0)
    weights = softplus_weights(query, key, AttentionMask(causal=causal), power, offset)
    yield Comparison("softplus", "weights", weights.detach(), case.outputs["weights"])
    gradients = dict(zip(("grad_q", "grad_k", "grad_v"), given, strict=True))
    yield from _compared(case, "softplus", weights @ value, gradients)


def soft_attention(case: Case) -> Iterator[Comparison]:
    """The attention of the heads, and Newton's iteration alone."""
    yield from _inverse(case) if "inv" in case.outputs else _soft_heads(case)


def _inverse(case: Case) -> Iterator[Comparison]:
    matrix = case.inputs["K"].clone().requires_grad_()
    found = ridge_inverse(matrix, case.hyper["iters"])
    (gradient,) = torch.autograd.grad(found, matrix, case.inputs["cotangent"])
    yield Comparison("soft", "inv", found.detach(), case.outputs["inv"])
    yield Comparison("soft", "grad_K", gradient, case.outputs["grad_K"], is_gradient=True)


def _soft_heads(case: Case) -> Iterator[Comparison]:
    hyper, grid = case.hyper, (case.hyper["H"], case.hyper["W"])
    shape = AttentionShape(grid[0] * grid[1], hyper["heads"] * hyper["head_dim"], hyper["heads"], grid)
    spec = SoftAttention(ratio=hyper["ratio"], conv_size=hyper["conv_size"], normalised=case.name.endswith("_sym"))
    module = ATTENTIONS.build(spec, shape).double()
    assert isinstance(module, SoftSelfAttention)
    module.steps = hyper["newton_iters"]
    module.invert = AUTHORS_INVERSE if spec.normalised else module.invert
    given = {f"grad_{name}": case.inputs[name].clone().requires_grad_() for name in ("Q", "V")}
    parameters = _fill(module, case.inputs, SOFT_PARTS)
    yield from _compared(case, "soft", module.attend(*given.values()), {**given, **parameters})


def nalaformer(case: Case) -> Iterator[Comparison]:
    """The whole layer, from images (N, C, H, W), and the angles of its rotation."""
    samples = case.inputs["x"].clone().requires_grad_()
    grid, width = samples.shape[2:], samples.shape[1]
    angles = grid_angles((grid[0], grid[1]), width // case.hyper["heads"], samples).repeat_interleave(2, -1)
    yield Comparison("nala", "cos", angles.cos(), case.inputs["cos"])
    yield Comparison("nala", "sin", angles.sin(), case.inputs["sin"])
    shape = AttentionShape(grid[0] * grid[1], width, case.hyper["heads"], (grid[0], grid[1]))
    module = ATTENTIONS.build(NalaAttention(), shape).double()
    parameters = _fill(module, case.inputs, NALA_PARTS)
    found = module(samples.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, grid)
    yield from _compared(case, "nala", found, {"grad_x": samples, **parameters})


def _fill(module: nn.Module, given: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Sets the parameters that a case has, and returns them by the names of their gradients."""
    held = {theirs: ours for theirs, ours in names.items() if f"param_{theirs}" in given}
    with torch.no_grad():
        for theirs, ours in held.items():
            module.get_parameter(ours).copy_(given[f"param_{theirs}"])
    return {f"gparam_{theirs}": module.get_parameter(ours) for theirs, ours in held.items()}


def _compared(case: Case, kind: str, found: Tensor, wanted: Mapping[str, Tensor]) -> Iterator[Comparison]:
    """The output and its gradients, by their names in the file."""
    yield Comparison(kind, "out", found.detach(), case.outputs["out"])
    gradients = torch.autograd.grad(found, list(wanted.values()), case.inputs["cotangent"])
    for name, gradient in zip(wanted, gradients, strict=True):
        yield Comparison(kind, name, gradient, case.outputs[name], is_gradient=True)
