"""Texts of the model card for a task's models, and code that reads their outputs."""

from __future__ import annotations

import math

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Timm, opens_in_a_library
from app.recipe.students.model import ImageInput, ModelConfig, TableInput, TextInput


class TaskCard:
    """Card of a task whose models return one row of outputs for each sample; base of those of other tasks."""

    weights_program: str | None = None
    """A program that loads the folder with the task's own library; none: it depends on the architecture."""

    def __init__(self, pipeline: str | None = None, table_pipeline: str | None = None) -> None:
        """Names of the task on model hubs, for models of images and texts and for models of tables; none: hubs have no
        name for it."""
        self._pipeline, self._table_pipeline = pipeline, table_pipeline

    def pipeline_tag(self, config: ModelConfig) -> str | None:
        """Name of the task on model hubs; none: they have no name for it."""
        return self._table_pipeline if isinstance(config.input, TableInput) else self._pipeline

    def library(self, config: ModelConfig) -> str | None:
        """The library that loads the folder; none: there is none for the zoo's architectures."""
        if not opens_in_a_library(config.architecture):
            return None
        return "timm" if isinstance(config.architecture, Timm) else "transformers"

    def auto_class(self, config: ModelConfig) -> str:
        """The class of the Transformers library that loads the folder."""
        return f"AutoModelFor{'Image' if isinstance(config.input, ImageInput) else 'Sequence'}Classification"

    def output(self, config: ModelConfig) -> str:
        """Name and shape of a graph's output."""
        return f"`outputs` (N, {config.outputs})"

    def token_input(self, sample: TextInput) -> tuple[str, str]:
        """Shape and type of a graph's input of token ids."""
        return f"(N, {sample.length})", f"token ids as int64, padded with {sample.pad}"

    def reading(self, sample: TextInput) -> str:
        """Processing of the tokenizer's ids, as the continuation of a sentence."""
        ends = f" Two texts are joined by token {sample.separator}." if sample.separator is not None else ""
        padding = f"Shorter ones are padded behind with {sample.pad}, which is not attended to."
        return f"texts of more than {sample.length} ids lose their end. {padding}{ends}"

    def example_texts(self, job: JobSpec, sample: TextInput) -> tuple[str, str]:
        """Arguments of a tokenizer call, as code: the texts, and the options."""
        columns = getattr(job.data, "input_columns", None) or []
        pair = ', ["and its second part", "and its own"]' if len(columns) == 2 else ""
        options = f'padding="max_length", truncation=True, max_length={sample.length}'
        return f'["a text", "another one"]{pair}', options

    def printed(self, outputs: str, last_axis: str, label: str) -> str:
        """A line of code that prints the meaning of `outputs`, the name of an array (2, C); `last_axis` is the argument
        that names its last axis, `label` the code for the label of `number`."""
        return f"print({outputs})"


class ClassCard(TaskCard):
    """A classifier."""

    def output(self, config: ModelConfig) -> str:
        return f"`logits` (N, {config.classes})"

    def printed(self, outputs: str, last_axis: str, label: str) -> str:
        return f"print([{label} for number in {outputs}.argmax({last_axis})])"


class VectorCard(TaskCard):
    """A model of images whose outputs are compared with each other."""

    def output(self, config: ModelConfig) -> str:
        return f"`embeddings` (N, {config.targets})"


class AnomalyCard(TaskCard):
    """A model with a score of each image and of its parts."""

    def output(self, config: ModelConfig) -> str:
        side = math.isqrt(config.outputs - 1)
        return f"`outputs` (N, {config.outputs}), the score of each image, and then its map of {side} x {side} scores"

    def printed(self, outputs: str, last_axis: str, label: str) -> str:
        return f"print({outputs}[:, 0])"


class EncoderCard(TaskCard):
    """An encoder of the library sentence-transformers."""

    weights_program = """from sentence_transformers import SentenceTransformer

print(SentenceTransformer(".").encode(["a text", "another one"]))"""

    def library(self, config: ModelConfig) -> str | None:
        return "sentence-transformers"

    def output(self, config: ModelConfig) -> str:
        return f"`embeddings` (N, {config.targets})"

    def example_texts(self, job: JobSpec, sample: TextInput) -> tuple[str, str]:
        """Single texts: each text of a pair is a separate row."""
        _, options = super().example_texts(job, sample)
        return '["a text", "another one"]', options


class DecoderCard(TaskCard):
    """A language model."""

    weights_program = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")
print(tokenizer.decode(model.generate(**tokenizer("Once", return_tensors="pt"), max_new_tokens=50)[0]))"""

    def output(self, config: ModelConfig) -> str:
        return f"`logits` (N, S, {config.outputs}) of the token behind each one"

    def token_input(self, sample: TextInput) -> tuple[str, str]:
        return f"(N, S), S up to {sample.length},", "token ids as int64"

    def reading(self, sample: TextInput) -> str:
        return f"the model reads {sample.length} of them, and token {sample.pad} ends a text."

    def example_texts(self, job: JobSpec, sample: TextInput) -> tuple[str, str]:
        return '["Once"]', "truncation=True"

    def printed(self, outputs: str, last_axis: str, label: str) -> str:
        return f"print(tokenizer.decode([int({outputs}[0, -1].argmax())]))"
