"""Hard patches mining: self-supervision by masked images, whose hardest patches are masked more and more often."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, Fraction, InputKind, Paper, Share, Spec
from app.recipe.methods.base import FIELD, LEARNING, MethodSpec
from app.recipe.optimizers import NormalizedGd
from app.recipe.problem import Problem
from app.recipe.students.architectures import Vit, Width

if TYPE_CHECKING:
    from app.recipe.job import JobSpec, Recipe

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class PatchDecoder(Spec):
    """Sizes of the two decoders of `hpm`; norms, attention and activation are those of the student. The paper has 512
    channels, 8 blocks and 16 heads for a ViT-B of 768 channels, 12 blocks and 12 heads."""

    width: Width | None = None
    """Channels of a token; a multiple of `heads`. None: those of the student."""
    depth: int | None = Field(None, ge=1, le=64)
    """Blocks of each decoder; none: half of the student's, rounded up."""
    heads: int | None = Field(None, ge=1, le=64)
    """Attention heads; none: as many as the student's."""

    def blocks_for(self, student: Vit) -> Vit:
        """The description of the blocks of each decoder, beside this student."""
        sizes = {
            "width": self.width or student.width,
            "depth": self.depth or ceil(student.depth / 2),
            "heads": self.heads or student.heads,
        }
        return student.model_copy(update=sizes)


class Hpm(MethodSpec):
    """Hard patches mining: a share of the patches of each image is masked, the student encodes the others alone, and a
    decoder reconstructs the masked ones. A second decoder predicts which of them are hard to reconstruct. A moving
    average of the student and this second decoder sees the whole image and predicts the loss of every patch: more and
    more of the masked patches are those with the highest predictions, the others are drawn at random.

    With r_p the mean squared error of the pixels of patch p, d_p its predicted loss, and P the pairs (p, q) of masked
    patches of the same image with r_p > r_q, the step minimises mean r_p + mean over P of -log(sigmoid(d_p - d_q) +
    1e-6), in which r is a constant. In epoch e of E, counted from 0, `hard_share` (e + 1) / E of the masked patches are
    the hardest ones. The moving average has the decay `decay` + (`final_decay` - `decay`) min(1, e / `decay_epochs`).
    The decoders see the class token as the student's vector, which is how its last layer learns. They are not exported.
    """

    paper: ClassVar[Paper | None] = Paper("Hard Patches Mining for Masked Image Modeling", "2304.05919")
    answers: ClassVar[frozenset[Answer]] = frozenset({"vectors"})
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    without_labels: ClassVar[bool] = True
    minimises_losses: ClassVar[bool] = False
    applies: ClassVar[str] = (
        "Images without labels, with a `vit` as student; it compares no images of a batch with each other, so batches "
        "may be small, and no views, so changes of colour are not needed."
    )
    cost: ClassVar[str] = (
        "The student encodes the visible patches alone, and its average whole images, without gradients; two decoders "
        "of half the student's depth learn. With the defaults nearly twice the operations of a step."
    )
    kind: Literal["hpm"] = "hpm"
    mask_ratio: Fraction = 0.75
    """Share of the patches of each image that are masked; the number of visible ones is rounded down."""
    hard_share: Share = 0.5
    """Share of the masked patches that are the hardest ones in the last epoch; 0: all are drawn at random, as in a
    masked autoencoder."""
    prediction: Literal["relative", "absolute"] = "relative"
    """What the predictions learn: the order of the losses of an image's patches, or the losses themselves, divided by
    their standard deviation after their mean was subtracted, by the squared error."""
    stable: bool = False
    """Computes the relative loss as -log sigmoid(d_p - d_q), without the 1e-6 of the authors' code, with which the
    gradient of a pair vanishes when its order is wrong by more than 14."""
    normalise_pixels: bool = True
    """Whether the pixels of each patch are standardised before they are compared."""
    decoder: PatchDecoder = PatchDecoder()
    """Sizes of the decoders."""
    decay: Decay = 0.999
    """Decay of the moving average in the first epoch, per step. In a short training the average stays close to the
    initial weights: with 0.999 it forgets half of them in 700 steps."""
    final_decay: Decay = 0.9999
    """Decay of the moving average after `decay_epochs` epochs."""
    decay_epochs: int = Field(100, ge=1, le=100_000)
    """Epochs in which the decay changes, linearly."""

    def passes(self, recipe: Recipe) -> int:
        """The average's forward pass, the student's passes on visible patches, and those of the decoders, which have
        together as many blocks as the student."""
        return ceil(1 + LEARNING * (1 - self.mask_ratio)) + LEARNING

    def learner_passes(self, recipe: Recipe) -> int:
        """Those of the decoders are among `passes`."""
        return 0

    @property
    def same_networks(self) -> int:
        """The decoders, as if they had together the size of the student."""
        return 1

    def activation_copies(self, recipe: Recipe) -> float:
        return 1 - self.mask_ratio

    def problems(self, job: JobSpec) -> Iterator[Problem]:
        yield from self._student_problems(job)
        if self.stable and self.prediction == "absolute":
            yield Problem(f"{FIELD}.stable", "is true, and only the relative loss has two forms", "false")
        for path, given, accepted in (
            ("recipe.stages", bool(job.recipe.stages), "none"),
            ("recipe.compile", job.recipe.compile, "false"),
        ):
            if given:
                yield Problem(path, f"is given, and {self.kind} runs the student's blocks on visible patches", accepted)
        if job.recipe.accumulate > 1:
            found = f"is {job.recipe.accumulate}, and the loss of predictions is divided by the pairs of a whole batch"
            yield Problem("recipe.accumulate", found, "1, or several processes")
        if isinstance(job.recipe.optimizer.stepping, NormalizedGd):
            found = f"is normalized-gd, which looks at the student's vectors, and {self.kind} compares pixels"
            yield Problem("recipe.optimizer.kind", found, "any other")
        if job.resources.sharding == "fsdp":
            found = f"is fsdp, and {self.kind} averages weights that are all there"
            yield Problem("resources.sharding", found, "none")

    def _student_problems(self, job: JobSpec) -> Iterator[Problem]:
        if not isinstance(job.student, Vit):
            found = f"is {job.student.architecture}, and {self.kind} masks the patches of a vit"
            yield Problem("student.architecture", found, "vit")
            return
        if job.student.attention.needs_grid:
            kind = job.student.attention.kind
            found = f"is {kind}, which is for whole images, and {self.kind} encodes the visible patches alone"
            yield Problem("student.attention.kind", found, "softmax, or another kind that needs no grid")
        blocks = self.decoder.blocks_for(job.student)
        if blocks.width % blocks.heads:
            field = "heads" if self.decoder.heads else "width"
            found = f"a width of {blocks.width} is no multiple of {blocks.heads} heads"
            yield Problem(f"{FIELD}.decoder.{field}", found, "heads that divide the width")
