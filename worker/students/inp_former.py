"""INP-Former (2503.02424): reconstructs the features of a frozen encoder from prototypes of each image.

B images, L layers of the encoder in G groups, S positions of a layer, M prototypes, D the width of all of them. As in
the authors' code, attention to prototypes is ReLU(a cos(query, prototype)) with a learned a for each head, nothing is
added to its output, and the last block of the decoder reconstructs the first layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.recipe.losses.taps import Tap
from app.recipe.students.architectures import InpFormerNetwork
from app.recipe.students.model import ImageInput
from worker.errors import UserError
from worker.students.recorder import NoSuchModule, Recorder

INIT_STD, INIT_LIMIT = 0.01, 0.03
"""Standard deviation and largest magnitude of initial weights, as in the authors' code."""
FURTHER_TOKENS = 16
"""Most tokens of an encoder before those of the image's parts: a class token, and registers."""
SCORED_SHARE = 0.01
"""Share of the map, its highest values, whose mean is the score of an image, as in the authors' code."""


class CrossAttention(nn.Module, ABC):
    """Multi-head attention from queries (B, Q, D) to other tokens (B, K, D); subclasses define the weights."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, others: Tensor) -> Tensor:
        """Floating (B, Q, D) and (B, K, D) to (B, Q, D)."""
        query, (key, value) = self.query(queries), self.key_value(others).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        attended = self.weigh(query, key) @ value
        mixed: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return mixed

    @abstractmethod
    def weigh(self, query: Tensor, key: Tensor) -> Tensor:
        """Weights (B, heads, Q, K) of floating queries (B, heads, Q, D / heads) and keys (B, heads, K, D / heads)."""


class SoftmaxCrossAttention(CrossAttention):
    """softmax(q k^T / sqrt(D / heads))."""

    def weigh(self, query: Tensor, key: Tensor) -> Tensor:
        """See `CrossAttention.weigh`."""
        scores: Tensor = query @ key.mT * query.shape[-1] ** -0.5
        return scores.softmax(-1)


class CosineCrossAttention(CrossAttention):
    """ReLU(a cos(q, k)), a learned for each head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))

    def weigh(self, query: Tensor, key: Tensor) -> Tensor:
        """See `CrossAttention.weigh`."""
        return F.relu(F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT * self.scale)


class PrototypeBlock(nn.Module):
    """Attention and feed-forward layers behind one norm each, the latter beside an identity; `extracts` prototypes from
    tokens, which adds the queries to what is attended to, or decodes from prototypes, which does not."""

    def __init__(self, width: int, hidden: int, heads: int, *, extracts: bool) -> None:
        super().__init__()
        self.extracts = extracts
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention: CrossAttention = (SoftmaxCrossAttention if extracts else CosineCrossAttention)(width, heads)
        self.feed_forward = _feed_forward(width, hidden)

    def forward(self, queries: Tensor, others: Tensor) -> Tensor:
        """Floating (B, Q, D) and (B, K, D) to (B, Q, D)."""
        attended = self.attention(self.norm1(queries), self.norm1(others))
        x = queries + attended if self.extracts else attended
        out: Tensor = x + self.feed_forward(self.norm2(x))
        return out


class Grid(NamedTuple):
    """Arrangement of an encoder's features."""

    height: int
    width: int
    """Positions from top to bottom, and from left to right."""
    further: int
    """Tokens before those of the positions."""
    features: int
    """Numbers of a position."""


class InpFormerModule(nn.Module):
    """From normalised images (B, C, H, W) to the score of each, and its map row by row (B, 1 + map_size^2), both means
    of 1 - cos between features of the encoder and their reconstructions: at least 0, and at most 2.

    `encoder` is frozen, and always in evaluation mode. `tokens`, `prototypes`, `encoded` and `decoded` return what they
    are given, so that losses find it there (see `app.recipe.losses.reconstruction`).
    """

    def __init__(self, student: InpFormerNetwork, encoder: nn.Module, image: ImageInput) -> None:
        """Raises UserError (`invalid_job`) for layers that the encoder does not have, or that do not fit together."""
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.groups, self.map_size = [len(group) for group in student.layers], student.map_size
        self._recorder = _open(encoder, student)
        self.grid = self._measured(student, image)
        width, hidden = self.grid.features, student.hidden(self.grid.features)
        self.queries = nn.Embedding(student.prototypes, width)
        self.extractor = PrototypeBlock(width, hidden, student.heads, extracts=True)
        self.bottleneck = _feed_forward(width, hidden)
        blocks = (PrototypeBlock(width, hidden, student.heads, extracts=False) for _ in student.paths)
        self.decoder = nn.ModuleList(blocks)
        self.tokens, self.prototypes, self.encoded, self.decoded = (nn.Identity() for _ in range(4))
        for part in (self.extractor, self.bottleneck, self.decoder):
            part.apply(_init)

    def train(self, mode: bool = True) -> Self:
        """As of any module; the encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        features = self._features(images)
        tokens = self.tokens(features.mean(1))
        queries = self.queries(torch.arange(self.queries.num_embeddings, device=tokens.device))
        prototypes = self.prototypes(self.extractor(queries.expand(tokens.shape[0], -1, -1), tokens))
        encoded = self.encoded(self._grouped(features))
        decoded = self.decoded(self._grouped(self._decoded_layers(self.bottleneck(tokens), prototypes)))
        distances = 1.0 - F.cosine_similarity(encoded.float(), decoded.float(), dim=-1)
        return self._with_score(distances.mean(1))

    def _features(self, images: Tensor) -> Tensor:
        """Features (B, L, S, D) of the encoder, without gradient."""
        self.encoder(images)
        return torch.stack([self._positions(feature) for feature in self._recorder.take().values()], 1).detach()

    def _positions(self, feature: Tensor) -> Tensor:
        """(B, S, D) of a map (B, D, height, width), or of tokens (B, further + S, D)."""
        return feature.flatten(2).mT if feature.ndim == 4 else feature[:, self.grid.further :]

    def _decoded_layers(self, x: Tensor, prototypes: Tensor) -> Tensor:
        """Reconstructions (B, L, S, D) of all layers, from the bottleneck's output (B, S, D)."""
        found = []
        for block in self.decoder:
            x = block(x, prototypes)
            found.append(x)
        return torch.stack(found[::-1], 1)

    def _grouped(self, layers: Tensor) -> Tensor:
        """The mean of each group of layers: (B, L, S, D) to (B, G, S, D)."""
        return torch.stack([group.mean(1) for group in torch.split(layers, self.groups, dim=1)], 1)

    def _with_score(self, distances: Tensor) -> Tensor:
        """Score and map (B, 1 + map_size^2) of distances (B, S)."""
        maps = distances.view(-1, 1, self.grid.height, self.grid.width)
        values = F.interpolate(maps, (self.map_size, self.map_size), mode="bilinear", align_corners=False).flatten(1)
        highest = values.topk(max(1, int(SCORED_SHARE * self.map_size**2)), dim=1).values
        return torch.cat([highest.mean(1, keepdim=True), values], 1)

    def _measured(self, student: InpFormerNetwork, image: ImageInput) -> Grid:
        """The arrangement of the layers, from a dry run."""
        like = next(self.encoder.parameters())
        with torch.no_grad():
            self.encoder(torch.zeros(1, image.channels, image.height, image.width, device=like.device))
        try:
            shapes = {tap.path: feature.shape[1:] for tap, feature in self._recorder.take().items()}
        except NoSuchModule as error:
            raise _refusal(str(error), "layers") from error
        return _grid_of(shapes, image, student)


def _open(encoder: nn.Module, student: InpFormerNetwork) -> Recorder:
    try:
        return Recorder(encoder, [Tap(path=path) for path in student.paths])
    except NoSuchModule as error:
        raise _refusal(f"the encoder: {error}", "layers") from error


def _grid_of(shapes: dict[str, torch.Size], image: ImageInput, student: InpFormerNetwork) -> Grid:
    """The arrangement of features of these shapes, without the batch axis; raises UserError if they do not fit."""
    first, *others = shapes.values()
    if any(shape != first for shape in others):
        listed = ", ".join(f"{path}: {' x '.join(map(str, shape))}" for path, shape in shapes.items())
        raise _refusal(f"the features have different shapes ({listed}); accepted: layers of one shape", "layers")
    grid = Grid(first[1], first[2], 0, first[0]) if len(first) == 3 else _token_grid(first, image)
    if grid is None:
        found = f"features of the shape {' x '.join(map(str, first))} are no maps, and no tokens of the image's parts"
        raise _refusal(f"{found}; accepted: such layers", "layers")
    if grid.features % student.heads:
        found = f"{student.heads} does not divide the width {grid.features} of the features"
        raise _refusal(f"{found}; accepted: a divisor of it", "heads")
    if max(grid.height, grid.width) > student.map_size:
        found = f"is {student.map_size}, and the features have {grid.height} x {grid.width} positions"
        raise _refusal(f"{found}; accepted: at least as many", "map_size")
    return grid


def _token_grid(shape: torch.Size, image: ImageInput) -> Grid | None:
    """The arrangement of tokens (T, D), of which the last are those of equal squares of an image; none: they are not.
    Of several possible squares the smallest are assumed."""
    if len(shape) != 2:
        return None
    for side in range(1, min(image.height, image.width) + 1):
        height, width = image.height // side, image.width // side
        further = shape[0] - height * width
        if image.height % side == image.width % side == 0 and 0 <= further <= FURTHER_TOKENS:
            return Grid(height, width, further, shape[1])
    return None


def _feed_forward(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD, a=-INIT_LIMIT, b=INIT_LIMIT)
        nn.init.zeros_(module.bias)


def _refusal(message: str, field: str) -> UserError:
    return UserError("invalid_job", f"student.{field}: {message}", f"student.{field}")


def build(student: InpFormerNetwork, encoder: nn.Module, image: ImageInput) -> nn.Module:
    """A network whose own weights are fresh, around an `encoder` of images of this size; raises UserError
    (`invalid_job`) for layers that do not fit."""
    return InpFormerModule(student, encoder, image)
