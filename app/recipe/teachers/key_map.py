"""Maps names of another program's weights to this project's: renames as data, so that a client can send them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, model_validator

from app.recipe.base import Spec

Text = Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
Prefix = Annotated[Text, Field(min_length=1)]
_SLOT = re.compile(r"\{([a-z])([+-][0-9]{1,3})?\}")
_DIGITS = "([0-9]{1,6}+)"
"""Matches all digits without backtracking, so that matching takes one pass for any input."""


def _only_slots(template: str) -> str:
    if "{" in (rest := _SLOT.sub("", template)) or "}" in rest:
        raise ValueError("has braces that hold no letter from a to z, such as {i}")
    return template


Template = Annotated[Text, AfterValidator(_only_slots)]


class Rename(Spec):
    """Replaces the beginning of a name: `layer{i}.{j}.bn` by `stages.{i-1}.{j}.norm`, or `fc.` by `head.`."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_alias=True, validate_by_name=True)

    old: Annotated[Template, Field(min_length=1)] = Field(alias="from")
    """Prefix of the names to rename; `{i}` matches a number."""
    new: Template = Field(alias="to")
    """Replacement; `{i}`, `{i+1}` and `{i-1}` are the matched number, and its neighbours."""

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        given = [letter for letter, _ in _SLOT.findall(self.old)]
        if any(offset for _, offset in _SLOT.findall(self.old)) or len(set(given)) != len(given):
            raise ValueError("from must name each of its numbers once, and plainly: {i}, not {i+1}")
        if "}{" in self.old:
            raise ValueError("from must have something between two numbers")
        if unknown := {letter for letter, _ in _SLOT.findall(self.new)} - set(given):
            raise ValueError(f"to uses {{{min(unknown)}}}, which from does not have")
        return self

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        literals = re.split(_SLOT.pattern.replace("(", "(?:"), self.old)
        return re.compile(_DIGITS.join(map(re.escape, literals)))

    def apply(self, name: str) -> str | None:
        """The new name; none if `name` does not match. Raises `ValueError` if a number would become negative."""
        found = self._pattern.match(name)
        if found is None:
            return None
        letters = (letter for letter, _ in _SLOT.findall(self.old))
        numbers = dict(zip(letters, map(int, found.groups()), strict=True))
        return _filled(self.new, numbers, name) + name[found.end() :]


def _filled(template: str, numbers: dict[str, int], name: str) -> str:
    def number(slot: re.Match[str]) -> str:
        value = numbers[slot[1]] + int(slot[2] or 0)
        if value < 0:
            raise ValueError(f"{slot[0]} is negative for {name!r}")
        return str(value)

    return _SLOT.sub(number, template)


class KeyMap(Spec):
    """Maps the names of a checkpoint's tensors to those of the network, in the order of the fields."""

    strip: list[Prefix] = Field(default=[], max_length=16)
    """Prefixes that are removed from every name with them, one after the other: `module.`."""
    drop: list[Prefix] = Field(default=[], max_length=256)
    """Prefixes of the names that are left out."""
    rename: list[Rename] = Field(default=[], max_length=1024)
    """Renames; for each name the first that matches is applied, and other names are unchanged."""

    def name(self, name: str) -> str | None:
        """The name of one tensor in the network; none if it is left out. Raises `ValueError`."""
        for prefix in self.strip:
            name = name.removeprefix(prefix)
        if name.startswith(tuple(self.drop)):
            return None
        renamed = (rename.apply(name) for rename in self.rename)
        return next((new for new in renamed if new is not None), name)

    def apply(self, names: Iterable[str]) -> dict[str, str]:
        """New name to old name. Raises `ValueError` if two names become the same."""
        found: dict[str, str] = {}
        for old in names:
            new = self.name(old)
            if new is None:
                continue
            if new in found:
                raise ValueError(f"{found[new]!r} and {old!r} both become {new!r}")
            found[new] = old
        return found


CheckpointKey = Annotated[Text, Field(min_length=1)]


class Conversion(Spec):
    """Conversion of a torch.save file to a model: the tensors to use, and their names in the network."""

    checkpoint_key: CheckpointKey | None = None
    """Key of the weights in the file's dictionary (`state_dict`, `model_ema`); none: the file is that dictionary."""
    key_map: KeyMap = KeyMap()
    """Maps the names in the file to those of the architecture."""
