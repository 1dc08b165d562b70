"""Base of all training methods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from app.recipe.base import EVERY_ANSWER, Answer, TaskOption
from app.recipe.losses import Loss
from app.recipe.optimizers import Optimizer
from app.recipe.problem import Problem
from app.recipe.stage import StageSpec
from app.recipe.students.architectures import Network
from app.recipe.students.sub_spaces import SubSpace
from app.recipe.tasks import tasks_for

if TYPE_CHECKING:  # a job has a method, and a method's rules use the job
    from app.recipe.job import JobSpec, Recipe

FIELD = "recipe.method"
LEARNING = 3
"""Forward passes that a forward and a backward pass take together."""
STUDENT = "student"
"""Name of the student as the teacher in losses of other networks."""


class MethodSpec(TaskOption):
    """Base of the methods of the main training."""

    answers: ClassVar[frozenset[Answer]] = EVERY_ANSWER
    applies: ClassVar[str]
    """What it is for, and when to prefer it."""
    cost: ClassVar[str]
    """Time and memory beyond those of the same job with `supervised`."""
    trains_teacher: ClassVar[bool] = False
    """Whether a teacher is trained together with the student: the job's, or one that the method describes."""
    digest_key: ClassVar[str] = "method"
    """Its name in the digest that ties a checkpoint to its job (see `worker.training.checkpoint`)."""
    plain_steps: ClassVar[bool] = False
    """Whether its steps compute the recipe's losses as `supervised` does: of the student alone, on the data's samples,
    once in a step."""
    minimises_losses: ClassVar[bool] = True
    """Whether its steps minimise `recipe.losses`; otherwise there are none, and it has losses of its own."""
    trains: ClassVar[bool] = True
    """Whether it takes steps, and a model is published at its end."""
    divides: ClassVar[frozenset[str]] = frozenset()
    """Kinds of losses that couple the samples of a batch, and that its steps compute in parts all the same."""

    kind: str

    @property
    def sub_spaces(self) -> list[SubSpace]:
        """Sub-spaces of sizes that the student is searched in, which is a `shrink` without sizes; none: it is trained
        as it is described."""
        return []

    @property
    def differentiates_twice(self) -> bool:
        """Whether its steps differentiate the gradient of the student."""
        return False

    @property
    def learns_from_teacher(self) -> bool:
        """Whether it uses a teacher even if no loss does."""
        return False

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        """Problems of the rest of `job`, whose task is one of the method's."""
        yield from ()

    def search_problems(self, least: Sequence[tuple[int, int]]) -> Iterator[Problem]:
        """Problems of a search whose smallest network has at least so many weights and operations for a sample, in each
        of `sub_spaces`."""
        yield from ()

    def main_stages(self, recipe: Recipe) -> list[StageSpec]:
        """The stages that it divides the main training into; each has the losses of `recipe`."""
        # without validation: there are no losses if the method has its own
        return [StageSpec.model_construct(losses=recipe.losses, epochs=recipe.epochs)]

    def batch_teachers(self) -> frozenset[str]:
        """Names of teachers that its steps run on the batches of the data, even if no loss does."""
        return frozenset()

    def uncached_teachers(self) -> frozenset[str]:
        """Names of teachers that its steps run on other inputs than the data's, so that nothing of them is cached."""
        return frozenset()

    def passes(self, recipe: Recipe) -> int:
        """Operations of the student for a sample in a step, in forward passes."""
        return LEARNING

    def learner_passes(self, recipe: Recipe) -> int:
        """The same of each network that is trained beside the student, in forward passes of its own."""
        return LEARNING

    def learner_optimizer(self, recipe: Recipe) -> Optimizer:
        """Optimizer of the networks that are trained beside the student."""
        return recipe.optimizer

    def activation_copies(self, recipe: Recipe) -> float:
        """Memory of the student's activations in a step, as a multiple of those of one batch."""
        return 1.0

    @property
    def learns_in_turn(self) -> bool:
        """Whether the networks of a step are trained one after the other, so that only the activations of one are
        stored at a time."""
        return False

    @property
    def same_networks(self) -> int:
        """Networks of the student's own architecture that are trained beside it, without those of `networks`."""
        return 0

    @property
    def kept_back(self) -> float:
        """Share of the training samples that it keeps back for a purpose of its own (see `TaskData.kept_back`)."""
        return 0.0

    def networks(self) -> dict[str, Network]:
        """Networks that are trained beside the student, by the path of the field that describes each."""
        return {}

    def objectives(self) -> dict[str, list[Loss]]:
        """Losses of such networks, by the path of their field; the student is their teacher, called `STUDENT`."""
        return {}


def method_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of the method of `job`."""
    method = job.recipe.method
    if not job.task_spec.fits(type(method)):
        found = f"is {method.kind}, which is not for {job.task}"
        yield Problem(f"{FIELD}.kind", found, f"supervised, or a task of {', '.join(tasks_for(type(method)))}")
        return
    yield from _losses_problems(job)
    yield from method.problems(job)


def _losses_problems(job: JobSpec) -> Iterator[Problem]:
    method, losses = job.recipe.method, job.recipe.losses
    if method.minimises_losses and not losses:
        yield Problem("recipe.losses", f"is empty, and {method.kind} minimises them", "1 to 16 terms")
    if losses and not method.minimises_losses:
        yield Problem("recipe.losses", f"is given, and {method.kind} has losses of its own", "none")
