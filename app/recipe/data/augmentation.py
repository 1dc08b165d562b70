"""Augmentation of training samples; evaluation samples are never augmented.

Every draw depends on the job's seed, the augmentation epoch and the index of the sample, and not on the batch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.recipe.base import Answer, Fraction, InputKind, Paper, Share, TaskOption

Pair = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]
MixParameter = Annotated[float, Field(gt=0.0, le=100.0)]


class Augmentation(TaskOption):
    """Base of the augmentations."""

    answers: ClassVar[frozenset[Answer]] = frozenset({"classes", "labels", "numbers", "vectors", "anomalies"})
    reads: ClassVar[tuple[InputKind, ...]] = ("images",)
    """Kinds of input that it supports."""
    mixes: ClassVar[bool] = False
    """True if it mixes two samples (or two views of one), so that a label becomes a distribution."""


class Crop(Augmentation):
    """Pads an image on all sides and crops its size at a random position; keypoints are moved accordingly."""

    paper: ClassVar[Paper | None] = Paper("Deep Residual Learning for Image Recognition", "1512.03385")
    kind: Literal["crop"] = "crop"
    padding: int = Field(4, ge=1, le=512)
    """Pixels added on each side, of value 0; at most the image's own height and width."""


class Flip(Augmentation):
    """Mirrors an image left to right."""

    kind: Literal["flip"] = "flip"
    probability: Share = 0.5
    """Share of the images that are mirrored."""
    pairs: list[Pair] | None = Field(None, max_length=32_768)
    """Required for keypoints: pairs of points that are swapped by mirroring, such as the two eyes, by their numbers
    from 0. Points in no pair keep their number. x becomes 1 - x."""


class Cutout(Augmentation):
    """Sets a square to 0; its centre is uniform over the image, so that parts of it may fall outside."""

    paper: ClassVar[Paper | None] = Paper(
        "Improved Regularization of Convolutional Neural Networks with Cutout", "1708.04552"
    )
    kind: Literal["cutout"] = "cutout"
    size: int = Field(16, ge=1, le=4096)
    """Side of the square, in pixels; 16 on CIFAR-10 and 8 on CIFAR-100."""
    probability: Share = 1.0
    """Share of the images with a square."""


class RandAugment(Augmentation):
    """Applies some of 14 operations on colour and position, drawn for each image, all of one strength."""

    paper: ClassVar[Paper | None] = Paper(
        "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", "1909.13719"
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes", "labels", "vectors", "anomalies"})
    kind: Literal["rand-augment"] = "rand-augment"
    operations: int = Field(2, ge=1, le=14)
    """Operations per image, drawn with replacement."""
    magnitude: float = Field(9.0, ge=0.0, le=30.0)
    """Strength on a scale to 30; 9 for ImageNet, 4 or 5 for CIFAR-10 with three operations."""


class ResizedCrop(Augmentation):
    """Crops a rectangle of random area, aspect and position, and resizes it to the image's size (bilinear)."""

    paper: ClassVar[Paper | None] = Paper("Going Deeper with Convolutions", "1409.4842")
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes", "labels", "vectors", "anomalies"})
    kind: Literal["resized-crop"] = "resized-crop"
    least_area: float = Field(0.08, gt=0.0, le=1.0)
    """Smallest share of the image's area that is kept; the largest is all of it. 0.08 is SimCLR's, and 0.2 is milder
    for small images."""
    aspect: float = Field(4 / 3, ge=1.0, le=4.0)
    """Most that width and height change relative to each other: their ratio is from 1 / aspect to aspect times the
    image's own."""


class ColorJitter(Augmentation):
    """Changes brightness, contrast, saturation and hue by random amounts, in a random order for each image; those of
    one channel have no saturation and no hue."""

    paper: ClassVar[Paper | None] = Paper(
        "A Simple Framework for Contrastive Learning of Visual Representations", "2002.05709"
    )
    kind: Literal["color-jitter"] = "color-jitter"
    brightness: Share = 0.4
    """Factors are from 1 minus this to 1 plus this, as for contrast and saturation. SimCLR has 0.8 for all three on
    ImageNet and 0.4 on CIFAR-10."""
    contrast: Share = 0.4
    """Of the distance from the mean of the grey image."""
    saturation: Share = 0.4
    """Of the distance from the grey image."""
    hue: float = Field(0.1, ge=0.0, le=0.5)
    """Largest turn of the hue, as a share of the circle; 0.2 in SimCLR on ImageNet and 0.1 on CIFAR-10."""
    probability: Share = 0.8
    """Share of the images that are changed."""


class Grayscale(Augmentation):
    """Makes an image of three channels grey; one of one channel stays as it is."""

    paper: ClassVar[Paper | None] = ColorJitter.paper
    kind: Literal["grayscale"] = "grayscale"
    probability: Share = 0.2
    """Share of the images that become grey."""


class Blur(Augmentation):
    """Gaussian blur with a random width for each image; the kernel is a tenth of the smaller side, at least 3 pixels.

    SimCLR has none on CIFAR-10.
    """

    paper: ClassVar[Paper | None] = ColorJitter.paper
    kind: Literal["blur"] = "blur"
    most_sigma: float = Field(2.0, gt=0.1, le=100.0)
    """Largest standard deviation in pixels; the smallest is 0.1."""
    probability: Share = 0.5
    """Share of the images that are blurred."""


class Mixup(Augmentation):
    """Weighted mean of two samples and of their labels."""

    paper: ClassVar[Paper | None] = Paper("mixup: Beyond Empirical Risk Minimization", "1710.09412")
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes", "labels", "numbers"})
    reads: ClassVar[tuple[InputKind, ...]] = ("images", "table")
    mixes: ClassVar[bool] = True
    kind: Literal["mixup"] = "mixup"
    alpha: MixParameter = 0.2
    """Both parameters of the Beta distribution that the weight is drawn from; 0.1 to 0.4 on ImageNet, 1 on CIFAR."""
    probability: Share = 1.0
    """Share of the samples that are mixed."""


class CutMix(Augmentation):
    """Replaces a box of an image by that of another image; labels are weighted by the visible area of each."""

    paper: ClassVar[Paper | None] = Paper(
        "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", "1905.04899"
    )
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes", "labels"})
    mixes: ClassVar[bool] = True
    kind: Literal["cutmix"] = "cutmix"
    alpha: MixParameter = 1.0
    """Both parameters of the Beta distribution of the share of the image's pixels that remain."""
    probability: Share = 0.5
    """Share of the images that are mixed."""


class SelfMix(Augmentation):
    """Replaces a box of an image by that of another view of it, or takes the weighted mean of both; the label stays."""

    paper: ClassVar[Paper | None] = Paper("FerKD: Surgical Label Adaptation for Efficient Distillation", "2312.17473")
    answers: ClassVar[frozenset[Answer]] = frozenset({"classes", "labels"})
    mixes: ClassVar[bool] = True
    kind: Literal["self-mix"] = "self-mix"
    how: Literal["box", "mean"] = "box"
    """A box of the second view, or the weighted mean of both."""
    alpha: MixParameter = 1.0
    """Both parameters of the Beta distribution that the share of the first view is drawn from."""
    probability: Share = 1.0
    """Share of the images that are mixed."""


class TextAugmentation(Augmentation):
    """Changes words, which white space separates. All tokens of a word are changed together, in every tokenisation."""

    answers: ClassVar[frozenset[Answer]] = frozenset({"classes", "labels", "numbers", "vectors"})
    reads: ClassVar[tuple[InputKind, ...]] = ("texts",)


class TokenMask(TextAugmentation):
    """Replaces the tokens of some words by the mask token."""

    paper: ClassVar[Paper | None] = Paper(
        "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", "1903.12136"
    )
    kind: Literal["token-mask"] = "token-mask"
    share: Fraction = 0.1
    """Probability that a word is masked."""


class TokenDelete(TextAugmentation):
    """Removes some words, at most all but one."""

    paper: ClassVar[Paper | None] = Paper(
        "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification Tasks", "1901.11196"
    )
    kind: Literal["token-delete"] = "token-delete"
    share: Fraction = 0.1
    """Probability that a word is removed."""


Augment = Annotated[
    Crop
    | ResizedCrop
    | Flip
    | Cutout
    | RandAugment
    | ColorJitter
    | Grayscale
    | Blur
    | Mixup
    | CutMix
    | SelfMix
    | TokenMask
    | TokenDelete,
    Field(discriminator="kind"),
]
AUGMENTATIONS: tuple[type[Augmentation], ...] = (
    Crop,
    ResizedCrop,
    Flip,
    Cutout,
    RandAugment,
    ColorJitter,
    Grayscale,
    Blur,
    Mixup,
    CutMix,
    SelfMix,
    TokenMask,
    TokenDelete,
)
