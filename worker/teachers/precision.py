"""Teachers in fewer bits: bf16, or fp8 in the products of linear layers (torch's `_scaled_mm`).

Weights are cast, once; there is no autocast. What goes in and comes out of the model stays as it was, but for the
states and the last layer of a language model, which are bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.recipe.teachers.teacher import Arithmetic
from worker.students.model import Model, last_layer

EIGHT_BITS = torch.float8_e4m3fn
SIDES = 16
"""Both sides of a weight must be multiples of it: what CUDA's product of 8-bit floats takes."""
SMALLEST = 1e-12
"""Least scale: a row of zeros stays one."""


class CannotLower(Exception):
    """The model, or the machine, has no such arithmetic; the text says why."""


def lower(model: Model, precision: Arithmetic) -> Model:
    """`model`, changed in place; fp32 changes nothing. Modules that `fp8` replaces lose their hooks.

    Raises CannotLower for fp8 where no layer would take it, or where this machine has no product for it.
    """
    if precision == "fp32":
        return model
    if precision == "fp8":
        _require_product(next(model.parameters()).device)
        _replace_layers(model)
    _cast(model.network)
    model.preprocess = nn.Sequential(model.preprocess, Cast(torch.bfloat16))
    model.rescale = nn.Sequential(Cast(torch.float32), model.rescale)
    return model


class Cast(nn.Module):
    """Floating tensors in another dtype; others pass."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, values: Tensor) -> Tensor:
        return values.to(self.dtype) if values.is_floating_point() else values


class EightBitLinear(nn.Module):
    """A linear layer (..., I) -> (..., O) whose product takes 8-bit floats, each row of inputs and weight with a scale
    of its own; it adds up in float32 and gives bf16."""

    weight_8: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, scale = narrow(layer.weight.detach())
        self.register_buffer("weight_8", weight)
        self.register_buffer("scale", scale.t())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().bfloat16())

    def forward(self, values: Tensor) -> Tensor:
        rows, scale = narrow(values.flatten(0, -2))
        told = torch._scaled_mm(rows, self.weight_8.t(), scale, self.scale, bias=self.bias, out_dtype=torch.bfloat16)
        return told.view(*values.shape[:-1], -1)


def narrow(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, I) in 8 bits, and the scale (N, 1) float32 of each, by which its largest number becomes the largest that
    8 bits hold."""
    largest: Tensor = torch.linalg.vector_norm(values, torch.inf, dim=1, keepdim=True, dtype=torch.float32)
    scale = (largest / torch.finfo(EIGHT_BITS).max).clamp(min=SMALLEST)
    return (values / scale).to(EIGHT_BITS), scale


def _replace_layers(model: Model) -> None:
    """All but the last layer, which losses look at."""
    last, found = last_layer(model), False
    for parent in list(model.network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and layer is not last and _fits(layer):
                setattr(parent, name, EightBitLinear(layer))
                found = True
    if not found:
        raise CannotLower(f"before its last layer it has no linear one whose sides are multiples of {SIDES}")


def _fits(layer: nn.Linear) -> bool:
    """Classes made of a linear layer may have others use its weight without calling it."""
    return type(layer) is nn.Linear and layer.in_features % SIDES == layer.out_features % SIDES == 0


def _require_product(device: torch.device) -> None:
    """Tried out, since it depends on the GPU and on the version of torch."""
    rows, scale = narrow(torch.ones(SIDES, SIDES, device=device))
    try:
        torch._scaled_mm(rows, rows.t(), scale, scale.t(), out_dtype=torch.bfloat16)
    except RuntimeError as error:
        raise CannotLower("this machine has no product of 8-bit floats, as GPUs since Ada have") from error


def _cast(network: nn.Module) -> None:
    """Weights and what is stored with them. What is computed at the start, such as the frequencies of rotary positions,
    stays as it is: in bf16 it would move the positions."""
    for module in network.modules():
        computed = module._non_persistent_buffers_set
        if isinstance(module, EightBitLinear):
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.bfloat16()
        for name, buffer in module.named_buffers(recurse=False):
            if name not in computed and buffer.is_floating_point():
                setattr(module, name, buffer.bfloat16())
