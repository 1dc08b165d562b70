"""Decodes untrusted images to arrays of one size.

Only PNG, JPEG, WebP and BMP are decoded, none with more pixels than a model may take; declared sizes are checked before
decoding.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image

from app.recipe.data.sources import Pictures
from app.recipe.students.model import MAX_SIDE
from worker.data.archive import NDArray
from worker.data.formats.faults import MAX_BYTES, invalid, shown
from worker.errors import UserError
from worker.limits import progress

KINDS = ("PNG", "JPEG", "WEBP", "BMP")
LARGEST = 64 * 2**20
"""Most bytes of one encoded image; an uncompressed PNG of the largest side has about as many."""
TOGETHER = 256
"""Images decoded at a time."""
ORIENTATION = 0x0112
"""EXIF tag of the orientation in which an image is stored."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the tag's value, the operation that turns the stored image upright."""
_GREY = {"1", "L", "LA"}
_COLOUR = {"RGB", "RGBA", "P", "CMYK", "YCbCr", "PA", "RGBa", "RGBX"}


class EncodedImages(NamedTuple):
    """An encoded image, and its name in messages."""

    name: str
    content: bytes


def decode(images: Iterable[EncodedImages], data: Pictures, param: str) -> NDArray:
    """All images as (N, C, H, W) uint8, C = 1 or 3: upright, composited over `data.background` where transparent, and
    then resized to `data.image_size` if given (bilinear, antialiased).

    Raises UserError naming the image: one that can't be decoded, or that has another size than the first.
    """
    decoder = _Decoder(data, param)
    arrays: list[NDArray] = []
    taken = 0
    for name, array in _in_threads(images, decoder):
        progress()
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            found = f"{shown(name)} in {param} has {_size(array)} pixels, the images before it {_size(arrays[0])}"
            raise invalid(
                f"{found}; accepted: one size, or data.image_size, to which all are resized", "data.image_size"
            )
        taken += array.nbytes
        if taken > MAX_BYTES:
            raise invalid(
                f"the images of {param} take more than {MAX_BYTES} bytes; accepted: a smaller image_size", param
            )
        arrays.append(array)
    if not arrays:
        raise invalid(f"{param} has no images", param)
    return _stack(arrays)


def _in_threads(images: Iterable[EncodedImages], decoder: _Decoder) -> Iterator[tuple[str, NDArray]]:
    """The images in order; decoding releases Python's lock, so that threads run in parallel."""
    source = iter(images)
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        while some := list(islice(source, TOGETHER)):
            yield from zip((image.name for image in some), threads.map(decoder, some), strict=True)


def _stack(arrays: list[NDArray]) -> NDArray:
    height, width = arrays[0].shape[:2]
    channels = max(array.shape[2] for array in arrays)
    stacked = np.empty((len(arrays), channels, height, width), np.uint8)
    for index in range(len(arrays)):
        stacked[index] = np.moveaxis(arrays[index], 2, 0)  # a grey image fills all three channels
        arrays[index] = arrays[0][:0]  # freed at once: they would double the memory
    return stacked


def _size(array: NDArray) -> str:
    return f"{array.shape[0]} x {array.shape[1]}"


class _Decoder:
    """Decodes one image to (H, W, C) uint8."""

    def __init__(self, data: Pictures, param: str) -> None:
        self._size, self._channels, self._param = data.image_size, data.channels, param
        red, green, blue = data.background
        self._ground = (red, green, blue, 255)

    def __call__(self, encoded: EncodedImages) -> NDArray:
        try:
            with Image.open(io.BytesIO(encoded.content), "r", KINDS) as image:
                return self._pixels(image, encoded.name)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # a decoder may raise anything for invalid input
            raise self._refused(encoded.name, f"is not a valid image ({', '.join(KINDS)})") from error

    def _pixels(self, image: Image.Image, name: str) -> NDArray:
        if max(image.size) > MAX_SIDE:
            raise self._refused(name, f"has {image.height} x {image.width} pixels; accepted: at most {MAX_SIDE} a side")
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # whose other frames are previews
            raise self._refused(name, "has several frames; accepted: images of one frame")
        if image.mode not in _GREY | _COLOUR:
            raise self._refused(name, f"has pixels of kind {image.mode}; accepted: 8 bits a channel")
        if "transparency" in image.info and any(";16" in str(part) for part in getattr(image, "tile", ())):
            raise self._refused(name, "has a transparent colour of 16 bits a channel; accepted: 8 bits a channel")
        flat = self._opaque(_upright(image)).convert("L" if self._grey(image.mode) else "RGB")
        if self._size is not None and (flat.height, flat.width) != tuple(self._size):
            height, width = self._size
            flat = flat.resize((width, height), Image.Resampling.BILINEAR)
        array = np.asarray(flat)
        return array[:, :, None] if array.ndim == 2 else array

    def _opaque(self, image: Image.Image) -> Image.Image:
        if not image.has_transparency_data:
            return image
        return Image.alpha_composite(Image.new("RGBA", image.size, self._ground), image.convert("RGBA"))

    def _grey(self, mode: str) -> bool:
        return mode in _GREY if self._channels is None else self._channels == 1

    def _refused(self, name: str, message: str) -> UserError:
        return invalid(f"{shown(name)} in {self._param} {message}", self._param)


def _upright(image: Image.Image) -> Image.Image:
    """The upright image; one whose EXIF block can't be read is returned as stored."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # the library may raise anything for an invalid block
        turn = None
    return image if turn is None else image.transpose(turn)
