"""Cache of a teacher's outputs, so that later epochs, attempts and jobs need not run it.

Outputs are cached on the worker's disk, by content: jobs with the same teacher, samples, augmentation and cache
settings share them. A lossy cache (`top-k`, or 16 bits) also converts outputs that were just computed, so that the
student always gets the same values.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.recipe.base import Option

DEFAULT_BYTES = 20 << 30
"""Default disk space for the cached outputs on one machine."""

Dtype = Literal["fp32", "fp16", "bf16"]


class DenseCache(Option):
    """All outputs; lossless in fp32. Nothing is cached for a language model, whose outputs are a vocabulary's logits at
    every token; for a token classifier the logits of every token are."""

    store: Literal["dense"] = "dense"
    """Cached part of an output: all of it."""
    dtype: Dtype = "fp32"
    """Stored dtype. fp16 has 11 significant bits and refuses values above 65504; bf16 has 8 and the range of fp32."""

    @property
    def exact(self) -> bool:
        """Whether the cache is lossless."""
        return self.dtype == "fp32"


class TopKCache(Option):
    """The `k` largest logits of an output, and the mass of all others together.

    Probabilities of the kept classes are exact at temperature 1 (up to the rounding of `dtype`), and so is the sum of
    the others, which get equal parts of it. At higher temperatures the others' share is too large, because equal parts
    are the flattest distribution: use a larger `k` then.
    """

    store: Literal["top-k"] = "top-k"
    """Cached part of an output: its largest logits."""
    k: int = Field(ge=1, le=100_000)
    """Cached logits of each output; at most the number of classes."""
    dtype: Dtype = "fp32"
    """Stored dtype of the logits; see `dense`. The mass of the others is always fp32."""

    @property
    def exact(self) -> bool:
        """Whether the cache is lossless."""
        return False


class NoCache(Option):
    """No cache: the teacher runs on every batch."""

    store: Literal["off"] = "off"
    """Cached part of an output: nothing."""


TeacherCache = Annotated[DenseCache | TopKCache | NoCache, Field(discriminator="store")]
TEACHER_CACHES: tuple[type[Option], ...] = (DenseCache, TopKCache, NoCache)
Kept = DenseCache | TopKCache
"""Settings with a cache."""
