"""Facts about the samples of a job's files, from their headers or from the samples."""

from __future__ import annotations

from dataclasses import dataclass

from app.recipe.students.inputs import Input


@dataclass(frozen=True)
class ArrayFacts:
    """Header of one array of a NumPy archive; `dtype` in NumPy's notation without byte order ("u1", "f4", "i8")."""

    shape: tuple[int, ...]
    dtype: str


Archive = dict[str, ArrayFacts]
"""Arrays of one NumPy archive by name."""


@dataclass(frozen=True)
class FirstLine:
    """The first line of a file of text."""

    text: str


@dataclass(frozen=True)
class SampleFacts:
    """Facts about all samples of a file."""

    count: int
    input: Input
    bytes: int
    """Memory of one sample, without its label."""
    pixels: bool = False
    """True for images of 8 bits per channel."""
    targets: int | None = None
    """Target numbers of each sample; none: classes, or tokens."""
    classes: int | None = None
    """Number of classes, as far as the shape of the targets shows it."""


Known = Archive | FirstLine | SampleFacts
"""Facts about one file: from its header, or from all of it."""
