"""Base of the diagnostics: kinds of output that they analyse, and rules about the samples that they need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from app.recipe.attacks import AttackSpec
from app.recipe.base import InputKind, TaskOption
from app.recipe.problem import Problem


class DiagnosticSpec(TaskOption):
    """An analysis of the exported student beyond the metrics of its task."""

    applies: ClassVar[str] = ""
    """Its tasks, as text."""
    fits: ClassVar[bool] = False
    """True if it fits parameters to held-out samples: half of them, drawn by the job's seed, are used for the fit, and
    the figures are measured on the other half."""
    needs_teacher: ClassVar[bool] = False
    """True when it compares the student with a teacher."""

    def judged(self, left: int) -> int:
        """Number of samples for its figures, out of the `left` held-out samples that are not used for fitting."""
        return left

    def trained(self, count: int) -> int:
        """Number of training samples that it needs, out of `count`, drawn by the job's seed."""
        return 0

    @property
    def files(self) -> dict[str, str]:
        """Files of samples to read, by the name of the field that names each."""
        return {}

    def input_problems(self, path: str, reads: tuple[InputKind, ...]) -> Iterator[Problem]:
        """Problems with samples of these kinds; `path` is the path of its field."""
        yield from ()

    def problems(self, path: str, judged: int) -> Iterator[Problem]:
        """Problems of the number of samples that its figures are measured on; `path` is the path of its field."""
        yield from ()


class MeasuredAttack(AttackSpec):
    """Fields of the attacks by which a diagnostic measures: FGSM, a step of the whole `bound`, and PGD."""

    steps: int = Field(20, ge=1, le=1000)
    """Gradient steps of PGD."""
    random_start: Literal["normal", "uniform", "none"] = "uniform"
    """Where PGD begins: at the image with normal noise of standard deviation 0.001 of the pixels' range, anywhere
    within the bound (`uniform`), or at the image itself."""
