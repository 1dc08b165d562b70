"""On-policy distillation of language models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from app.recipe.base import Paper, Share
from app.recipe.losses import CrossEntropy, Dkd, Loss, Nkd
from app.recipe.methods.base import FIELD
from app.recipe.methods.text_generation import TextGeneration, TopK
from app.recipe.problem import Problem

if TYPE_CHECKING:
    from app.recipe.job import JobSpec

DIVERGENCES = "a divergence such as jsd, kd or reverse-kl"


class OnPolicy(TextGeneration):
    """On-policy distillation: the student generates the batches of some steps, and is trained on the teacher's
    distribution at every token of them.

    Sampling has no gradient. Losses with the next token as label (cross-entropy, nkd, dkd) are left out of these steps,
    because a generated token is not a correct label. Generation is without dropout.
    """

    paper: ClassVar[Paper | None] = Paper(
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", "2306.13649"
    )
    applies: ClassVar[str] = (
        "Language models whose own texts differ from those of the data, so that they meet prefixes in use that "
        "training never shows."
    )
    cost: ClassVar[str] = (
        "The student generates `share` of the batches, about one forward pass of it for each new token, and the "
        "teacher runs on them without its cache."
    )
    kind: Literal["on-policy"] = "on-policy"
    share: Share = 0.5
    """Share of the steps of the main training whose batch the student generates, drawn step by step; the others use the
    data."""
    top_k: TopK | None = None
    """Number of likeliest tokens to sample from; 1: always the likeliest, none: all."""

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        yield from super().problems(job)
        losses = job.recipe.losses
        if not any(needs_no_label(term) for term in losses):
            kinds = ", ".join(sorted({term.kind for term in losses}))
            found = f"{kinds} would have the student imitate itself: {FIELD}: on-policy has it learn from its own texts"
            yield Problem("recipe.losses", found, DIVERGENCES)
        elif self.share == 1.0:
            for index, term in enumerate(losses):
                if not needs_no_label(term):
                    found = f"{term.kind} learns from the data alone, and with {FIELD}.share: 1.0 no batch does"
                    yield Problem(f"recipe.losses[{index}].kind", found, f"{DIVERGENCES}, or a smaller share")


def needs_no_label(term: Loss) -> bool:
    """Whether a term compares the student with the teacher alone, without the next token as label."""
    return not isinstance(term, CrossEntropy | Nkd | Dkd)
