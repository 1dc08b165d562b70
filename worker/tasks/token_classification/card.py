"""What a model card says of a tagger."""

from __future__ import annotations

from app.recipe.students.model import ModelConfig, TextInput
from worker.tasks.card import ClassCard


class TagCard(ClassCard):
    """A classifier of tokens."""

    def auto_class(self, config: ModelConfig) -> str:
        return "AutoModelForTokenClassification"

    def output(self, config: ModelConfig) -> str:
        return f"`logits` (N, S, {config.classes}) for each of S tokens"

    def reading(self, sample: TextInput) -> str:
        alone = sample.model_copy(update={"separator": None})  # there are no pairs
        return f"{super().reading(alone)} The tag of a word is that of its first token."

    def printed(self, outputs: str, last_axis: str, label: str) -> str:
        return f"print([[{label} for number in row] for row in {outputs}.argmax({last_axis})])"
