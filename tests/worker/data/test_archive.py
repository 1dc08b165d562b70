"""Reading untrusted archives."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from app.recipe.data.facts import ArrayFacts
from worker.data import archive
from worker.data.archive import read_array, read_headers
from worker.errors import UserError

PARAM = "data.train"


def write(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def write_raw(path: Path, header: dict[str, Any], payload: bytes) -> Path:
    """An archive whose array `x` has any header and any payload."""
    content = io.BytesIO()
    npy.write_array_header_1_0(content, header)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.npy", content.getvalue() + payload)
    return path


def refusal(path: Path, name: str | None = None) -> UserError:
    with pytest.raises(UserError) as caught:
        read_headers(path, PARAM) if name is None else read_array(path, name, PARAM)
    assert caught.value.code == "invalid_data"
    assert caught.value.param == PARAM
    return caught.value


def test_headers_are_shape_and_dtype_of_every_array(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=np.zeros((3, 4, 4), np.uint8), y=np.zeros(3, ">i8"))
    assert read_headers(path, PARAM) == {"x": ArrayFacts((3, 4, 4), "u1"), "y": ArrayFacts((3,), "i8")}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(12, dtype=np.float64).reshape(3, 4)),
        np.zeros((0, 5), np.float32),
    ],
)
def test_arrays_come_back_as_they_were_in_native_order(tmp_path: Path, array: Any) -> None:
    found = read_array(write(tmp_path / "a.npz", x=array), "x", PARAM)
    np.testing.assert_array_equal(found, array)
    assert found.dtype.isnative
    assert found.flags.c_contiguous


def test_objects_are_refused_without_being_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    path = write(tmp_path / "a.npz", x=np.array([Trap()], dtype=object))
    assert "Python objects" in refusal(path).message
    assert "Python objects" in refusal(path, "x").message
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(b"\x80\x04not a zip file")
    assert "not a valid NumPy archive" in refusal(path).message


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", x=np.random.default_rng(0).random((50, 50)))
    path.write_bytes(path.read_bytes()[:-200])
    assert "not a valid NumPy archive" in refusal(path).message


def test_damaged_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(1000))
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    assert "not a valid NumPy archive" in refusal(path, "x").message


def test_a_header_that_claims_more_than_there_is_gets_refused(tmp_path: Path) -> None:
    header = {"shape": (10**9, 10**9), "fortran_order": False, "descr": "<f8"}
    assert "declares" in refusal(write_raw(tmp_path / "a.npz", header, b"12345678")).message


def test_bytes_beyond_the_shape_are_refused(tmp_path: Path) -> None:
    header = {"shape": (1,), "fortran_order": False, "descr": "<f8"}
    path = write_raw(tmp_path / "a.npz", header, b"0" * 16)
    assert "more bytes than its shape" in refusal(path, "x").message


def test_an_array_above_the_cap_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_ARRAY_BYTES", 1000)
    assert "more than 1000 bytes" in refusal(write(tmp_path / "a.npz", x=np.zeros(1000))).message


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FREE_BYTES", 10_000)
    assert "packed size" in refusal(write(tmp_path / "a.npz", x=np.zeros(200_000, np.uint8))).message


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3))
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag in the local header, then in the directory
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    assert "not a valid NumPy archive" in refusal(path).message
