"""Inputs for building loss terms: shapes of activations, and the modules that the terms train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from app.recipe.losses.taps import Tap
from worker.data.randomness import derive_seed
from worker.errors import UserError

Shapes = Mapping[Tap, torch.Size]


@dataclass(frozen=True)
class TeacherSide:
    """Facts about a teacher before training."""

    network: nn.Module
    shapes: Shapes
    """Shapes of its activations, each with a batch axis."""
    same_tokens: bool = True
    """Whether it uses the student's tokenizer; true where there are no texts."""
    outputs: int = 0
    """Outputs per sample: classes, values or dimensions."""


class LossBuilder:
    """Shapes and trainable modules for the terms of a job.

    A module has a name; terms and stages that use the same name share it. A new module is initialised from the job's
    seed and its name alone.
    """

    def __init__(
        self,
        student: Shapes,
        teachers: Mapping[str, TeacherSide],
        outputs: int,
        seed: int = 0,
        param: str = "",
        student_head: nn.Linear | None = None,
        codes: Tensor | None = None,
        everywhere: Callable[[Tensor], Tensor] = torch.clone,
        samples: int = 0,
        classes: int = 0,
    ) -> None:
        self._student, self._teachers = student, teachers
        self.seed = seed
        """Seed of the job."""
        self.samples = samples
        """Number of training samples."""
        self.everywhere = everywhere
        """Sum of a tensor, of any shape and dtype and without gradient, over the processes that share a batch, in new
        memory."""
        self.outputs = outputs
        """Outputs per sample: classes, values or dimensions."""
        self.student_head = student_head
        """The student's last linear layer; none: it has none, or it is unknown."""
        self.codes = codes
        """Code (C,) int64 of each class, if the student's outputs are logits of codes (B, K) that classes share; none:
        they are for classes."""
        self.classes = classes
        """Classes of the training samples, numbered from 0; 0: their labels are no classes."""
        self.param = param
        """Path of the term that is being built, for its errors."""
        self.aux_modules = nn.ModuleDict()
        """All modules made so far, by name."""
        self.trained: set[str] = set()
        """Names of the modules that are trained by the terms built since the last `new_stage`."""
        self.frozen: set[str] = set()
        """Names of the modules that these terms use without training them."""

    def new_stage(self) -> None:
        """Clear `trained` and `frozen`."""
        self.trained, self.frozen = set(), set()

    def student(self, tap: Tap) -> torch.Size:
        """Shape of the student's activation, with a batch axis."""
        return self._student[tap]

    def teacher(self, tap: Tap, name: str | None = None) -> torch.Size:
        """Shape of a teacher's activation, with a batch axis; `name` may be left out when there is one teacher."""
        return self._side(name).shapes[tap]

    def teacher_outputs(self, name: str | None = None) -> int:
        """Number of a teacher's outputs per sample."""
        return self._side(name).outputs

    def same_tokens(self, name: str | None = None) -> bool:
        """Whether student and teacher have the same tokens, one for one."""
        return self._side(name).same_tokens

    def teacher_module(self, path: str, name: str | None = None) -> nn.Module:
        """A module of a teacher's network; raises UserError (`invalid_job`) when there is none at `path`."""
        try:
            return self._side(name).network.get_submodule(path)
        except AttributeError as error:
            raise self.refuse(f"the teacher has no module {path!r}") from error

    def part(self, name: str, make: Callable[[], nn.Module], *, frozen: bool = False) -> nn.Module:
        """The module called `name`, made on first use; `frozen`: the term does not train it, and it runs in evaluation
        mode."""
        if name not in self.aux_modules:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed(self.seed, "part", name))
                self.aux_modules[name] = make()
        (self.frozen if frozen else self.trained).add(name)
        return self.aux_modules[name]

    def refuse(self, message: str, field: str = "") -> UserError:
        """The error for a term that can't be built; `field` is relative to the term's path."""
        return UserError("invalid_job", message, f"{self.param}.{field}" if field else self.param)

    def _side(self, name: str | None) -> TeacherSide:
        if name is None and len(self._teachers) != 1:
            raise self.refuse("must name one of several teachers", "teacher")
        return self._teachers[name] if name is not None else next(iter(self._teachers.values()))
