"""Small vision transformer (2010.11929): patch embedding, class token, learned positions, pre-norm blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.students.architectures import TextTransformer, Vit
from app.recipe.students.layers import AttentionShape
from app.recipe.students.model import ImageInput
from app.recipe.students.shapes import feed_forward_width, vit_attention
from worker.students.heads import HEADS
from worker.students.layers.activations import ACTIVATIONS
from worker.students.layers.attentions import ATTENTIONS, NO_MASK, AttentionMask
from worker.students.layers.norms import TOKEN_NORMS, add_and_normalise, normalise

INIT_STD = 0.02


class TransformerBlock(nn.Module):
    """Attention and feed-forward layer, each after a norm and beside an identity."""

    def __init__(self, student: Vit | TextTransformer, shape: AttentionShape) -> None:
        super().__init__()
        width, hidden = student.width, feed_forward_width(student)
        self.norm1 = TOKEN_NORMS.build(student.norm, width)
        self.attention = ATTENTIONS.build(student.attention, shape)
        if shape.width != width:  # the tokens are of another width than the queries of all heads together
            projections = student.attention.projections
            self.attention.add_module(projections, nn.Linear(width, len(projections) * shape.width))
            self.attention.out = nn.Linear(shape.width, width)
        self.norm2 = TOKEN_NORMS.build(student.norm, width)
        activation = ACTIVATIONS.build(student.activation)
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), activation, nn.Linear(hidden, width))

    def forward(self, x: Tensor, mask: AttentionMask = NO_MASK) -> Tensor:
        """Floating (N, S, D) to the same shape."""
        attended = self.attention(normalise(self.norm1, x, mask.tokens), mask)
        x, normal = add_and_normalise(self.norm2, x, attended, mask.tokens)
        out: Tensor = x + self.feed_forward(normal)
        return out


class VitNetwork(nn.Module):
    """Classifies from the class token after the last block."""

    def __init__(self, student: Vit, image: ImageInput, classes: int) -> None:
        super().__init__()
        width, patch = student.width, student.patch_size
        shape = vit_attention(student, image)
        self.embed = nn.Conv2d(image.channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, shape.tokens, width))
        self.blocks = nn.Sequential(*(TransformerBlock(student, shape) for _ in range(student.depth)))
        self.norm, self.head = TOKEN_NORMS.build(student.norm, width), HEADS.build(student.head, width, classes)
        self._init()

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(self._embedded(x))
        logits: Tensor = self.head(self.norm(out[:, 0]))
        return logits

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return self.positions.shape[1] - 1

    @property
    def side(self) -> int:
        """Side of a patch, in pixels."""
        return self.embed.kernel_size[0]

    def encode(self, x: Tensor, visible: Tensor) -> Tensor:
        """Normalised tokens (N, 1 + V, D), floating, of the class and of the patches `visible` (N, V) int64 of images
        (N, C, H, W), which attend to no others. Patches are numbered row by row."""
        kept = F.pad(visible + 1, (1, 0)).unsqueeze(-1)
        tokens = self._embedded(x)
        encoded: Tensor = self.norm(self.blocks(tokens.gather(1, kept.expand(-1, -1, tokens.shape[-1]))))
        return encoded

    def _embedded(self, x: Tensor) -> Tensor:
        """Inputs (N, 1 + P, D) of the first block: the class token, and all patches."""
        patches = self.embed(x).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], dim=1) + self.positions

    def _init(self) -> None:
        init_maps(self)
        nn.init.trunc_normal_(self.class_token, std=INIT_STD)
        nn.init.trunc_normal_(self.positions, std=INIT_STD)


def init_maps(network: nn.Module) -> None:
    """Initialise all linear maps and convolutions, in place."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build(student: Vit, image: ImageInput, classes: int) -> nn.Module:
    """A network for images whose sides are multiples of the patch; the width is a multiple of the heads (the contract
    checks both)."""
    return VitNetwork(student, image, classes)
