"""Folders of images, and images in tables."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.worker.data.formats.builders import array, columns_of, encoded, options, packed, picture, refusal
from worker.data.formats import pictures, read_samples
from worker.data.formats.columns import Samples

PARAM = "data.train"
SET = {"set/dog/2.png": picture(20), "set/cat/1.png": picture(10), "set/dog/10.png": picture(30)}


def read(path: Path, files: dict[str, bytes], **more: Any) -> Samples:
    return read_samples(packed(path, files), options("image-folder", **more), columns_of("image-classification"), PARAM)


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


def half_clear(mode: str) -> bytes:
    """A PNG of two pixels: an opaque one, and one that is clear, whose hidden colour is that of the first."""
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (2, 1), (40,) * len(mode))
        image.putalpha(Image.frombytes("L", (2, 1), bytes([255, 0])))
        return encoded(image)
    if mode == "P":
        image = Image.frombytes(mode, (2, 1), bytes([0, 1]))
        image.putpalette([40] * 6)
        return encoded(image, transparency=bytes([255, 0]))
    image = Image.frombytes("L", (2, 1), bytes([0, 255])).convert(mode)
    return encoded(image, transparency=(255, 255, 255) if mode == "RGB" else 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "RGB"])
def test_what_is_transparent_shows_the_background(tmp_path: Path, mode: str) -> None:
    files = {"a/1.png": half_clear(mode)}
    white = array(read(tmp_path / "a.zip", files))[0]
    assert (white[:, 0, 1] == 255).all()
    assert (white[:, 0, 0] < 50).all()
    green = array(read(tmp_path / "b.zip", files, background=[10, 200, 30], channels=3))[0]
    assert green[:, 0, 1].tolist() == [10, 200, 30]
    assert (green[:, 0, 0] < 50).all()


def test_half_transparent_pixels_are_mixed(tmp_path: Path) -> None:
    clear = encoded(Image.new("RGBA", (5, 6), (50, 60, 70, 51)))
    found = array(read(tmp_path / "a.zip", {"a/1.png": clear}, background=[100, 110, 120]))
    assert found[0, :, 0, 0].tolist() == [90, 100, 110]
    small = array(read(tmp_path / "b.zip", {"a/1.png": half_clear("RGBA")}, image_size=[1, 1]))
    assert np.abs(small.astype(int) - (40 + 255) / 2).max() <= 1  # the hidden colour does not come through


def test_a_grey_image_over_a_colour_stays_grey_by_default(tmp_path: Path) -> None:
    grey = {"a/1.png": encoded(Image.new("LA", (2, 1), (9, 0)))}
    assert array(read(tmp_path / "a.zip", grey, background=[7, 7, 7])).tolist() == [[[[7, 7]]]]


UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT, 1),
    7: UPRIGHT[::-1, ::-1].T,
    8: np.rot90(UPRIGHT, -1),
}
"""By the value of the tag, how a camera that was held so stores what is looked at upright."""


def tagged(orientation: int, kind: str = "PNG") -> bytes:
    """Pixels stored in the orientation of the tag; large, so that JPEG preserves them."""
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    large = np.kron(STORED[orientation], np.ones((16, 16), np.uint8))
    more = {"lossless": True} if kind == "WEBP" else {}
    return encoded(Image.fromarray(large), kind, exif=exif, **more)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_turned_upright(tmp_path: Path, orientation: int, kind: str) -> None:
    files = {f"a/1.{kind.lower()}": tagged(orientation, kind)}
    found = array(read(tmp_path / "a.zip", files, channels=1))[0, 0]
    assert found.shape == (32, 48)
    assert np.abs(found[8::16, 8::16].astype(int) - UPRIGHT).max() <= 3


@pytest.mark.parametrize("shape", ["bytes", "struct"])
def test_images_in_tables_are_turned_upright_too(tmp_path: Path, shape: str) -> None:
    images = [tagged(orientation) for orientation in STORED]
    column: list[Any] = images if shape == "bytes" else [{"bytes": each, "path": None} for each in images]
    table = pa.table({"image": column, "label": [0, 1] * 4})
    pq.write_table(table, tmp_path / "t.parquet")
    with pa.ipc.new_stream(buffer := io.BytesIO(), table.schema) as stream:
        stream.write_table(table)
    state = json.dumps({"_data_files": [{"filename": "data.arrow"}]}).encode()
    packed(tmp_path / "t.tar", {"set/state.json": state, "set/data.arrow": buffer.getvalue()})
    for kind, name in (("parquet", "t.parquet"), ("hf-dataset", "t.tar")):
        data = options(kind, input_columns=["image"], label_columns=["label"])
        found = array(read_samples(tmp_path / name, data, columns_of("image-classification"), PARAM))[:, 0]
        assert (found[:, 8::16, 8::16] == UPRIGHT).all()


def test_a_broken_orientation_is_none(tmp_path: Path) -> None:
    broken = encoded(Image.fromarray(UPRIGHT), exif=b"Exif\x00\x00nonsense")
    assert array(read(tmp_path / "a.zip", {"a/1.png": broken}))[0, 0].tolist() == UPRIGHT.tolist()


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


MOVING_PNG = encoded(Image.new("RGB", (5, 6)), save_all=True, append_images=[Image.new("RGB", (5, 6), "red")])


def deep_and_clear() -> bytes:
    """A PNG of 16 bits a channel with a transparent colour."""
    header = b"IHDR" + (1).to_bytes(4) * 2 + bytes([16, 2, 0, 0, 0])
    chunks = [header, b"tRNS" + bytes(6), b"IDAT" + zlib.compress(bytes(7)), b"IEND"]
    sized = [len(chunk[4:]).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(sized)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a/1.png", b"not an image", "not a valid image"),
        ("a/1.png", picture()[:40], "not a valid image"),
        ("a/1.png", picture(kind="GIF"), "not a valid image"),
        ("a/1.png", bomb(), "5000 x 5000 pixels"),
        ("a/1.webp", MOVING, "several frames"),
        ("a/1.png", MOVING_PNG, "several frames"),
        ("a/1.png", deep_and_clear(), "16 bits a channel"),
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
    assert "has no images" in said(tmp_path / "a.zip", {".hidden": b""})


def test_decoded_images_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_BYTES", 200)
    assert "take more than 200 bytes" in said(tmp_path / "a.zip", SET)
