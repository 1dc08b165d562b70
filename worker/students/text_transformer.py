"""Small encoder of texts (1706.03762, with norms before the layers): token embeddings, positions, blocks that see no
padding, and the mean of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.recipe.students.architectures import TextTransformer
from app.recipe.students.inputs import Input, TextInput
from app.recipe.students.shapes import text_attention
from worker.students.heads import HEADS
from worker.students.layers.attentions import AttentionMask
from worker.students.layers.norms import TOKEN_NORMS, normalise
from worker.students.vit import INIT_STD, TransformerBlock, init_maps

BASE = 10_000.0
"""Ratio of the longest wave of positions to the shortest."""


class TextTransformerNetwork(nn.Module):
    """Classifies a text from the mean of its tokens after the last block."""

    def __init__(self, student: TextTransformer, text: TextInput, outputs: int) -> None:
        super().__init__()
        width, shape = student.width, text_attention(student, text.length)
        self.pad = text.pad
        self.embed = nn.Embedding(text.vocabulary, width)
        learned = student.positions == "learned"
        self.positions = nn.Parameter(torch.zeros(1, shape.tokens, width)) if learned else None
        self.blocks = nn.ModuleList(TransformerBlock(student, shape) for _ in range(student.depth))
        self.norm, self.head = TOKEN_NORMS.build(student.norm, width), HEADS.build(student.head, width, outputs)
        init_maps(self)
        nn.init.trunc_normal_(self.embed.weight, std=INIT_STD)
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions, std=INIT_STD)

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs (N, outputs), floating, of token ids (N, S) int64; a text of padding alone has the features 0."""
        real = tokens != self.pad
        x, mask = self.embed(tokens), AttentionMask(real)
        x = x + (sinusoids(x) if self.positions is None else self.positions[:, : x.shape[1]])
        for block in self.blocks:
            x = block(x, mask)
        weights = real.unsqueeze(-1).to(x.dtype)
        logits: Tensor = self.head((normalise(self.norm, x, real) * weights).sum(1) / weights.sum(1).clamp(min=1.0))
        return logits


def sinusoids(like: Tensor) -> Tensor:
    """Vectors (S, D) of the places of tokens (N, S, D), in their dtype, as large as fresh embeddings: sines of the
    place in the first half of the channels, cosines in the others, of wavelengths from 2 pi to 10,000 times that."""
    places, channels = (torch.arange(size, dtype=torch.float32, device=like.device) for size in like.shape[1:])
    half = (like.shape[2] + 1) // 2
    angles = places[:, None] * BASE ** (-(channels % half) / half)
    waves = torch.where(channels < half, angles.sin(), angles.cos())
    return (2**0.5 * INIT_STD * waves).to(like.dtype)


def build(student: TextTransformer, sample: Input, outputs: int) -> nn.Module:
    """A network for texts; the width is a multiple of the heads, and the attention leaves out padding (the contract
    checks both)."""
    assert isinstance(sample, TextInput)  # by the contract
    return TextTransformerNetwork(student, sample, outputs)
