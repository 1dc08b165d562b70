"""Pairs of images, which become consecutive rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from worker.data.archive import NDArray
from worker.data.formats.column_readers import ClassColumns
from worker.data.formats.columns import Samples, Values
from worker.data.formats.faults import invalid

PAIR = 2
"""Rows of a pair."""


class VectorColumns(ClassColumns):
    """Images with classes, or pairs of images with 1 or 0."""

    def assemble(
        self,
        inputs: Mapping[str, Values],
        labels: Mapping[str, Values],
        param: str,
        class_names: list[str] | None = None,
    ) -> Samples:
        if len(inputs) < PAIR:
            return super().assemble(inputs, labels, param, class_names)
        first, second = (_images(name, values, param) for name, values in inputs.items())
        return Samples(interleaved(first, second, param), self.join_labels(labels, len(first)), rows_per_sample=PAIR)


def _images(name: str, values: Values, param: str) -> NDArray:
    """The images (N, C, H, W) of one column; raises UserError (`invalid_data`) for other values."""
    if isinstance(values, list) or values.ndim != 4:
        found = f"column {name!r} of {param} has no images"
        raise invalid(f"{found}; accepted: two columns of encoded images", "data.input_columns")
    return values


def interleaved(first: NDArray, second: NDArray, param: str) -> NDArray:
    """Images (2 N, C, H, W) of N pairs, from those of both sides, of any dtype; grey ones beside others get their
    channels. Raises UserError (`invalid_data`) if they differ in size."""
    if first.shape[2:] != second.shape[2:]:
        found = f"the first images of the pairs of {param} have {first.shape[2:]} pixels, the second {second.shape[2:]}"
        raise invalid(f"{found}; accepted: one size, or data.image_size, to which all are resized", "data.image_size")
    channels = max(first.shape[1], second.shape[1])
    pairs = np.empty((len(first), PAIR, channels, *first.shape[2:]), first.dtype)
    pairs[:, 0], pairs[:, 1] = first, second
    return pairs.reshape(-1, *pairs.shape[2:])
