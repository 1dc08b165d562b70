"""Teachers, and sources of models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import AfterValidator, StringConstraints, model_validator

from app.recipe.base import Positive, Reference, Spec
from app.recipe.data.classes import ClassOrder

TeacherName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
TEACHER = "teacher"
"""Name of a teacher that is given none."""
Weighting = Literal["fixed", "entropy"]
Arithmetic = Literal["fp32", "bf16", "fp8"]
HubName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}$")
]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Source = Literal["model", "hub", "uri"]


def _plain_path(uri: str) -> str:
    scheme, _, path = uri.partition("://")
    steps = path.removeprefix("/" if scheme == "file" else "").removesuffix("/").split("/")
    if any(step in ("", ".", "..") for step in steps):
        raise ValueError("must be a plain path, without empty steps, . and ..")
    return uri.removesuffix("/")


Uri = Annotated[
    str,
    StringConstraints(max_length=512, pattern=r"^(s3|gs|az|file)://[A-Za-z0-9._/=+-]+$"),
    AfterValidator(_plain_path),
]


class Origin(Spec):
    """Source of a model: this service, a hub, or an object store."""

    model: Reference | None = None
    """A model of this service (`model_…`), uploaded or trained by an earlier job."""
    hub: HubName | None = None
    """A model of the Hugging Face hub (`owner/name`), with its `revision`; its weights must be safetensors."""
    revision: Revision | None = None
    """Commit of the hub's model, 40 hexadecimal digits; a branch or a tag could change."""
    uri: Uri | None = None
    """Folder in an object store (`s3://bucket/prefix`) with a model in the Hugging Face layout or in this service's;
    it must be below a prefix that the service is configured to accept, and not change while a job uses it."""
    class_order: ClassOrder | None = None
    """Names of a classifier's classes in the order of its outputs, as in the data; none: the names stored with it, or
    if it has none those of `data.class_order`."""

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> Self:
        given = [field for field in ("model", "hub", "uri") if getattr(self, field) is not None]
        if len(given) != 1:
            raise ValueError("must have exactly one of model, hub and uri")
        if (self.hub is None) != (self.revision is None):
            raise ValueError("must have hub and revision together: the revision is the commit of the hub's model")
        return self

    @property
    def source(self) -> Source:
        """The field of its source."""
        return "model" if self.model is not None else "hub" if self.hub is not None else "uri"

    @property
    def reference(self) -> str:
        """Its key in a job's inputs."""
        return self.model or self.uri or f"{self.hub}@{self.revision}"


class Teacher(Origin):
    """A teacher: a model of this service, of a hub, or in an object store."""

    name: TeacherName = TEACHER
    """Its name in losses; several teachers must have different names."""
    weight: Positive = 1.0
    """Its weight in the losses with all teachers, relative to the other teachers' weights."""
    precision: Arithmetic | None = None
    """Its arithmetic, weights included; none: fp32 weights in the recipe's `precision`. `bf16` takes half of the
    memory; `fp8` rounds weights and inputs of linear layers to 8 bits (e4m3, a scale for each row), if both dimensions
    are multiples of 16, and uses bf16 for all else. The report has the resulting differences."""

    @property
    def lowered(self) -> bool:
        """Whether its weights have fewer bits than its files."""
        return self.precision in ("bf16", "fp8")


class TeacherShare(NamedTuple):
    """A teacher as an objective knows it."""

    name: str
    """What a loss calls it."""
    weight: float = 1.0
    """Its share in the losses that learn from all teachers, relative to the other teachers' weights."""


@dataclass(frozen=True)
class Outside:
    """Sources of models outside of the service."""

    hub: bool = False
    prefixes: tuple[str, ...] = ()
    """Prefixes of URIs, up to the end of a path segment."""

    def wrong(self, origin: Origin) -> Iterator[tuple[str, str, str]]:
        """The field of an origin that this service does not accept, the problem, and what is accepted."""
        if origin.hub is not None and not self.hub:
            yield "hub", "this service fetches no models from a hub", "model, with the id of an uploaded model"
        if origin.uri is not None and not any(_lies_below(origin.uri, prefix) for prefix in self.prefixes):
            known = " or ".join(self.prefixes)
            yield "uri", "lies below no prefix that is accepted", f"one below {known}" if known else "model or hub"


def _lies_below(uri: str, prefix: str) -> bool:
    return f"{uri}/".startswith(f"{prefix.removesuffix('/')}/")
