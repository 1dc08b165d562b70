"""Optimizers and learning-rate schedules."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.recipe.base import Fraction, NonNegative, Option, Paper, Positive, Share
from app.recipe.tasks.task import CLASSIFICATION, Task

Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]
PROJECTION = Paper("AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights", "2006.08217")


class Sgd(Option):
    """Stochastic gradient descent with momentum; the weight decay is coupled (added to the gradient)."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive
    """Peak learning rate."""
    momentum: Beta = 0.9
    """Decay of the running sum of gradients; 0: plain gradient descent."""
    nesterov: bool = False
    """Whether the step looks ahead along the momentum (Nesterov's)."""
    weight_decay: NonNegative = 0.0
    """Coefficient of the L2 penalty that is added to the gradient."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class AdamW(Option):
    """Adam with decoupled weight decay."""

    paper: ClassVar[Paper | None] = Paper("Decoupled Weight Decay Regularization", "1711.05101")
    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    """Peak learning rate."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the divisor, so that nothing is divided by zero."""
    weight_decay: NonNegative = 0.01
    """Share of every weight that a step takes away, times the learning rate."""


class AdamP(Option):
    """Adam whose update loses its radial part on scale-invariant weights."""

    paper: ClassVar[Paper | None] = PROJECTION
    kind: Literal["adamp"] = "adamp"
    lr: Positive = 1e-3
    """Peak learning rate."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the divisor, so that nothing is divided by zero."""
    weight_decay: NonNegative = 0.0
    """Decoupled from the gradient."""
    delta: NonNegative = 0.1
    """Threshold of the cosine test for scale invariance."""
    wd_ratio: Share = 0.1
    """Factor of the weight decay on projected tensors."""
    nesterov: bool = False
    """Whether the step looks ahead along the momentum (Nesterov's)."""


class SgdP(Option):
    """SGD whose update loses its radial part on scale-invariant weights."""

    paper: ClassVar[Paper | None] = PROJECTION
    kind: Literal["sgdp"] = "sgdp"
    lr: Positive
    """Peak learning rate."""
    momentum: Beta = 0.0
    """Decay of the running sum of gradients; 0: plain gradient descent."""
    dampening: Share = 0.0
    """Share of a new gradient that the momentum leaves out."""
    eps: Positive = 1e-8
    """Added to the divisor, so that nothing is divided by zero."""
    weight_decay: NonNegative = 0.0
    """Decoupled; divided by (1 - momentum) to match coupled decay in strength."""
    delta: NonNegative = 0.1
    """Threshold of the cosine test for scale invariance."""
    wd_ratio: Share = 0.1
    """Factor of the weight decay on projected tensors."""
    nesterov: bool = False
    """Whether the step looks ahead along the momentum (Nesterov's)."""
    project_buffer: bool = True
    """True: the stored momentum is projected too, as in the authors' code; false: only the step, as in the paper."""


class Normalized(Option):
    """What optimizers of normalised gradients share: Adam for all but the weight matrices of hidden layers."""

    applies: ClassVar[str] = "Networks with hidden layers; whatever is no weight matrix of one is trained by Adam."
    lr: Positive
    """Peak learning rate of what Adam trains."""
    matrix_ratio: Positive
    """Rate of hidden layers' matrices as a share of `lr`; kernels of convolutions are matrices of (channels, rest)."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: Positive = 1e-8
    """Added to the divisor, so that nothing is divided by zero."""
    weight_decay: NonNegative = 0.0
    """Decoupled from the gradient, of all parameters; the papers have none."""


class SinkGd(Normalized):
    """Gradients whose rows and columns are scaled in turn to equal norms, without any state.

    That is for the weight matrices of hidden layers; vectors, embeddings and the output layer are trained by Adam, with
    its two moments. Everything with only one row or column counts as a vector.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Gradient Multi-Normalization for Stateless and Scalable LLM Training", "2502.06742"
    )
    kind: Literal["sinkgd"] = "sinkgd"
    lr: Positive = 0.02
    """Peak learning rate of what Adam trains: vectors, embeddings, output layer."""
    matrix_ratio: Positive = 0.05
    """Rate of hidden layers' matrices as a share of `lr`; kernels of convolutions are matrices of (channels, rest)."""
    iterations: int = Field(5, ge=1, le=100)
    """How often rows, then columns, are scaled; the columns come out exact, the rows nearly."""


class Swan(Normalized):
    """Gradients whose rows are standardised and then made orthogonal to each other, without any state.

    That is for the weight matrices of hidden layers; vectors, embeddings and the output layer are trained by Adam, with
    its two moments. Everything with only one row or column counts as a vector. The rates are of our own choice.
    """

    paper: ClassVar[Paper | None] = Paper(
        "SWAN: SGD with Normalization and Whitening Enables Stateless LLM Training", "2412.13148"
    )
    kind: Literal["swan"] = "swan"
    lr: Positive = 1e-3
    """Peak learning rate of what Adam trains: vectors, embeddings, output layer."""
    matrix_ratio: Positive = 1.0
    """Rate of hidden layers' matrices as a share of `lr`; kernels of convolutions are matrices of (channels, rest)."""
    whitening: Literal["newton-schulz", "exact"] = "newton-schulz"
    """By products of matrices, or by singular values, which is slow on a GPU."""
    iterations: int = Field(10, ge=1, le=100)
    """Steps of Newton and Schulz; directions that are still short after them stay short."""
    rescale: bool = True
    """Give the whitened gradient the norm that it had before."""


Inner = Annotated[Sgd | AdamW | AdamP | SgdP | SinkGd | Swan, Field(discriminator="kind")]


class NormalizeAndProject(Option):
    """After the steps of another optimizer, hidden weights are scaled back to the norm that they began with.

    For networks with normalisation layers; others are refused. The weights of hidden layers keep their norms, scale and
    offset of a normalisation layer keep together the norm of a scale of ones. The output layer, embeddings and other
    vectors go free. Weight decay has no effect on what is scaled, so the rate falls by the schedule alone.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Normalization and effective learning rates in reinforcement learning", "2407.01800"
    )
    applies: ClassVar[str] = "Networks with normalisation layers: every student but mlp."
    kind: Literal["nap"] = "nap"
    inner: Inner
    """The optimizer that takes the steps, with the learning rate."""
    every_steps: int = Field(1, ge=1, le=10_000)
    """Optimizer steps between two projections."""

    @property
    def lr(self) -> float:
        """Peak learning rate."""
        return self.inner.lr


class NormalizedGd(Option):
    """Gradient descent divided by how wrong the outputs are: steps do not shrink as the loss falls.

    The divisor is the mean over the batch of the probability that the student puts on wrong classes (of its distance
    from the teacher's probabilities, half the sum of absolute differences, where it learns from those). What is proven
    holds for linear students (`mlp` without hidden layers), two separable classes and batches of all samples: any rate
    separates them, a large one in fewer steps. A batch without a mistake that float32 can tell makes no step.
    """

    paper: ClassVar[Paper | None] = Paper(
        "Gradient Descent Converges Arbitrarily Fast for Logistic Regression via Large and Adaptive Stepsizes",
        "2412.08424",
    )
    tasks: ClassVar[tuple[Task, ...]] = CLASSIFICATION
    applies: ClassVar[str] = "Classification, with losses of the kind of cross-entropy on the student's outputs."
    kind: Literal["normalized-gd"] = "normalized-gd"
    lr: Positive = 1.0
    """Peak learning rate; 1 for good margins, 100 to separate soon."""


Optimizer = Annotated[
    Sgd | AdamW | AdamP | SgdP | SinkGd | Swan | NormalizeAndProject | NormalizedGd, Field(discriminator="kind")
]
OPTIMIZERS: tuple[type[Option], ...] = (Sgd, AdamW, AdamP, SgdP, SinkGd, Swan, NormalizeAndProject, NormalizedGd)


class ScheduleOption(Option):
    """What every schedule has: a linear warm-up from 0."""

    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the rate rises linearly to its peak."""
    warmup_ratio: Fraction | None = None
    """The same as a share of the steps of the stage, rounded; none: `warmup_steps` counts."""

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
    """Where the rate drops, in epochs, ascending."""
    gamma: float = Field(0.1, gt=0.0, le=1.0)
    """Factor of the learning rate at every milestone."""

    @model_validator(mode="after")
    def _milestones_ascend(self) -> Self:
        if any(later <= earlier for earlier, later in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError("milestones must ascend")
        return self


Schedule = Annotated[Constant | Cosine | Linear | MultiStep, Field(discriminator="kind")]
SCHEDULES: tuple[type[ScheduleOption], ...] = (Constant, Cosine, Linear, MultiStep)
