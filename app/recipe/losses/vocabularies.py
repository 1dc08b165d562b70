"""Terms between language models that read with different tokenizers."""

from __future__ import annotations

from typing import ClassVar, Literal

from app.recipe.base import Answer, Paper
from app.recipe.losses.base import LossSpec, Temperature
from app.recipe.losses.weights import Weight


class Uld(LossSpec):
    """Universal logit distillation: how far apart the sorted probabilities of both sides are, whatever their tokens
    stand for.

    The only term that a teacher with another tokenizer can teach by. It counts where both sides have read the same
    text: a token of the student is held against the teacher's last token that ends at the same character, and costs
    nothing where there is none. Like all terms it is divided by all tokens that count, as the paper's sum stands beside
    that of cross-entropy. With one tokenizer every token counts.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs", "2402.12030"
    )
    equation: ClassVar[str] = "sum_i |p_(i) - q_(i)|, (i) the i-th largest; the smaller vocabulary is filled up with 0"
    applies: ClassVar[str] = "Language models, and teachers with any tokenizer."
    answers: ClassVar[frozenset[Answer]] = frozenset({"tokens"})
    any_tokens: ClassVar[bool] = True
    kind: Literal["uld"] = "uld"
    weight: Weight = 1.5
    """Factor of this term in the objective: a number, or a ramp over a stage. The paper's, beside cross-entropy with a
    weight of 1."""
    temperature: Temperature = 1.0
    """Divides both sides' logits; the value is not multiplied by its square."""
