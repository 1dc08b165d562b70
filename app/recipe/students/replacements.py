"""Layers of a library's network that a job has built as another kind."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints

from app.recipe.base import OneOf, Option, Spec
from app.recipe.problem import Problem
from app.recipe.students.layers import ATTENTIONS, NORMS, SINGLE_TOKEN_NORMS, AttentionSpec, NormSpec

PathPattern = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
LAYERS: tuple[type[Option], ...] = (
    *SINGLE_TOKEN_NORMS,
    *(kind for kind in ATTENTIONS if kind.projections == "qkv" and not kind.needs_grid),
)
"""Kinds that can take the place of a layer: norms of one token, and attention between queries, keys and values."""


def _tag(kind: type[Option]) -> str:
    return str(kind.model_fields["kind"].default)


def _refuse_others(given: Any) -> Any:
    """Refuses existing kinds that are no replacements, with the reason."""
    kind = given.get("kind") if isinstance(given, dict) else None
    known = {_tag(each): each for each in (*NORMS, *ATTENTIONS) if each not in LAYERS}
    if (found := known.get(str(kind))) is None:
        return given
    accepted = ", ".join(map(_tag, LAYERS))
    raise ValueError(f"{kind} {_reason(found)}; accepted: {accepted}")


def _reason(kind: type[Option]) -> str:
    if issubclass(kind, NormSpec) and "tokens" not in kind.of:
        return "is for networks of images, not of tokens"
    if issubclass(kind, NormSpec):
        return "has statistics of whole batches, from which a library's network does not leave out padding"
    return "needs the places of patches, or other maps than those to queries, keys and values"


class Replacement(Spec):
    """Layers by the pattern of their module paths, and the kind that they are built as."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_alias=True, validate_by_name=True)

    match: PathPattern
    """Pattern of module paths: `*` stands for any text, `?` for one character, `[01]` for one of several; so
    `*.LayerNorm` matches all layers of that name. It has to match layers of the family of `with`, and nothing else."""
    layer: Annotated[NormSpec | AttentionSpec, OneOf(LAYERS), BeforeValidator(_refuse_others)] = Field(alias="with")
    """The layer that takes their place. A norm starts with the stored weights of the same names and shapes; others are
    initialised, and the job's events name them. Attention keeps the maps to queries, keys and values, and has no
    dropout of its weights."""

    def matches(self, path: str) -> bool:
        """Whether a module of this path is replaced."""
        return fnmatchcase(path, self.match)


Replacements = Annotated[list[Replacement], Field(max_length=16)]


def no_replacements() -> Any:
    """A field that is only serialised if it is not empty, for older workers and stored models."""
    return Field([], exclude_if=lambda value: not value)


def mask_problems(replacements: Replacements, *, reads_texts: bool, decodes: bool) -> Iterator[Problem]:
    """Problems of attention that can't apply the masks of a network."""
    mask = "causal" if decodes else "padding"
    for index, replacement in enumerate(replacements if reads_texts else []):
        layer = replacement.layer
        if isinstance(layer, AttentionSpec) and mask not in layer.masks:
            path, reason = f"student.replace[{index}].with.kind", f"is {layer.kind}, which has no {mask} mask"
            fitting = [_tag(kind) for kind in LAYERS if issubclass(kind, AttentionSpec) and mask in kind.masks]
            yield Problem(path, reason, ", ".join(fitting))
