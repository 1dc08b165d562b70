"""Last layers of language models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import OneOf, Option, Paper
from app.recipe.losses import CrossEntropy, Kd, Loss
from app.recipe.losses.taps import Taps
from app.recipe.problem import Problem


class FullLogits(Option):
    """The library's own layer, with a row of weights for every token."""

    kind: Literal["linear"] = "linear"


class VqLogits(Option):
    """VQ-Logits: a codebook, whose K logits the tokens of the vocabulary share.

    The teacher's output embeddings are clustered by k-means before training; the cluster of a token stays its code, and
    the codebook starts as the centres if the teacher is as wide as the student. Cross-entropy and `kd` are computed
    over the codes, without the logits of the vocabulary. Tokens of one code have equal probabilities, so that the
    divergence from the teacher can't fall below a bound, which is in the report (`codebook.least_kl`). The stored model
    has a row for every token, so that the Transformers library loads it, and the codes; the ONNX graph has the
    codebook.
    """

    paper: ClassVar[Paper | None] = Paper(
        "VQ-Logits: Compressing the Output Bottleneck of Large Language Models via Vector Quantized Logits",
        "2505.10202",
    )
    kind: Literal["vq-logits"] = "vq-logits"
    codes: int = Field(4096, ge=2, le=1 << 20)
    """Size K of the codebook; less than the tokens of the vocabulary."""

    def loss_problems(self, term: Loss, path: str) -> Iterator[Problem]:
        """Problems of a loss, found at `path`, on the outputs of this layer."""
        if isinstance(term, CrossEntropy) and term.label_smoothing:
            yield Problem(f"{path}.label_smoothing", "is not 0, and codes stand for different numbers of tokens", "0")
        elif isinstance(term, Kd) and term.standardize:
            yield Problem(f"{path}.standardize", "is true, and needs the logits of all tokens", "false")
        elif not isinstance(term, CrossEntropy | Kd) and term.taps() == Taps():
            found = f"is {term.kind}, which needs the logits of all tokens, and student.head is {self.kind}"
            yield Problem(f"{path}.kind", found, "cross-entropy, kd, or a loss on features")


TOKEN_HEADS: tuple[type[Option], ...] = (FullLogits, VqLogits)
"""All kinds for language models."""
TokenHead = Annotated[FullLogits | VqLogits, OneOf(TOKEN_HEADS)]
