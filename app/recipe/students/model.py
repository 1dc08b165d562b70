"""What a stored model says of itself: enough to build it, feed it and read its answer.

It lies beside the weights as `config.json`. A model of the Transformers library has that library's own `config.json`
there, so that the library can open it; ours is `stillhouse.json` then. Whoever reads takes `stillhouse.json` first.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from app.recipe.base import Positive, Spec
from app.recipe.students.architectures import Network, Timm, Transformers
from app.recipe.tasks.embedding import Embedding
from app.recipe.tasks.task import CAUSAL_LM, CLASSIFICATION, EMBEDDING, Task

MAX_SIDE, MAX_CHANNELS = 4096, 1024
MAX_COLUMNS, MAX_LENGTH = 4096, 8192
MAX_CLASSES = 100_000
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
MAX_TARGETS = 65_536
TargetName = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


DESCRIPTIONS = ("stillhouse.json", "config.json")
"""Names that a description may have, in the order in which to look for them."""


class ImageInput(Spec):
    """Shape of one input image."""

    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
    """Colour channels: 1 of grey images, 3 of RGB."""
    height: Side
    """Pixels from top to bottom."""
    width: Side
    """Pixels from left to right."""


class TableInput(Spec):
    """A row of numbers."""

    columns: Annotated[int, Field(ge=1, le=MAX_COLUMNS)]
    """Numbers in a row."""


class TextInput(Spec):
    """Token ids, padded to one length; the tokenizer's files lie beside the weights."""

    length: Annotated[int, Field(ge=1, le=MAX_LENGTH)]
    """Tokens of one sample, with padding."""
    vocabulary: Annotated[int, Field(ge=1, le=10_000_000)]
    """Number of token ids."""
    pad: Annotated[int, Field(ge=0)] = 0
    """Id of the padding, which the network does not attend to; of a decoder, of the token that ends a text."""
    separator: Annotated[int, Field(ge=0)] | None = None
    """Id of the token that ends each part of a text, where the tokenizer has one: what lies after the first is the
    second part."""


def _kind_of_input(value: Any) -> str:
    """Told by the keys, which are all different; what is no object is refused as an image would be."""
    if isinstance(value, Spec):
        return type(value).__name__
    keys = value if isinstance(value, dict) else ()
    return "TableInput" if "columns" in keys else "TextInput" if "vocabulary" in keys else "ImageInput"


Input = Annotated[
    Annotated[ImageInput, Tag("ImageInput")]
    | Annotated[TableInput, Tag("TableInput")]
    | Annotated[TextInput, Tag("TextInput")],
    Discriminator(_kind_of_input),
]


class Preprocessing(Spec):
    """Maps raw numbers to what the network was trained on: (value * scale - mean) / std, per channel or column."""

    scale: Positive = 1.0
    """Multiplies raw values; 1/255 for uint8 images."""
    mean: list[FiniteFloat] = Field(min_length=1, max_length=MAX_COLUMNS)
    """One value per channel or column, in scaled units."""
    std: list[Positive] = Field(min_length=1, max_length=MAX_COLUMNS)
    """One value per channel or column, in scaled units."""
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", exclude_if=lambda value: value == "bilinear")
    """How images of another size are resampled, with antialiasing."""
    crop: float | None = Field(None, gt=0.0, le=1.0, exclude_if=lambda value: value is None)
    """Share of the sides that is looked at: an image of another size is resampled, its sides in proportion, until it
    covers the network's size divided by this, and its middle is cut out. None: all of it is brought to that size."""


class TargetScaling(Spec):
    """Maps a network's outputs to the units of the data: output * std + mean."""

    mean: list[FiniteFloat] = Field(min_length=1, max_length=MAX_TARGETS, fail_fast=True)
    """One value per target, in the units of the data."""
    std: list[Positive] = Field(min_length=1, max_length=MAX_TARGETS, fail_fast=True)
    """One value per target, in the units of the data."""


class ModelConfig(Spec):
    """Description of a model's weights."""

    task: Task = "image-classification"
    """What the model does."""
    architecture: Network
    """The network that the weights are of."""
    input: Input
    """Shape of one sample."""
    preprocessing: Preprocessing | None = None
    """None for texts, whose tokenizer does it."""
    classes: int | None = Field(None, ge=2, le=MAX_CLASSES)
    """Number of logits of a classifier."""
    class_names: Annotated[list[str], Field(max_length=MAX_CLASSES, fail_fast=True)] | None = None
    """Names of the classes, in the order of the logits."""
    targets: int | None = Field(None, ge=1, le=MAX_TARGETS)
    """Numbers that a regression answers with; for K keypoints 2 K, x before y. Width of an encoder's vectors."""
    target_names: Annotated[list[TargetName], Field(max_length=MAX_TARGETS, fail_fast=True)] | None = None
    """Names of these numbers, in the order of the outputs: the columns that they were learned from; none: they had
    none."""
    target_scaling: TargetScaling | None = None
    """How a regression's outputs become the units of the data; none: they are that already."""
    embedding: Embedding | None = None
    """How an encoder makes one vector of a text; there for the task `embedding`, and for no other."""

    @model_validator(mode="after")
    def _answers_its_task(self) -> Self:
        if self.task == CAUSAL_LM:
            self._require_decoder()
            return self
        needed, other = ("classes", "targets") if self.task in CLASSIFICATION else ("targets", "classes")
        if getattr(self, needed) is None or getattr(self, other) is not None:
            raise ValueError(f"a model for {self.task} has {needed} and no {other}")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError("class_names must have one name per class")
        if self.target_names is not None and len(self.target_names) != self.targets:
            raise ValueError("target_names must have one name per target")
        if self.preprocessing is None and not isinstance(self.input, TextInput):
            raise ValueError("preprocessing is missing")
        if (self.embedding is not None) != (self.task == EMBEDDING):
            raise ValueError("embedding must be there for the task embedding, and for no other")
        return self

    @model_validator(mode="after")
    def _encodes_texts(self) -> Self:
        network = self.architecture
        encoder = isinstance(network, Transformers) and network.reads == "texts" and not network.decodes
        if self.embedding is not None and not (encoder and isinstance(self.input, TextInput)):
            raise ValueError("an encoder is a network of the Transformers library that reads texts, and no decoder")
        return self

    def _require_decoder(self) -> None:
        decoder = isinstance(self.architecture, Transformers) and self.architecture.decodes
        if not (decoder and isinstance(self.input, TextInput)):
            raise ValueError("a model for causal-lm is a decoder of the Transformers library, and reads texts")
        answers = (self.classes, self.class_names, self.targets, self.target_scaling, self.embedding)
        if any(given is not None for given in (*answers, self.preprocessing)):
            raise ValueError("a model for causal-lm has neither classes nor targets, and no preprocessing")

    @property
    def outputs(self) -> int:
        """Numbers that the network answers with: once for a sample, or a decoder at every token."""
        if self.task == CAUSAL_LM and isinstance(self.input, TextInput):
            return self.input.vocabulary
        return self.classes or self.targets or 0

    @property
    def predicts_tokens(self) -> bool:
        """Whether the network predicts the next token at every position, of as many as the vocabulary has."""
        return self.task == CAUSAL_LM

    @property
    def has_head(self) -> bool:
        """Whether the network ends in a layer for this task's outputs alone, which begins anew for other outputs."""
        return self.task not in (CAUSAL_LM, EMBEDDING)

    @property
    def chooses(self) -> bool:
        """Whether its numbers are logits, of classes or of tokens."""
        return self.task in (*CLASSIFICATION, CAUSAL_LM)

    @property
    def file_name(self) -> str:
        """Name of the file that holds this description."""
        return DESCRIPTIONS[0] if isinstance(self.architecture, Transformers | Timm) else DESCRIPTIONS[1]
