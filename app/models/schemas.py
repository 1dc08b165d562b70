"""Requests and responses of models."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from app.core.clock import Time
from app.core.views import View
from app.models.tables import ModelRow
from app.recipe.base import Reference, Spec
from app.recipe.job import Name
from app.recipe.students.hugging_face import is_model_file
from app.recipe.students.model import ModelConfig
from app.recipe.teachers.key_map import CheckpointKey, Conversion, KeyMap
from app.recipe.teachers.key_maps import AnyKeyMap

MAX_FILES = 1000


def _of_a_model(name: str) -> str:
    if not is_model_file(name):
        raise ValueError("is not a file of a model in the Hugging Face layout")
    return name


ModelFileName = Annotated[str, Field(max_length=64), AfterValidator(_of_a_model)]


def _not_of_the_library(given: Any) -> Any:
    """Reject a `config.json` of the Transformers library with one error instead of one per key."""
    if isinstance(given, dict) and "model_type" in given and "architecture" not in given:
        raise ValueError(
            "is a config.json of the Transformers library, which belongs to a whole folder: save the model with"
            " save_pretrained and register config.json and model.safetensors as `files`; or describe the network here,"
            " with architecture, input, preprocessing and classes"
        )
    return given


class ModelRequest(Spec):
    """An uploaded model, for use as a teacher: a file of weights, or a folder in the Hugging Face layout."""

    file: Reference | None = None
    """Id of the uploaded file with the weights: safetensors, or a file written by torch.save (`.pt`, `.pth`, `.bin`),
    which a worker converts in a sandbox when a job first needs it."""
    files: Annotated[dict[ModelFileName, Reference], Field(min_length=1, max_length=MAX_FILES)] | None = None
    """Ids of uploaded files by their name in the folder: `config.json`, `model.safetensors` or its shards and their
    index, and the files of preprocessor and tokenizer; for sentence-transformers `modules.json` and its files."""
    config: Annotated[ModelConfig | None, BeforeValidator(_not_of_the_library)] = None
    """Description of the network; optional for a folder in the Hugging Face layout."""
    checkpoint_key: CheckpointKey | None = None
    """Key of the weights in a file written by torch.save, such as `state_dict`; none: the file is the state_dict."""
    key_map: AnyKeyMap | None = None
    """Map from the names of the file's tensors to those of the architecture, or the name of a built-in map
    (`torchvision-resnet`); none: the names are equal."""
    name: Name | None = None
    """Name of the model; names may repeat."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.file is None) == (self.files is None):
            raise ValueError("must have either file or files")
        if self.file is not None and self.config is None:
            raise ValueError("must have a config, which describes the weights in file")
        if self.files is not None and (self.key_map or self.checkpoint_key):
            raise ValueError("must have no key_map and no checkpoint_key with files, whose names are not mapped")
        return self

    @property
    def references(self) -> dict[str, str]:
        """Ids of uploaded files by the field that holds each."""
        return {f"files.{name}": file for name, file in (self.files or {}).items()} | (
            {"file": self.file} if self.file else {}
        )

    @property
    def conversion(self) -> Conversion:
        """Instructions for the worker that converts the file."""
        return Conversion(checkpoint_key=self.checkpoint_key, key_map=self.key_map or KeyMap())


class ExtractRequest(Spec):
    """A sub-network of a searched student."""

    row: int = Field(ge=0, le=1_000_000)
    """Its number in `search.json`, from 0."""
    name: Name | None = None
    """Name of the new model; default: that of the searched one with the row."""


class ModelFileView(View):
    """A file of a model's bundle."""

    name: str
    """Name of the file, with folders."""
    size: int
    """Size in bytes."""
    sha256: str
    """SHA-256 of the content in hexadecimal."""
    media_type: str
    """Media type of the file."""


class ModelView(View):
    """A teacher or a student. Immutable."""

    id: str
    """Id of the model."""
    object: Literal["model"] = "model"
    name: str | None
    """Name of the model."""
    job_id: str | None
    """The job that trained it; none for an uploaded one."""
    file_id: str | None
    """The uploaded file of its weights; none for a job's."""
    teacher_id: str | None
    """The model that it was distilled from, or extracted from."""
    format: Literal["safetensors", "torch"]
    """Format of its weights; a file written by torch.save is converted by the worker that needs it."""
    config: ModelConfig | None
    """None for a folder in the Hugging Face layout without one: workers read the folder's own."""
    parameters: int | None
    """Trained weights; none for a file written by torch.save, which only the converting worker can count."""
    files: list[ModelFileView]
    """The files of its bundle, by name."""
    created_at: Time
    """When it was registered or published."""

    @classmethod
    def of(cls, row: ModelRow) -> ModelView:
        return cls(**_columns(cls, row))


class ModelDetailView(ModelView):
    """A model with its evaluation and the models distilled from it."""

    report: dict[str, Any] | None
    """The job's evaluation of the exported files; none for an uploaded model."""
    children: list[str]
    """Ids of the newest models distilled from it, at most a hundred."""

    @classmethod
    def with_children(cls, row: ModelRow, children: list[str]) -> ModelDetailView:
        return cls(**_columns(cls, row), children=children)


def _columns(view: type[ModelView], row: ModelRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in view.model_fields if name in row.__table__.columns}
    torch = any(file["name"] == "weights.pt" for file in row.files)
    config = ModelConfig.model_validate(row.config) if row.config else None
    derived = {"format": "torch" if torch else "safetensors", "config": config, "parameters": row.parameters or None}
    return values | derived


class ModulesView(View):
    """Module paths of a model's network, which losses can name."""

    object: Literal["model.modules"] = "model.modules"
    model_id: str
    """Id of the model."""
    source: Literal["architecture", "tensors", "none"]
    """Source of the paths: `architecture`: the description of a network of the zoo, with all its modules; `tensors`:
    the names of its weights, so that modules without weights (activations, pooling, dropout) are not listed, and a
    library that wraps the network may use other names; `none`: a worker has not converted the weights yet."""
    complete: bool
    """True if the network has no other module."""
    paths: list[str]
    """Module paths, in the order of the network."""
