"""Packs a folder of images, or a saved data set, into the archive that jobs read.

The same content gives the same bytes, so that an archive that the service already has is not sent again.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stillhouse.errors import BadRequest

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
SAVED_DATA_SET = ("dataset_info.json", "dataset_dict.json")
"""Files that `save_to_disk` of Hugging Face `datasets` writes at the top of its folder."""
IMAGE_FOLDER, HF_DATASET = "image-folder", "hf-dataset"


class Packed(NamedTuple):
    """A packed folder."""

    path: Path
    format: str
    """Its name for `data.format`."""
    files: int
    left_out: int
    """Number of files that are not images."""


def pack(folder: Path, into: Path, param: str) -> Packed:
    """Write a folder to `into/NAME.tar`. Raises `BadRequest`, naming `param`, if jobs can't read it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path, folder))
    if any((folder / name).is_file() for name in SAVED_DATA_SET):
        return _write(folder, files, into, HF_DATASET, 0)
    pictures = [path for path in files if path.suffix.lower() in PICTURES]
    _require_classes(folder, pictures, param)
    return _write(folder, pictures, into, IMAGE_FOLDER, len(files) - len(pictures))


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _require_classes(folder: Path, pictures: list[Path], param: str) -> None:
    places = [path.relative_to(folder).parts for path in pictures]
    wanted = "a folder with one folder of images for each class, as in cats/1.png"
    if not places:
        kinds = ", ".join(sorted(PICTURES))
        raise BadRequest(f"{param}: {str(folder)!r} has no images ({kinds}); accepted: {wanted}")
    deep = sorted({place[0] for place in places if len(place) > 2})
    if deep and len({place[0] for place in places}) > 1:
        found = f"{str(folder)!r} has nested folders ({', '.join(deep[:5])})"
        raise BadRequest(f"{param}: {found}; name the one to train on, and another as data.eval; accepted: {wanted}")
    if any(len(place) < 2 for place in places):
        raise BadRequest(f"{param}: {str(folder)!r} has images outside of the class folders; accepted: {wanted}")


def _write(folder: Path, paths: list[Path], into: Path, format: str, left_out: int) -> Packed:
    target = into / f"{folder.resolve().name}.tar"
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        for entry, path in _entries(folder, paths):
            with path.open("rb") as content:
                archive.addfile(entry, content)
    return Packed(target, format, len(paths), left_out)


def _entries(folder: Path, paths: list[Path]) -> Iterator[tuple[tarfile.TarInfo, Path]]:
    """Archive entries with name and size only: owner and time of a file are not part of its content."""
    for path in paths:
        entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
        entry.size = path.stat().st_size
        yield entry, path
