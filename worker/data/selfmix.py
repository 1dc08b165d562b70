"""SelfMix (2312.17473): two crops of the same image are mixed, which does not change its class.

The caller draws all random numbers for each sample, so that a sample is mixed in the same way in any batch. The same
functions are CutMix for crops of different images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mixed(NamedTuple):
    """Images (B, C, H, W), and the share of the first crop in each (B,), floating: by area if a box was pasted."""

    images: Tensor
    share: Tensor


def draw_boxes(share: Tensor, centre: Tensor, size: torch.Size) -> Tensor:
    """Boxes (B, 4) int64 with 1 - `share` (B,) of the area, around `centre` (B, 2) in 0..1, both floating; clipped.

    A box is y1, x1, y2, x2 in pixels, the latter two exclusive; `size` is height and width.
    """
    whole = torch.tensor(size, device=share.device)
    half = (whole * (1.0 - share).clamp(min=0.0).sqrt().unsqueeze(1)).long() // 2
    middle = (whole * centre).long()
    return torch.cat([(middle - half).clamp(min=0), torch.minimum(middle + half, whole)], dim=1)


def paste(first: Tensor, second: Tensor, boxes: Tensor) -> Mixed:
    """The first crop (B, C, H, W) of any dtype with the second one's `boxes` (B, 4) int64 in it."""
    height, width = first.shape[-2:]
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    top, left, bottom, right = boxes.unsqueeze(2).unbind(1)
    inside = ((rows >= top) & (rows < bottom)).unsqueeze(2) & ((columns >= left) & (columns < right)).unsqueeze(1)
    share = 1.0 - inside.double().mean((1, 2))
    return Mixed(torch.where(inside.unsqueeze(1), second, first), share)
