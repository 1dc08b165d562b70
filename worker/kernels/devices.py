"""Availability of Triton, which is not imported here."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor

HAS_TRITON = find_spec("triton") is not None


def device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the device of a tensor, of any shape and dtype, the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
