"""Augmentation of training samples, on the device where they are stored.

All random draws depend on the job's seed, the augmentation epoch and the index of the sample, and are made before any
batch: so a sample is the same in every batch, a resumed run has the same samples as an uninterrupted one, and a
teacher's outputs may be cached by sample and epoch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, replace
from hashlib import sha256
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.data.augmentation import (
    Augment,
    Blur,
    ColorJitter,
    Crop,
    CutMix,
    Cutout,
    Flip,
    Grayscale,
    Mixup,
    RandAugment,
    ResizedCrop,
    SelfMix,
    TokenDelete,
    TokenMask,
)
from app.recipe.data.sources import Data
from app.recipe.job import JobSpec
from worker.data.augment.base import AugmentStep, Draws, Random, Scene
from worker.data.augment.geometry import IMAGES, BlurStep, CropStep, CutoutStep, FlipStep, ResizedCropStep
from worker.data.augment.mixing import MixStep
from worker.data.augment.words import WordStep
from worker.data.batches import Batch
from worker.data.randomness import generator
from worker.data.readers import WORDS, Special
from worker.data.task_data import TaskData
from worker.errors import UserError

VERSION = 2
"""Incremented when the same draws give other pixels."""


class _Epoch(NamedTuple):
    """Draws of one epoch, on the device of the samples."""

    steps: list[Draws]
    again: list[Draws]
    """The same steps for the second view of each sample."""
    mixes: list[Draws]
    partner: Tensor
    """(N,) int64: a permutation of the samples."""


class Augmenter:
    """Augments batches of `samples`; a pure function of the batch, the epoch, and the constructor's arguments."""

    def __init__(
        self,
        data: Data,
        samples: Batch,
        classes: int | None,
        seed: int,
        special: Mapping[str, Special] | None = None,
        *,
        points: bool = False,
        views: int = 1,
    ) -> None:
        """`samples` is the whole training split; `classes` is none for numeric targets; `points`: these are x and y of
        points; `special` describes input keys of texts; `views` of each sample, 1 or 2, are consecutive rows."""
        self._views = views
        self._samples, self._classes, self._seed = samples, classes, seed
        self._data, self._special = data, special or {}
        self._steps = [_step(spec, self._special, points=points) for spec in data.augment if not spec.mixes]
        self._mixes = [MixStep(spec) for spec in data.augment if isinstance(spec, Mixup | CutMix | SelfMix)]
        self._scene = _scene(samples)
        self._drawn: tuple[int, _Epoch] | None = None

    def cycle(self, epoch: int) -> int:
        """The augmentation epoch whose draws this epoch of training uses."""
        return epoch % (self.cycles or epoch + 1)

    @property
    def cycles(self) -> int | None:
        """Augmentation epochs before they repeat; none: they never do."""
        return self._data.augment_epochs

    def digest(self) -> str:
        """Digest of everything that determines an augmented sample, except the sample itself."""
        specs = [spec.model_dump(mode="json") for spec in self._data.augment]
        decides = [VERSION, specs, self._data.augment_epochs, self._seed, astuple(self._scene), sorted(self._special)]
        return sha256(json.dumps(decides).encode()).hexdigest()

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """The batch augmented for `epoch` of training; its `epoch` is the augmentation epoch.

        Images become (B, C, H, W) float32 in the range in which they are stored; if samples are mixed, classes (B,)
        int64 become probabilities (B, C) float32.
        """
        drawn = self._draw(self.cycle(epoch))
        own = self._apart(batch, drawn.steps)
        if self._views > 1:  # which nothing mixes
            own = _in_turn(own, self._apart(batch, drawn.again))
        others = {within: self._other(batch, drawn, within=within) for within in {mix.within for mix in self._mixes}}
        for mix, draws in zip(self._mixes, drawn.mixes, strict=True):
            own = mix.join(own, others[mix.within], _rows(draws, batch.index))
        inputs = {input_key: samples for input_key, samples in own.inputs.items() if not input_key.startswith(WORDS)}
        return replace(own, inputs=inputs, epoch=self.cycle(epoch))

    def _other(self, batch: Batch, drawn: _Epoch, *, within: bool) -> Batch:
        if within:
            return self._apart(batch, drawn.again)
        return self._apart(self._samples.take(drawn.partner[batch.index]), drawn.steps)

    def _apart(self, batch: Batch, drawn: list[Draws]) -> Batch:
        """Each sample augmented separately."""
        inputs = {
            input_key: samples.float() if input_key == IMAGES else samples
            for input_key, samples in batch.inputs.items()
        }
        changed = replace(batch, inputs=inputs, targets=self._targets(batch.targets))
        for step, draws in zip(self._steps, drawn, strict=True):
            changed = step.apply(changed, _rows(draws, batch.index))
        return changed

    def _targets(self, targets: Tensor) -> Tensor:
        if not self._mixes or self._classes is None or targets.ndim == 2:  # multi-label targets
            return targets
        return F.one_hot(targets, self._classes).float()

    def _draw(self, epoch: int) -> _Epoch:
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, self._new_draws(epoch))
        return self._drawn[1]

    def _new_draws(self, epoch: int) -> _Epoch:
        steps, again = (
            [self._of(step, (view, place), epoch) for place, step in enumerate(self._steps)] for view in "ab"
        )
        mixes = [self._of(mix, ("mix", place), epoch) for place, mix in enumerate(self._mixes)]
        if len(mixes) > 1:
            self._leave_one(mixes, self._random(("which",), epoch)(""))
        order = torch.randperm(self._scene.count, generator=self._random(("partner",), epoch)(""))
        return _Epoch(steps, again, mixes, order.to(self._samples.device))

    def _of(self, step: AugmentStep | MixStep, purpose: tuple[str | int, ...], epoch: int) -> Draws:
        drawn = step.draw(self._scene, self._random(purpose, epoch))
        return {name: values.to(self._samples.device) for name, values in drawn.items()}

    def _random(self, purpose: tuple[str | int, ...], epoch: int) -> Random:
        return lambda name: generator(self._seed, "augment", epoch, *purpose, name)

    def _leave_one(self, mixes: list[Draws], random: torch.Generator) -> None:
        """Keep at most one kind of mix for each sample, each with the same probability."""
        which = torch.randint(len(mixes), (self._scene.count,), generator=random).to(self._samples.device)
        for place, draws in enumerate(mixes):
            draws["mixed"] &= which == place


def _rows(draws: Draws, index: Tensor) -> Draws:
    return {name: values[index] for name, values in draws.items()}


def _in_turn(first: Batch, second: Batch) -> Batch:
    """The rows of two views of the same samples: both of the first sample, both of the second, ..."""
    inputs = {
        input_key: torch.stack([rows, second.inputs[input_key]], dim=1).flatten(0, 1)
        for input_key, rows in first.inputs.items()
    }
    targets, index = (rows.repeat_interleave(2, dim=0) for rows in (first.targets, first.index))
    return replace(first, inputs=inputs, targets=targets, index=index, rows_per_sample=2 * first.rows_per_sample)


def _scene(samples: Batch) -> Scene:
    images = samples.inputs.get(IMAGES)
    return Scene(len(samples), *(images.shape[2:] if images is not None else (0, 0)))


def _step(spec: Augment, special: Mapping[str, Special], *, points: bool) -> AugmentStep:
    match spec:
        case Crop():
            return CropStep(spec, points=points)
        case ResizedCrop():
            return ResizedCropStep(spec)
        case Flip():
            return FlipStep(spec)
        case Cutout():
            return CutoutStep(spec)
        case RandAugment():
            from worker.data.augment.rand_augment import RandAugmentStep  # its import takes a third of a second

            return RandAugmentStep(spec)
        case Blur():
            return BlurStep(spec)
        case ColorJitter() | Grayscale():
            from worker.data.augment.colour import ColorJitterStep, GrayscaleStep  # as above

            return ColorJitterStep(spec) if isinstance(spec, ColorJitter) else GrayscaleStep(spec)
        case TokenMask() | TokenDelete():
            return WordStep(spec, special)
        case _:
            raise TypeError(f"{spec.kind} mixes samples")


def build_augmenter(job: JobSpec, task: TaskData, seed: int, *, points: bool = False) -> Augmenter | None:
    """Augmenter for the training samples of a job, which are on the device of training; none: no augmentation.
    `points`: targets are x and y of points, which are transformed with the image.

    Raises UserError (`invalid_job`) if a tokenizer has no mask token.
    """
    if not job.data.augment:
        return None
    special = task.readers.special if task.readers else {}
    for index, spec in enumerate(job.data.augment):
        if isinstance(spec, TokenMask) and any(input_key.mask is None for input_key in special.values()):
            message = "a tokenizer has no mask token; accepted: token-delete, or tokenizers with one such as [MASK]"
            raise UserError("invalid_job", f"data.augment[{index}]: {message}", f"data.augment[{index}].kind")
    return Augmenter(job.data, task.train, task.model.classes, seed, special, points=points, views=job.recipe.views)
