"""SelfMix (2312.17473): two crops of the same image become one, so that its class stays what it is.

All is decided by numbers that the caller draws for each sample, so that a sample is mixed alike in any batch. The same
functions make CutMix and mixup out of crops of different images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mixed(NamedTuple):
    """Images (B, C, H, W), and the share of the first crop in each (B,), by its area where a box was put into it."""

    images: Tensor
    share: Tensor


def self_mix(first: Tensor, second: Tensor, share: Tensor, centre: Tensor | None = None) -> Mixed:
    """Mix crops (B, C, H, W) of the same images, uint8 or floating, by the `share` (B,) in 0..1 of the first one.

    With a `centre` (B, 2) in 0..1, y before x, a box around it is the second crop's; without, both are blended.
    """
    if centre is None:
        return blend(first, second, share)
    return paste(first, second, draw_boxes(share, centre, first.shape[-2:]))


def draw_boxes(share: Tensor, centre: Tensor, size: torch.Size) -> Tensor:
    """Boxes (B, 4) int64 with 1 - `share` (B,) of the area, around `centre` (B, 2) in 0..1, clipped.

    A box is y1, x1, y2, x2 in pixels, the latter two exclusive; `size` is height and width.
    """
    whole = torch.tensor(size, device=share.device)
    half = (whole * (1.0 - share).clamp(min=0.0).sqrt().unsqueeze(1)).long() // 2
    middle = (whole * centre).long()
    return torch.cat([(middle - half).clamp(min=0), torch.minimum(middle + half, whole)], dim=1)


def paste(first: Tensor, second: Tensor, boxes: Tensor) -> Mixed:
    """The first crop with the second one's `boxes` (B, 4) in it."""
    height, width = first.shape[-2:]
    rows, columns = torch.arange(height, device=boxes.device), torch.arange(width, device=boxes.device)
    top, left, bottom, right = boxes.unsqueeze(2).unbind(1)
    inside = ((rows >= top) & (rows < bottom)).unsqueeze(2) & ((columns >= left) & (columns < right)).unsqueeze(1)
    share = 1.0 - inside.double().mean((1, 2))
    return Mixed(torch.where(inside.unsqueeze(1), second, first), share)


def blend(first: Tensor, second: Tensor, share: Tensor) -> Mixed:
    """`share` (B,) of the first crop and the rest of the second, pixel by pixel; integers are rounded."""
    dtype = first.dtype if first.is_floating_point() else torch.float32
    part = _per_pixel(share).to(dtype)
    images = part * first.to(dtype) + (1.0 - part) * second.to(dtype)
    return Mixed(images if first.is_floating_point() else images.round().to(first.dtype), share)


def mix_labels(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Soft labels (B, C) of mixed images, from those of their crops, for teachers that saw the crops by themselves."""
    part = share.unsqueeze(1).to(first.dtype)
    return part * first + (1.0 - part) * second


def _per_pixel(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)
