"""Reads an archive with one folder of images for each class."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from app.recipe.data.sources import ImageFolderData
from worker.data.formats.column_readers import ColumnReader
from worker.data.formats.columns import CLASS_NAME, Samples, is_class_name
from worker.data.formats.faults import invalid, shown
from worker.data.formats.packs import members
from worker.data.formats.pictures import LARGEST, EncodedImages, decode

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
_IGNORED = {"Thumbs.db", "desktop.ini"}


def read_folder(path: Path, data: ImageFolderData, reader: ColumnReader, param: str) -> Samples:
    """All images, in the order of their paths, labelled with the names of their folders; a UserError names the file."""
    places: list[PurePosixPath] = []

    def images() -> Iterator[EncodedImages]:
        for place, content in members(path, LARGEST, param):
            if _is_image(place, param):
                places.append(place)
                yield EncodedImages(str(place), content)

    pixels = decode(images(), data, param)
    folders = _classes(places, param)
    order = sorted(range(len(places)), key=places.__getitem__)  # two archives of the same files give the same set
    return Samples(pixels[order], [folders[index] for index in order])


def _is_image(place: PurePosixPath, param: str) -> bool:
    """Whether to read a file; hidden files and files of operating systems are skipped."""
    if any(part.startswith((".", "__MACOSX")) for part in place.parts) or place.name in _IGNORED:
        return False
    if place.suffix.lower() not in SUFFIXES:
        accepted = ", ".join(sorted(SUFFIXES))
        raise invalid(f"{shown(str(place))} in {param} is no image; accepted: files ending in {accepted}", param)
    return True


def _classes(places: list[PurePosixPath], param: str) -> list[str]:
    """The folder of each image, which is its class."""
    parts = [place.parts for place in places]
    depth = 0
    while len({part[depth] for part in parts}) == 1 and all(len(part) > depth + 2 for part in parts):
        depth += 1
    for place, part in zip(places, parts, strict=True):
        if len(part) != depth + 2:
            found = f"{shown(str(place))} in {param} is not directly in a folder of a class"
            raise invalid(f"{found}; accepted: class/image", param)
        if not is_class_name(part[depth]):
            raise invalid(f"{param} has a folder {shown(part[depth])}; accepted: {CLASS_NAME}", param)
    return [part[depth] for part in parts]
