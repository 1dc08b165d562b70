"""Lowers the precision of teachers: bf16, or fp8 in the products of linear layers (torch's `_scaled_mm`).

Weights are cast once; there is no autocast. The dtypes of the model's inputs and outputs stay as they were, but for the
hidden states and the last layer of a language model, which are bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.recipe.teachers.teacher import Arithmetic
from worker.students.model import Model, last_layer

EIGHT_BITS = torch.float8_e4m3fn
SIDES = 16
"""Both sides of a weight must be multiples of this: a requirement of CUDA's product of 8-bit floats."""
SMALLEST = 1e-12
"""Least scale, so that a row of zeros stays one."""


class CannotLower(Exception):
    """The model or the machine does not support this precision; the message has the reason."""


def lower(model: Model, precision: Arithmetic) -> Model:
    """Change `model` in place and return it; fp32 changes nothing. Modules that `fp8` replaces lose their hooks.

    Raises CannotLower for fp8 if no layer supports it, or if this machine has no product of 8-bit floats.
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
    """Casts floating tensors to another dtype; others are returned as they are."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, values: Tensor) -> Tensor:
        """`values` of any shape, in `dtype` if they are floating."""
        return values.to(self.dtype) if values.is_floating_point() else values


class EightBitLinear(nn.Module):
    """A linear layer (..., I) -> (..., O) with a product of 8-bit floats; each row of inputs and weight has its own
    scale.

    Sums are in float32, outputs in bf16.
    """

    weight_8: Tensor
    """(O, I) float8_e4m3fn."""
    scale: Tensor
    """(1, O) float32."""
    bias: Tensor | None
    """(O,) bf16; none: the layer has none."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight, scale = narrow(layer.weight.detach())
        self.register_buffer("weight_8", weight)
        self.register_buffer("scale", scale.t())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().bfloat16())

    def forward(self, values: Tensor) -> Tensor:
        """Outputs (..., O) bf16 for `values` (..., I) of any floating dtype."""
        rows, scale = narrow(values.flatten(0, -2))
        product = torch._scaled_mm(rows, self.weight_8.t(), scale, self.scale, bias=self.bias, out_dtype=torch.bfloat16)
        return product.view(*values.shape[:-1], -1)


def narrow(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (N, I) as float8_e4m3fn, and their scales (N, 1) float32.

    A scale maps the largest number of its row to the largest one that 8 bits hold.
    """
    largest: Tensor = torch.linalg.vector_norm(values, torch.inf, dim=1, keepdim=True, dtype=torch.float32)
    scale = (largest / torch.finfo(EIGHT_BITS).max).clamp(min=SMALLEST)
    return (values / scale).to(EIGHT_BITS), scale


def _replace_layers(model: Model) -> None:
    """Replace all linear layers but the last one, whose weight losses use."""
    last, found = last_layer(model), False
    for parent in list(model.network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and layer is not last and _fits(layer):
                setattr(parent, name, EightBitLinear(layer))
                found = True
    if not found:
        raise CannotLower(f"the model has no linear layer before its last one whose sides are multiples of {SIDES}")


def _fits(layer: nn.Linear) -> bool:
    """Whether a layer can be replaced. Subclasses can't: other modules may use their weight without calling them."""
    return type(layer) is nn.Linear and layer.in_features % SIDES == layer.out_features % SIDES == 0


def _require_product(device: torch.device) -> None:
    """Raise CannotLower if `device` has no product of 8-bit floats, which depends on the GPU and on torch's version."""
    rows, scale = narrow(torch.ones(SIDES, SIDES, device=device))
    try:
        torch._scaled_mm(rows, rows.t(), scale, scale.t(), out_dtype=torch.bfloat16)
    except RuntimeError as error:
        raise CannotLower("this machine has no product of 8-bit floats, as GPUs since Ada have") from error


def _cast(network: nn.Module) -> None:
    """Cast weights and persistent buffers to bf16. Buffers computed at the start, such as the frequencies of rotary
    positions, stay as they are: in bf16 they would change the positions."""
    for module in network.modules():
        computed = module._non_persistent_buffers_set
        if isinstance(module, EightBitLinear):
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.bfloat16()
        for name, buffer in module.named_buffers(recurse=False):
            if name not in computed and buffer.is_floating_point():
                setattr(module, name, buffer.bfloat16())
