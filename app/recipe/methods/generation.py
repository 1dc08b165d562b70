"""What a language model learns from besides the texts of the data: texts that it writes itself, or that its teacher
does."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, Paper, Share, TaskOption
from app.recipe.teachers.teacher import TeacherName

Tokens = Annotated[int, Field(ge=1, le=4096)]
TopK = Annotated[int, Field(ge=1, le=100_000)]


class Writing(TaskOption):
    """What both kinds have: how much is written, and how."""

    answers: ClassVar[frozenset[Answer]] = frozenset({"tokens"})
    prompt_tokens: Tokens = 16
    """First tokens of a packed sequence that are written on. Of chats it is all that precedes an answer."""
    new_tokens: Tokens = 48
    """Most tokens that are written; fewer where the text or the answer ends before. With the prompt at most
    `data.max_length`; chats whose prompts leave no room for them are not written on."""
    temperature: float = Field(1.0, gt=0.0, le=100.0)
    """Divides the logits that a token is drawn by."""


class OnPolicy(Writing):
    """On-policy distillation: for some steps the student itself has just written the batch, and at every token of it
    the teacher says what would have been right.

    No gradient goes through the drawing. Losses that take the next token for the right one (cross-entropy, nkd, dkd)
    are left out of these steps: what the student writes is not what it should. The student writes without dropout.
    """

    paper: ClassVar[Paper | None] = Paper(
        "On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes", "2306.13649"
    )
    kind: Literal["on-policy"] = "on-policy"
    share: Share = 0.5
    """Share of the steps of the main training whose batch the student writes, drawn step by step; the others learn from
    the data."""
    top_k: TopK | None = None
    """So many likeliest tokens are drawn from; 1: the likeliest is always taken, none: all are drawn from."""


class SequenceLevel(Writing):
    """Sequence-level distillation: a teacher writes texts before training begins, and the student learns from them as
    it would from those of the data.

    Every prompt of the data is written on once. The paper takes the likeliest of several beams; here it is the
    likeliest token each time, or with another `top_k` a sample.
    """

    paper: ClassVar[Paper | None] = Paper("Sequence-Level Knowledge Distillation", "1606.07947")
    kind: Literal["sequence-level"] = "sequence-level"
    share: Share = 1.0
    """Share of the steps of the main training whose batch comes from what the teacher wrote, drawn step by step; the
    others learn from the data."""
    top_k: TopK | None = 1
    """So many likeliest tokens are drawn from; 1: the likeliest is always taken, none: all are drawn from."""
    writer: TeacherName | None = None
    """Name of the teacher that writes; none: the only one."""


Generation = Annotated[OnPolicy | SequenceLevel, Field(discriminator="kind")]
GENERATIONS: tuple[type[Writing], ...] = (OnPolicy, SequenceLevel)
