"""What a loss term is built from: the shapes of what it will see, and the parts that it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from app.recipe.losses.taps import Tap
from worker.data.randomness import derive_seed
from worker.errors import UserError

Shapes = Mapping[Tap, torch.Size]


@dataclass(frozen=True)
class TeacherSide:
    """What is known of a teacher before training."""

    network: nn.Module
    shapes: Shapes
    """Of its activations, each with a batch axis."""
    same_tokens: bool = True
    """Whether it reads texts with the student's tokenizer; true where there are no texts."""
    outputs: int = 0
    """Classes, or numbers per sample."""


class LossBuilder:
    """Shapes and trainable parts for the terms of a job.

    A part has a name; terms and stages that ask for the same name share it. A fresh part depends on the job's seed and
    its own name alone.
    """

    def __init__(
        self, student: Shapes, teachers: Mapping[str, TeacherSide], outputs: int, seed: int = 0, param: str = ""
    ) -> None:
        self._student, self._teachers, self._seed = student, teachers, seed
        self.outputs = outputs
        """Classes, or numbers per sample."""
        self.param = param
        """Path of the term that is being built, for what is to be blamed on it."""
        self.aux_modules = nn.ModuleDict()
        """Every part made so far."""
        self.trained: set[str] = set()
        """Names of the parts that the terms built since the last `new_stage` train."""
        self.frozen: set[str] = set()
        """Names of the parts that they use as they are."""

    def new_stage(self) -> None:
        """Forget who uses which part."""
        self.trained, self.frozen = set(), set()

    def student(self, tap: Tap) -> torch.Size:
        """Shape of the student's activation, with a batch axis."""
        return self._student[tap]

    def teacher(self, tap: Tap, name: str | None = None) -> torch.Size:
        """Shape of a teacher's activation, with a batch axis; `name` may be left out when there is one teacher."""
        return self._side(name).shapes[tap]

    def teacher_outputs(self, name: str | None = None) -> int:
        """Numbers that a teacher answers with."""
        return self._side(name).outputs

    def same_tokens(self, name: str | None = None) -> bool:
        """Whether the student's tokens are this teacher's, one for one."""
        return self._side(name).same_tokens

    def teacher_module(self, path: str, name: str | None = None) -> nn.Module:
        """A module of a teacher's network; raises UserError (`invalid_job`) when there is none at `path`."""
        try:
            return self._side(name).network.get_submodule(path)
        except AttributeError as error:
            raise self.refuse(f"the teacher has no module {path!r}") from error

    def part(self, name: str, make: Callable[[], nn.Module], *, frozen: bool = False) -> nn.Module:
        """The part called `name`, made on first use; `frozen` when the term uses it as it is, in evaluation mode."""
        if name not in self.aux_modules:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self._seed, "part", name))
                self.aux_modules[name] = make()
        (self.frozen if frozen else self.trained).add(name)
        return self.aux_modules[name]

    def refuse(self, message: str, field: str = "") -> UserError:
        """What a term raises that can't be built; `field` is below the term's own path."""
        return UserError("invalid_job", message, f"{self.param}.{field}" if field else self.param)

    def _side(self, name: str | None) -> TeacherSide:
        if name is None and len(self._teachers) != 1:
            raise self.refuse("must name one of several teachers", "teacher")
        return self._teachers[name] if name is not None else next(iter(self._teachers.values()))
