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
    """On-policy distillation: for some steps the student itself has just generated the batch, and at every token of it
    it learns from the teacher's distribution.

    No gradient goes through the drawing. Losses that take the next token for the right one (cross-entropy, nkd, dkd)
    are left out of these steps: what the student generates is not what it should. It generates without dropout.
    """

    paper: ClassVar[Paper | None] = Paper(
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", "2306.13649"
    )
    kind: Literal["on-policy"] = "on-policy"
    share: Share = 0.5
    """Share of the steps of the main training whose batch the student generates, drawn step by step; the others learn
    from the data."""
    top_k: TopK | None = None
    """So many likeliest tokens are drawn from; 1: the likeliest is always taken, none: all are drawn from."""

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
    """Whether a term compares the student with the teacher alone, whatever the next token is."""
    return not isinstance(term, CrossEntropy | Nkd | Dkd)
