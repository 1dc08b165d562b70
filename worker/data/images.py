"""Image classification sets: from archives to tensors, checked on the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.recipe.checks import InputFacts, Problem, find_problems
from app.recipe.data import ImageData
from app.recipe.job import JobSpec
from app.recipe.model import ImageInput, ModelConfig, Preprocessing
from app.recipe.plan import split_counts
from worker.data.archive import NDArray, read_array, read_headers
from worker.data.batches import Batch, whole_split
from worker.data.holdout import hold_out
from worker.errors import UserError

MAX_CLASSES = 100_000
VIEW = "images"
CHUNK = 256
"""Images checked at a time."""
STD_FLOOR = 1e-3
"""In scaled units; a channel that is nearly constant is centred but not blown up."""


class TaskData(NamedTuple):
    """Samples to train and to evaluate on, and the description that a student of them will have."""

    train: Batch
    eval: Batch
    model: ModelConfig
    notes: list[str]
    """Oddities worth a warning."""


def load_images(job: JobSpec, inputs: Mapping[str, Path], teachers: Mapping[str, ModelConfig], seed: int) -> TaskData:
    """Read and check the data of `job`; `inputs` maps its references to files, `seed` decides what is held out.

    Raises UserError naming the field, the index and the value at fault.
    """
    data = job.data
    headers = {param: read_headers(inputs[name], param) for param, name in _references(data).items()}
    _refuse(find_problems(job, InputFacts(headers["data.train"], headers.get("data.eval"), teachers)))
    arrays = {param: _read(data, inputs[name], param) for param, name in _references(data).items()}
    classes = _classes(data, next(iter(teachers.values()), None), [labels for _, labels in arrays.values()])
    samples = {param: _tensors(*pair, data, classes, param) for param, pair in arrays.items()}
    train, evaluation = _split(samples, data, seed)
    model = ModelConfig(
        architecture=job.student,
        input=_image_input(train.inputs[VIEW]),
        preprocessing=fit_preprocessing(train.inputs[VIEW]),
        classes=classes,
    )
    return TaskData(train, evaluation, model, list(_missing_classes(train.targets, classes)))


def fit_preprocessing(images: Tensor) -> Preprocessing:
    """Scale of the pixels, and mean and standard deviation of each channel over `images` (N, C, H, W)."""
    scale = 1 / 255 if images.dtype == torch.uint8 else 1.0
    channels = range(images.shape[1])  # one at a time: the copy in float64 stays small
    moments = [_moments(images[:, channel].double() * scale) for channel in channels]
    return Preprocessing(scale=scale, mean=[mean for mean, _ in moments], std=[std for _, std in moments])


def _moments(pixels: Tensor) -> tuple[float, float]:
    std, mean = torch.std_mean(pixels, correction=0)
    return float(mean), max(float(std), STD_FLOOR)


def _references(data: ImageData) -> dict[str, str]:
    return {"data.train": data.train} | ({"data.eval": data.eval} if data.eval is not None else {})


def _refuse(problems: list[Problem]) -> None:
    if problems:
        lines = [f"{p.param}: {p.message}" + (f" (accepted: {p.accepted})" if p.accepted else "") for p in problems]
        room = problems[0].param.split(".")[0]
        code = {"data": "invalid_data", "teacher": "invalid_teacher"}.get(room, "invalid_job")
        raise UserError(code, "; ".join(lines), problems[0].param)


def _read(data: ImageData, path: Path, param: str) -> tuple[NDArray, NDArray]:
    return read_array(path, data.input_key, param), read_array(path, data.label_key, param)


def _classes(data: ImageData, teacher: ModelConfig | None, labels: list[NDArray]) -> int:
    if data.classes or teacher:
        return data.classes or teacher.outputs  # type: ignore[union-attr]  # the other one is there
    classes = max(int(array.max()) for array in labels) + 1
    if not 2 <= classes <= MAX_CLASSES:
        raise UserError(
            "invalid_data",
            f"the largest label is {classes - 1}; accepted: labels from 0, at least two classes, at most {MAX_CLASSES}",
            "data.train",
        )
    return classes


def _tensors(images: NDArray, labels: NDArray, data: ImageData, classes: int, param: str) -> Batch:
    _check_labels(labels, classes, data.label_key, param)
    pixels = _pixels(images)
    _check_finite(pixels, images, data.input_key, param)
    images_first = _channels_first(torch.from_numpy(pixels), data).contiguous()
    return whole_split({VIEW: images_first}, torch.from_numpy(labels.astype(np.int64)))


def _check_labels(labels: NDArray, classes: int, key: str, param: str) -> None:
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        index = int(wrong.argmax())
        message = f"label {labels[index]} at index {index} of array {key!r} is outside 0..{classes - 1}"
        raise UserError("invalid_data", message, param)


def _pixels(images: NDArray) -> NDArray:
    with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, and is refused as such
        return images if images.dtype == np.uint8 else images.astype(np.float32, copy=False)


def _check_finite(pixels: NDArray, images: NDArray, key: str, param: str) -> None:
    if pixels.dtype == np.uint8:
        return
    for first in range(0, len(pixels), CHUNK):  # no mask as large as the data
        finite = np.isfinite(pixels[first : first + CHUNK])
        if not finite.all():
            inner, *rest = (int(i) for i in np.unravel_index(int(finite.argmin()), finite.shape))
            place = (first + inner, *rest)
            message = f"array {key!r} holds {images[place]} at index {place}; accepted: finite 32-bit floats"
            raise UserError("invalid_data", message, param)


def _channels_first(pixels: Tensor, data: ImageData) -> Tensor:
    if pixels.ndim == 3:
        return pixels.unsqueeze(1)
    return pixels.permute(0, 3, 1, 2) if data.layout == "NHWC" else pixels


def _split(samples: dict[str, Batch], data: ImageData, seed: int) -> tuple[Batch, Batch]:
    train = samples["data.train"]
    if "data.eval" in samples:
        return train, samples["data.eval"]
    _, count = split_counts(data, len(train))
    kept, held = (train.take(chosen) for chosen in hold_out(train.targets, count, seed))
    return whole_split(kept.inputs, kept.targets), whole_split(held.inputs, held.targets)


def _image_input(images: Tensor) -> ImageInput:
    _, channels, height, width = images.shape
    return ImageInput(channels=channels, height=height, width=width)


def _missing_classes(labels: Tensor, classes: int) -> list[str]:
    present = len(torch.unique(labels))
    return [] if present == classes else [f"only {present} of {classes} classes have a training sample"]
