"""Dockerfile and docker-compose.yml as data, read as Docker would read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<operator>[?-])(?P<word>[^}]*))?\}")


class Unset(Exception):
    """A variable that the compose file insists on has no value."""


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Fill in `${NAME}`, `${NAME:-default}` and `${NAME:?error}`."""

    def fill(match: re.Match[str]) -> str:
        value, operator = values.get(match["name"], ""), match["operator"]
        if not value and operator == "?":
            raise Unset(match["name"])
        return value or (match["word"] if operator == "-" else "")

    return VARIABLE.sub(fill, text)


@dataclass(frozen=True)
class Service:
    """One service of the compose file."""

    name: str
    raw: dict[str, Any]

    @property
    def command(self) -> list[str]:
        return [str(word) for word in self.raw.get("command", [])]

    def environment(self, values: Mapping[str, str]) -> dict[str, str]:
        """What the container gets; a variable that the file names without a value is passed on if it has one."""
        given = self.raw.get("environment", {})
        passed = {name: values[name] for name, value in given.items() if value is None and name in values}
        return passed | {name: interpolate(str(value), values) for name, value in given.items() if value is not None}

    @property
    def stage(self) -> Stage | None:
        """The Dockerfile's stage that it is built from; none for a foreign image."""
        build = self.raw.get("build")
        return stages()[build["target"]] if build else None

    @property
    def needs(self) -> dict[str, str]:
        """Services that it waits for, and what it waits for in each."""
        return {name: need["condition"] for name, need in self.raw.get("depends_on", {}).items()}

    @property
    def is_one_shot(self) -> bool:
        return bool(self.raw["restart"] == "no")

    @property
    def has_health_check(self) -> bool:
        return "healthcheck" in self.raw or (self.stage is not None and self.stage.health_check != [])


@dataclass
class Stage:
    """One stage of the Dockerfile; what it does not say itself, it has from its base."""

    base: Stage | None
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> Iterator[str]:
        """Arguments of every instruction of a kind, the base's first."""
        if self.base is not None:
            yield from self.base.all(name)
        yield from (arguments for instruction, arguments in self.instructions if instruction == name)

    def last(self, name: str) -> str:
        return next(reversed(list(self.all(name))), "")

    @property
    def environment(self) -> dict[str, str]:
        pairs = (word.partition("=") for line in self.all("ENV") for word in line.split())
        return {name: value for name, _, value in pairs}

    @property
    def health_check(self) -> list[str]:
        _, _, command = self.last("HEALTHCHECK").partition("CMD ")
        return words(command)

    @property
    def command(self) -> list[str]:
        return words(self.last("CMD"))

    @property
    def arguments(self) -> dict[str, str]:
        pairs = (line.partition("=") for line in self.all("ARG"))
        return {name: value for name, _, value in pairs}


def words(exec_form: str) -> list[str]:
    return [str(word) for word in json.loads(exec_form)] if exec_form else []


@cache
def compose() -> dict[str, Any]:
    """The compose file, variables not filled in."""
    document = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert isinstance(document, dict)
    return document


@cache
def services() -> dict[str, Service]:
    return {name: Service(name, raw) for name, raw in compose()["services"].items()}


@cache
def stages() -> dict[str, Stage]:
    found: dict[str, Stage] = {}
    current = Stage(None)
    for instruction, arguments in instructions((ROOT / "Dockerfile").read_text()):
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            current = found[name] = Stage(found.get(base))
        else:
            current.instructions.append((instruction, arguments))
    return found


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    lines = (line for line in dockerfile.splitlines() if line and not line.lstrip().startswith("#"))
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, arguments = line.partition(" ")
        yield name, arguments.strip()
