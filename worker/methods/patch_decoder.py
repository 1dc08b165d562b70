"""Decoders of masked images: from the tokens of visible patches to values of all patches.

N images of P patches, of which V are visible; D and W are the channels of the student's and of the decoders' tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.recipe.students.architectures import Vit
from app.recipe.students.inputs import ImageInput
from app.recipe.students.shapes import vit_attention
from worker.students.layers.norms import TOKEN_NORMS
from worker.students.vit import INIT_STD, TransformerBlock, VitNetwork


class DecoderTokens(nn.Module):
    """Inputs of the decoders: the student's vector in place of the class, tokens of visible patches, and one learned
    token at each masked patch."""

    def __init__(self, width: int, encoded: int, outputs: int, patches: int) -> None:
        """`encoded` and `outputs` are the channels of the student's tokens and the size of its vector."""
        super().__init__()
        self.vector, self.patch = nn.Linear(outputs, width), nn.Linear(encoded, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, patches + 1, width))
        init_weights(self)
        for parameter in (self.mask_token, self.positions):
            nn.init.trunc_normal_(parameter, std=INIT_STD)

    def forward(self, vectors: Tensor, encoded: Tensor, visible: Tensor) -> Tensor:
        """Tokens (N, 1 + P, W) from vectors (N, outputs) and tokens (N, V, D) of the patches `visible` (N, V) int64, in
        their dtype."""
        seen = self.patch(encoded)
        patches = self.mask_token.to(seen.dtype).expand(len(seen), self.positions.shape[1] - 1, -1)
        patches = patches.scatter(1, visible.unsqueeze(-1).expand_as(seen), seen)
        return torch.cat([self.vector(vectors).unsqueeze(1), patches], dim=1) + self.positions


class DecoderBranch(nn.Module):
    """Transformer blocks and a linear layer, for values of each patch."""

    def __init__(self, blocks: Vit, image: ImageInput, values: int) -> None:
        super().__init__()
        shape = vit_attention(blocks, image)
        self.blocks = nn.Sequential(*(TransformerBlock(blocks, shape) for _ in range(blocks.depth)))
        self.norm, self.last = TOKEN_NORMS.build(blocks.norm, blocks.width), nn.Linear(blocks.width, values)
        init_weights(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Values (N, P, values) from tokens (N, 1 + P, W), floating."""
        values: Tensor = self.last(self.norm(self.blocks(tokens)))
        return values[:, 1:]


class LossPredictor(nn.Module):
    """Predicts how hard each patch is to reconstruct, from the visible ones."""

    def __init__(self, network: VitNetwork, tokens: DecoderTokens, predictor: DecoderBranch) -> None:
        super().__init__()
        self.network, self.tokens, self.predictor = network, tokens, predictor

    def decoder_inputs(self, images: Tensor, visible: Tensor) -> Tensor:
        """Tokens (N, 1 + P, W) from images (N, C, H, W), as the network is given them, and `visible` (N, V) int64."""
        encoded = self.network.encode(images, visible)
        inputs: Tensor = self.tokens(self.network.head(encoded[:, 0]), encoded[:, 1:], visible)
        return inputs

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        """Predicted losses (N, P), floating; inputs as of `decoder_inputs`."""
        return self.predict(self.decoder_inputs(images, visible))

    def predict(self, tokens: Tensor) -> Tensor:
        """Predicted losses (N, P) from `decoder_inputs`."""
        losses: Tensor = self.predictor(tokens).squeeze(-1)
        return losses


def init_weights(module: nn.Module) -> None:
    """Initialise the linear layers within `module` as those of the student."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)
