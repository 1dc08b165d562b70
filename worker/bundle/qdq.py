"""The network of a quantised student as it is written to ONNX: 8-bit weights with DequantizeLinear, and inputs of
layers through QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from worker.students.model import Model
from worker.students.quantisers.base import Product
from worker.students.quantisers.layers import QuantisedLayer, replace_layers
from worker.students.quantisers.qat import OFFSET, EightBits, weight_codes


class QdqLayer(nn.Module):
    """A layer whose operands are dequantised 8-bit codes; it can only be traced for ONNX.

    Weights are unsigned with the zero point 128: with signed ones, products of pairs overflow in 16 bits on processors
    without instructions for 8-bit products, and ONNX Runtime saturates them.
    """

    weight_codes: Tensor
    """(O, ...) uint8."""
    weight_scale: Tensor
    """(O,) float32."""
    weight_zero: Tensor
    """(O,) uint8."""
    scale: Tensor
    """Scale of the inputs, a scalar float32."""
    zero: Tensor
    """Code of their zero, a scalar uint8."""

    def __init__(self, layer: QuantisedLayer, quantiser: EightBits) -> None:
        super().__init__()
        plain = layer.plain()
        self.product: Product = plain._conv_forward if isinstance(plain, nn.Conv2d) else nn.functional.linear
        self.bias = plain.bias
        codes, weight_scale = weight_codes(layer.weight.detach())
        scale, zero = quantiser.input_codes()
        self.register_buffer("weight_codes", (codes + OFFSET).to(torch.uint8))
        self.register_buffer("weight_scale", weight_scale.flatten())
        self.register_buffer("weight_zero", torch.full_like(self.weight_scale, OFFSET, dtype=torch.uint8))
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero.to(torch.uint8))

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs, as those of the quantised layer, for `inputs` of the same shape."""
        codes = _onnx("QuantizeLinear", [inputs, self.scale, self.zero], torch.uint8)
        operand = _onnx("DequantizeLinear", [codes, self.scale, self.zero], torch.float32)
        weight = _onnx("DequantizeLinear", [self.weight_codes, self.weight_scale, self.weight_zero], torch.float32, 0)
        outputs: Tensor = self.product(operand, weight, self.bias)
        return outputs


def with_qdq_layers(model: Model) -> Model:
    """`model` with layers of 8-bit codes, a copy; itself if it has none."""

    def swap(layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, QuantisedLayer) and isinstance(layer.quantiser, EightBits):
            return QdqLayer(layer, layer.quantiser)
        return None

    if not any(isinstance(module, EightBits) for module in model.modules()):
        return model
    copy = deepcopy(model)
    replace_layers(copy, swap)
    return copy


def _onnx(operator: str, operands: list[Tensor], dtype: torch.dtype, axis: int | None = None) -> Tensor:
    """A node of the graph, whose output has the shape of the first operand."""
    attributes = None if axis is None else {"axis": axis}
    shape = operands[0].shape
    return torch.onnx.ops.symbolic(operator, operands, attributes, dtype=dtype, shape=shape)  # type: ignore[arg-type]
