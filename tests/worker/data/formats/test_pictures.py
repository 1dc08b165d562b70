"""Folders of images, and images in tables."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.worker.data.formats.builders import array, encoded, options, packed, picture, refusal
from worker.data.formats import pictures, read_samples
from worker.data.formats.columns import Samples

PARAM = "data.train"
SET = {"set/dog/2.png": picture(20), "set/cat/1.png": picture(10), "set/dog/10.png": picture(30)}


def read(path: Path, files: dict[str, bytes], **more: Any) -> Samples:
    return read_samples(packed(path, files), options("image-folder", **more), "image-classification", PARAM)


def said(path: Path, files: dict[str, bytes], **more: Any) -> str:
    return refusal(packed(path, files), options("image-folder", **more), "image-classification").message


@pytest.mark.parametrize("kind", ["a.tar", "a.tar.gz", "a.zip"])
def test_folders_are_classes_and_paths_the_order(tmp_path: Path, kind: str) -> None:
    found = read(tmp_path / kind, SET)
    assert found.labels == ["cat", "dog", "dog"]
    assert array(found).shape == (3, 3, 6, 5)
    assert array(found).dtype == np.uint8
    assert array(found)[:, 0, 0, 0].tolist() == [10, 30, 20]


def test_what_systems_leave_in_folders_is_passed_over(tmp_path: Path) -> None:
    litter = {"__MACOSX/set/dog/._2.png": b"x", "set/.DS_Store": b"x", "set/dog/Thumbs.db": b"x"}
    assert read(tmp_path / "a.zip", SET | litter).labels == ["cat", "dog", "dog"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
def test_every_kind_of_image_is_decoded(tmp_path: Path, kind: str) -> None:
    suffix = {"JPEG": "jpg"}.get(kind, kind.lower())
    found = read(tmp_path / "a.zip", {f"a/1.{suffix}": picture(100, kind=kind), f"b/1.{suffix}": picture(7, kind=kind)})
    assert np.abs(array(found)[:, :, 2, 2].astype(int) - [[100] * 3, [7] * 3]).max() <= 3


def test_grey_images_have_one_channel_and_three_beside_colours(tmp_path: Path) -> None:
    grey = {"a/1.png": picture(9, mode="L"), "b/1.png": picture(8, mode="L")}
    assert array(read(tmp_path / "a.zip", grey)).shape == (2, 1, 6, 5)
    assert array(read(tmp_path / "a.zip", grey, channels=3)).shape == (2, 3, 6, 5)
    both = array(read(tmp_path / "a.zip", {**grey, "c/1.png": picture(7)}))
    assert both[:, :, 0, 0].tolist() == [[9] * 3, [8] * 3, [7] * 3]
    assert array(read(tmp_path / "a.zip", {**grey, "c/1.png": picture(7)}, channels=1)).shape == (3, 1, 6, 5)


def test_transparency_is_dropped(tmp_path: Path) -> None:
    clear = encoded(Image.new("RGBA", (5, 6), (50, 60, 70, 0)))
    assert array(read(tmp_path / "a.zip", {"a/1.png": clear}))[0, :, 0, 0].tolist() == [50, 60, 70]


def test_images_are_stretched_to_one_size(tmp_path: Path) -> None:
    mixed = {"a/1.png": picture(9), "b/1.png": picture(8, size=(20, 9))}
    message = said(tmp_path / "a.zip", mixed)
    assert "'b/1.png'" in message
    assert "20 x 9" in message
    assert "data.image_size" in message
    found = array(read(tmp_path / "a.zip", mixed, image_size=[4, 7]))
    assert found.shape == (2, 3, 4, 7)
    assert found[:, 0, 2, 3].tolist() == [9, 8]


def bomb() -> bytes:
    """A PNG that claims more pixels than it could hold."""
    header = b"IHDR" + (5000).to_bytes(4) * 2 + bytes([8, 2, 0, 0, 0])
    content = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [len(chunk[4:]).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) for chunk in (header, content)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


MOVING = encoded(Image.new("RGB", (5, 6)), "WEBP", save_all=True, append_images=[Image.new("RGB", (5, 6), "red")])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a/1.png", b"not an image", "not a sound image"),
        ("a/1.png", picture()[:40], "not a sound image"),
        ("a/1.png", picture(kind="GIF"), "not a sound image"),
        ("a/1.png", bomb(), "5000 x 5000 pixels"),
        ("a/1.webp", MOVING, "moves"),
        ("a/1.png", picture(mode="I;16"), "8 bits a channel"),
        ("a/1.txt", b"words", "is no image"),
        ("1.png", picture(), "class/image"),
        ("a/b/c/1.png", picture(), "class/image"),
    ],
)
def test_what_is_no_image_of_a_class_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    found = said(tmp_path / "a.zip", {"a/0.png": picture(), "b/0.png": picture(), name: content})
    assert message in found
    assert name in found


def test_an_archive_without_images_is_refused(tmp_path: Path) -> None:
    assert "holds no images" in said(tmp_path / "a.zip", {".hidden": b""})


def test_decoded_images_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_BYTES", 200)
    assert "take more than 200 bytes" in said(tmp_path / "a.zip", SET)
