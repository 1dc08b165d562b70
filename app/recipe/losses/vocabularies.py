"""Terms between language models with different tokenizers."""

from __future__ import annotations

from typing import ClassVar, Literal

from app.recipe.base import Answer, Paper
from app.recipe.losses.base import LossSpec, Temperature
from app.recipe.losses.weights import Weight


class Uld(LossSpec):
    """Universal logit distillation: L1 distance between the sorted probabilities of both sides, independent of the
    meaning of their tokens.

    The only term for a teacher with another tokenizer. It applies where both sides have read the same text: a token of
    the student is compared with the teacher's last token that ends at the same character, and has no loss if there is
    none. Like all terms it is divided by all target tokens, as the paper adds its sum to that of cross-entropy. With
    one tokenizer every token is compared.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs", "2402.12030"
    )
    equation: ClassVar[str] = "sum_i |p_(i) - q_(i)|, (i) the i-th largest; the smaller vocabulary is padded with 0"
    applies: ClassVar[str] = "Language models, and teachers with any tokenizer."
    answers: ClassVar[frozenset[Answer]] = frozenset({"tokens"})
    any_tokens: ClassVar[bool] = True
    kind: Literal["uld"] = "uld"
    weight: Weight = 1.5
    """Factor of this term in the objective: a number, or a ramp over a stage. The default is the paper's, with a weight
    of 1 for cross-entropy."""
    temperature: Temperature = 1.0
    """Divides both sides' logits; the value is not multiplied by its square."""
