"""SelfMix (2312.17473): two crops of the same image become one, so that its class stays what it is.

The paper's details are not published; here a crop is pasted or blended into another by a share that is uniform in 0..1.
All is decided by numbers that the caller draws for each sample, so that a batch may be cut anywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DRAWS = 4
"""Numbers in 0..1 that `self_mix` takes for each sample."""


class Mixed(NamedTuple):
    """Images (B, C, H, W), and the share of the first crop in each (B,), by its area where it was pasted into."""

    images: Tensor
    share: Tensor


def self_mix(first: Tensor, second: Tensor, uniform: Tensor, paste_share: float = 0.5) -> Mixed:
    """Mix crops (B, C, H, W) of the same images, uint8 or floating; `uniform` (B, DRAWS) in 0..1 decides how.

    Its columns: a box of the second crop is pasted where the first one is below `paste_share`, else both are blended;
    the share of the first crop before the box is clipped; the box's centre, y before x.
    """
    kind, share, *centre = uniform.unbind(1)
    boxes = draw_boxes(share, torch.stack(centre, 1), first.shape[-2:])
    pasted, blended = paste(first, second, boxes), blend(first, second, share)
    chosen = kind < paste_share
    return Mixed(torch.where(_per_pixel(chosen), pasted.images, blended.images), pasted.share.where(chosen, share))


def draw_boxes(share: Tensor, centre: Tensor, size: torch.Size) -> Tensor:
    """Boxes (B, 4) int64 of a share of the area of 1 - `share` (B,), around `centre` (B, 2) in 0..1, clipped.

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
