"""Learning-rate schedules."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.recipe.base import Fraction, Option, Paper, Share


class ScheduleOption(Option):
    """Base of the schedules: a linear warm-up from 0."""

    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the rate rises linearly to its peak."""
    warmup_ratio: Fraction | None = None
    """Warm-up as a share of the steps of the stage, rounded; none: `warmup_steps` is used."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps and self.warmup_ratio is not None:
            raise ValueError("must have warmup_steps or warmup_ratio, not both")
        return self

    def warmup(self, steps: int) -> int:
        """Optimizer steps of the warm-up in a stage of `steps` steps."""
        return self.warmup_steps if self.warmup_ratio is None else round(self.warmup_ratio * steps)


class Constant(ScheduleOption):
    """The peak rate throughout."""

    kind: Literal["constant"] = "constant"


class Cosine(ScheduleOption):
    """Half a cosine from the peak rate to the final one."""

    paper: ClassVar[Paper | None] = Paper("SGDR: Stochastic Gradient Descent with Warm Restarts", "1608.03983")
    kind: Literal["cosine"] = "cosine"
    final_ratio: Share = 0.0
    """Final rate as a share of the peak."""


class Linear(ScheduleOption):
    """A straight line from the peak rate to the final one."""

    kind: Literal["linear"] = "linear"
    final_ratio: Share = 0.0
    """Final rate as a share of the peak."""


class MultiStep(ScheduleOption):
    """The rate is multiplied by `gamma` at each milestone."""

    kind: Literal["multi-step"] = "multi-step"
    milestones: list[Annotated[float, Field(gt=0.0)]] = Field(min_length=1, max_length=64)
    """Points at which the rate drops, in epochs, ascending."""
    gamma: float = Field(0.1, gt=0.0, le=1.0)
    """Factor of the learning rate at every milestone."""

    @model_validator(mode="after")
    def _milestones_ascend(self) -> Self:
        if any(later <= earlier for earlier, later in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError("milestones must ascend")
        return self


Schedule = Annotated[Constant | Cosine | Linear | MultiStep, Field(discriminator="kind")]
SCHEDULES: tuple[type[ScheduleOption], ...] = (Constant, Cosine, Linear, MultiStep)
"""All kinds."""
