"""Shapes of one sample, by the kind of a model's input."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag

from app.recipe.base import InputKind, Spec

MAX_SIDE, MAX_CHANNELS = 4096, 1024
MAX_COLUMNS, MAX_LENGTH = 4096, 8192
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class SampleShape(Spec):
    """Base of the shapes."""

    kind: ClassVar[InputKind]
    key: ClassVar[str]
    """Name of samples in a batch, and of the input of exported graphs."""

    @property
    def axes(self) -> tuple[int, ...]:
        """Sizes of the axes of one sample."""
        raise NotImplementedError

    @property
    def size(self) -> str:
        """The shape for a message."""
        raise NotImplementedError

    @property
    def statistics(self) -> int:
        """Number of means, and of deviations, for normalising raw values; 0 for token ids."""
        return 0

    def accepts(self, given: SampleShape) -> bool:
        """Whether a model of this shape can read samples of the shape `given`."""
        return self == given


class ImageInput(SampleShape):
    """Shape of one input image."""

    kind: ClassVar[InputKind] = "images"
    key: ClassVar[str] = "images"
    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
    """Colour channels: 1 of grey images, 3 of RGB."""
    height: Side
    """Pixels from top to bottom."""
    width: Side
    """Pixels from left to right."""

    @property
    def axes(self) -> tuple[int, ...]:
        return self.channels, self.height, self.width

    @property
    def size(self) -> str:
        return f"{self.channels} x {self.height} x {self.width}"

    @property
    def statistics(self) -> int:
        return self.channels

    def accepts(self, given: SampleShape) -> bool:
        return isinstance(given, ImageInput) and self.channels == given.channels  # images are resized


class TableInput(SampleShape):
    """A row of numbers."""

    kind: ClassVar[InputKind] = "table"
    key: ClassVar[str] = "table"
    columns: Annotated[int, Field(ge=1, le=MAX_COLUMNS)]
    """Numbers in a row."""

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.columns,)

    @property
    def size(self) -> str:
        return f"{self.columns} columns"

    @property
    def statistics(self) -> int:
        return self.columns


class TextInput(SampleShape):
    """Token ids, padded to one length; the tokenizer's files are beside the weights."""

    kind: ClassVar[InputKind] = "texts"
    key: ClassVar[str] = "tokens"
    length: Annotated[int, Field(ge=1, le=MAX_LENGTH)]
    """Tokens of one sample, with padding."""
    vocabulary: Annotated[int, Field(ge=1, le=10_000_000)]
    """Number of token ids."""
    pad: Annotated[int, Field(ge=0)] = 0
    """Id of the padding token, which is masked; for a decoder, of the token that ends a text."""
    separator: Annotated[int, Field(ge=0)] | None = None
    """Id of the token that ends each part of a text, if the tokenizer has one: the second part follows the first such
    token."""

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def size(self) -> str:
        return f"{self.length} tokens"

    def accepts(self, given: SampleShape) -> bool:
        return isinstance(given, TextInput)  # each model tokenizes texts by its tokenizer


def _kind_of_input(value: Any) -> str:
    """Kind by the keys, which all differ; a value that is no object is refused as an image."""
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
