"""Facts about the samples of a job's files, as far as their headers or the samples themselves show them."""

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
    """Memory that one sample takes, its label not counted."""
    pixels: bool = False
    """True for images of 8 bits a channel."""
    targets: int | None = None
    """Numbers to learn for each sample; none: classes, or tokens."""
    classes: int | None = None
    """How many classes the targets are about, as far as their shape shows it."""


Known = Archive | FirstLine | SampleFacts
"""Facts about one file: as much as its header shows, or everything."""
