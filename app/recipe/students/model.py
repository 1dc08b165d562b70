"""Description of a stored model: architecture, inputs and outputs.

It is stored beside the weights as `config.json`. A model of the Transformers library has that library's `config.json`
there, so that the library can load it; then this description is `stillhouse.json`, which is read first.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from app.recipe.base import Positive, Spec
from app.recipe.students.architectures import DualEncoder, Network, Transformers, opens_in_a_library
from app.recipe.students.inputs import MAX_COLUMNS as MAX_COLUMNS
from app.recipe.students.inputs import MAX_LENGTH as MAX_LENGTH  # these are imported from here by the training side
from app.recipe.students.inputs import MAX_SIDE as MAX_SIDE
from app.recipe.students.inputs import ImageInput as ImageInput
from app.recipe.students.inputs import Input as Input
from app.recipe.students.inputs import TableInput as TableInput
from app.recipe.students.inputs import TextInput as TextInput
from app.recipe.students.pooling import Embedding
from app.recipe.tasks import TaskName, task_of, tasks_with
from app.recipe.tasks.base import TaskSpec

MAX_CLASSES = 100_000
MAX_TARGETS = 65_536
TargetName = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
DESCRIPTIONS = ("stillhouse.json", "config.json")
"""Names of a description, in the order in which they are searched."""


class Preprocessing(Spec):
    """Normalisation of raw values for the network: (value * scale - mean) / std, per channel or column."""

    scale: Positive = 1.0
    """Multiplies raw values; 1/255 for uint8 images."""
    mean: list[FiniteFloat] = Field(min_length=1, max_length=MAX_COLUMNS)
    """One value per channel or column, in scaled units."""
    std: list[Positive] = Field(min_length=1, max_length=MAX_COLUMNS)
    """One value per channel or column, in scaled units."""
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", exclude_if=lambda value: value == "bilinear")
    """Interpolation of images of another size, with antialiasing."""
    crop: float | None = Field(None, gt=0.0, le=1.0, exclude_if=lambda value: value is None)
    """Share of the sides that is kept: an image of another size is resampled in proportion to cover the network's size
    divided by this, and its centre is cropped. None: the whole image is resized to that size."""


class TargetScaling(Spec):
    """Maps a network's outputs to the units of the data: output * std + mean."""

    mean: list[FiniteFloat] = Field(min_length=1, max_length=MAX_TARGETS, fail_fast=True)
    """One value per target, in the units of the data."""
    std: list[Positive] = Field(min_length=1, max_length=MAX_TARGETS, fail_fast=True)
    """One value per target, in the units of the data."""


class ModelConfig(Spec):
    """Description of a model's weights."""

    task: TaskName = "image-classification"
    """Task of the model."""
    architecture: Network
    """The network of the weights."""
    input: Input
    """Shape of one sample."""
    preprocessing: Preprocessing | None = None
    """Preprocessing; none for texts, which have a tokenizer."""
    classes: int | None = Field(None, ge=2, le=MAX_CLASSES)
    """Number of logits of a classifier."""
    class_names: Annotated[list[str], Field(max_length=MAX_CLASSES, fail_fast=True)] | None = None
    """Names of the classes, in the order of the logits."""
    targets: int | None = Field(None, ge=1, le=MAX_TARGETS)
    """Outputs of a regression; for K keypoints 2 K, x before y. Dimensions of an encoder's embeddings."""
    target_names: Annotated[list[TargetName], Field(max_length=MAX_TARGETS, fail_fast=True)] | None = None
    """Names of these outputs, in their order: the columns of the training targets; none: there were no names."""
    target_scaling: TargetScaling | None = None
    """Scaling of a regression's outputs to the units of the data; none: they have these units."""
    embedding: Embedding | None = None
    """The vector of an embedding model; set for the tasks `embedding`, `image-embedding` and `self-supervised`, and no
    other. Its width is `targets`."""
    task_assumed: bool = Field(False, exclude_if=lambda value: not value)
    """True if no file of the model says what its head was trained for (`problem_type` of the Transformers library), so
    that `task` is what the library assumes."""

    @model_validator(mode="after")
    def _answers_its_task(self) -> Self:
        needed = self.task_spec.sized_by
        if needed is None:
            self._require_decoder()
            return self
        other = "targets" if needed == "classes" else "classes"
        if getattr(self, needed) is None or getattr(self, other) is not None:
            raise ValueError(f"a model for {self.task} has {needed} and no {other}")
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError("class_names must have one name per class")
        if self.target_names is not None and len(self.target_names) != self.targets:
            raise ValueError("target_names must have one name per target")
        if self.preprocessing is None and self.input.statistics:
            raise ValueError("preprocessing is missing")
        if (self.embedding is not None) != ("embedding" in self.task_spec.options):
            raise ValueError(f"embedding must be there for the task {tasks_with('embedding')}, and for no other")
        return self

    @model_validator(mode="after")
    def _encodes_texts(self) -> Self:
        network = self.architecture
        encoder = isinstance(network, Transformers) and network.reads == "texts" and not network.decodes
        if self.pooling is not None and not (encoder and self.input.kind == "texts"):
            raise ValueError("an encoder is a network of the Transformers library that reads texts, and no decoder")
        if self.pooling is not None and isinstance(network, Transformers) and network.replace:
            raise ValueError("an encoder of texts has no replaced layers")
        if self.embedding is not None and self.embedding.dimensions is not None:
            raise ValueError("the width of an embedding is targets, and dimensions is left out")
        return self

    @model_validator(mode="after")
    def _encodes_labels(self) -> Self:
        network = self.architecture
        if isinstance(network, DualEncoder):
            if not self.task_spec.fits(DualEncoder) or self.input.kind != "texts":
                raise ValueError("a dual-encoder reads texts, and its outputs are labels")
            if not isinstance(network.encoder, Transformers) or network.pooling is None or network.label_texts:
                raise ValueError("a stored dual-encoder has an encoder of transformers, pooling, and no label_texts")
            if network.labels_per_step is not None:
                raise ValueError("a stored dual-encoder has no labels_per_step, which is for its training")
        return self

    def _require_decoder(self) -> None:
        decoder = isinstance(self.architecture, Transformers) and self.architecture.decodes
        if not (decoder and self.input.kind == "texts"):
            raise ValueError(f"a model for {self.task} is a decoder of the Transformers library, and reads texts")
        answers = (self.classes, self.class_names, self.targets, self.target_scaling, self.embedding)
        if any(given is not None for given in (*answers, self.preprocessing)):
            raise ValueError(f"a model for {self.task} has neither classes nor targets, and no preprocessing")

    def taken_for(self, task: TaskName) -> ModelConfig:
        """The same as a model for `task`, where its own is assumed and its outputs may as well be those; else as it
        is."""
        wanted, own = task_of(task), self.task_spec
        as_well = wanted.problem_type is not None and wanted.sized_by == own.sized_by
        if self.task_assumed and as_well and self.input.kind in wanted.reads:
            return self.model_copy(update={"task": task})
        return self

    @property
    def task_spec(self) -> TaskSpec:
        """Its task."""
        return task_of(self.task)

    @property
    def outputs(self) -> int:
        """Number of outputs: for a sample, or for a decoder at every token."""
        if self.task_spec.sized_by is None and isinstance(self.input, TextInput):
            return self.input.vocabulary
        return self.classes or self.targets or 0

    @property
    def pooling(self) -> Embedding | None:
        """Pooling of an encoder to one vector of a text; none: it is no encoder of texts."""
        return self.embedding if self.task_spec.pools_tokens else None

    @property
    def predicts_tokens(self) -> bool:
        """Whether the network predicts the next token at every position."""
        return self.task_spec.answers == "tokens"

    @property
    def has_head(self) -> bool:
        """Whether the network ends in a layer for this task's outputs, which is initialised again for other outputs."""
        return self.task_spec.answers != "tokens" and not self.task_spec.pools_tokens

    @property
    def gives_logits(self) -> bool:
        """Whether its outputs are logits, of classes, labels or tokens."""
        return self.task_spec.gives_logits

    @property
    def file_name(self) -> str:
        """Name of the file with this description."""
        return DESCRIPTIONS[0] if opens_in_a_library(self.architecture) else DESCRIPTIONS[1]
