"""Reads images and tables of NumPy archives."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from app.recipe.data.sources import ImageData
from worker.data.archive import NDArray, read_array, read_headers
from worker.data.formats.column_readers import ColumnReader
from worker.data.formats.columns import Samples
from worker.data.formats.faults import invalid
from worker.data.formats.image_pairs import PAIR, interleaved

CHUNK = 256
"""Samples checked at a time."""


def read_npz(path: Path, data: ImageData, reader: ColumnReader, param: str) -> Samples:
    """Read an archive whose headers are valid; raises UserError naming the index of a value that is not finite."""
    images, rows = _inputs(path, data, data.input_key, param), 1
    as_floats = partial(_numbers, key=data.label_key, param=param)
    if not data.is_labelled(param) or (reader.optional and data.label_key not in read_headers(path, param)):
        labels = reader.join_labels({}, len(images))
    else:
        labels = reader.labels_from_array(read_array(path, data.label_key, param), as_floats)
    if data.second_key is not None:
        images, rows = interleaved(images, _inputs(path, data, data.second_key, param), param), PAIR
    masks = None
    if data.mask_key is not None and data.is_evaluated(param):
        masks = read_array(path, data.mask_key, param) != 0
    return Samples(images, labels, rows_per_sample=rows, masks=masks)


def _inputs(path: Path, data: ImageData, key: str, param: str) -> NDArray:
    """An array of images (N, C, H, W), or a table (N, D)."""
    inputs = read_array(path, key, param)
    return _channels_first(
        _numbers(inputs, key, param) if inputs.dtype != np.uint8 or inputs.ndim == 2 else inputs, data
    )


def _numbers(array: NDArray, key: str, param: str) -> NDArray:
    """The array as float32; raises UserError for values that are not finite in it."""
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, and are refused below
        numbers = array.astype(np.float32, copy=False)
    for first in range(0, len(numbers), CHUNK):  # no mask as large as the data
        finite = np.isfinite(numbers[first : first + CHUNK])
        if not finite.all():
            inner, *rest = (int(i) for i in np.unravel_index(int(finite.argmin()), finite.shape))
            place = (first + inner, *rest)
            message = f"array {key!r} has {array[place]} at index {place}; accepted: finite 32-bit floats"
            raise invalid(message, param)
    return numbers


def _channels_first(samples: NDArray, data: ImageData) -> NDArray:
    if samples.ndim == 3:
        return samples[:, None]
    if samples.ndim == 4 and data.layout == "NHWC":
        return np.ascontiguousarray(np.moveaxis(samples, 3, 1))
    return samples
