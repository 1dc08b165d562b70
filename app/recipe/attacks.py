"""Attacks on classifiers of images: changes of pixels, within a bound, that raise the loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from app.recipe.base import Positive, Spec
from app.recipe.problem import Problem


class AttackSpec(Spec):
    """Fields of projected gradient descent (PGD) on the pixels of an image, bounded in the L-infinity norm."""

    bound: float = Field(8 / 255, gt=0.0, le=1.0)
    """Largest change of a pixel, as a share of the pixels' range."""
    step_size: Positive = 2 / 255
    """Change of a pixel in one step, as a share of the pixels' range; at most twice the bound."""
    steps: int = Field(10, ge=1, le=1000)
    """Gradient steps of an attack."""
    random_start: Literal["normal", "uniform", "none"] = "normal"
    """Where an attack begins: at the image with normal noise of standard deviation 0.001 of the pixels' range, anywhere
    within the bound (`uniform`), or at the image itself."""

    def attack_problems(self, path: str) -> Iterator[Problem]:
        """Steps that overshoot the bound from wherever they begin; `path` is where the job describes the attack."""
        if self.step_size > 2 * self.bound:
            found = f"is {self.step_size:g}, and a step above twice {path}.bound ends at the bound wherever it begins"
            yield Problem(f"{path}.step_size", found, f"above 0, at most {2 * self.bound:g}")
