"""What is recognised, what is refused, and in which words. Nothing of it is unpickled or read as a whole."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from app.files import inspect as module
from app.files.inspect import inspect
from tests.app.files.content import archive, look, npy, npz, refusal


@pytest.mark.parametrize("save_arrays", [np.savez, np.savez_compressed])
def test_an_archive_is_told_by_its_headers(save_arrays: Callable[..., None]) -> None:
    images, labels = np.zeros((5, 8, 8), np.uint8), np.arange(5)
    scalar, names = np.float32(3), np.array(["a", "bc"])
    found = look(npz(save_arrays, x=images, y=labels, s=scalar, n=names, big=np.zeros((2, 0), ">f8")))
    assert found.format == "npz"
    assert found.summary["arrays"] == {
        "x": {"shape": [5, 8, 8], "dtype": "u1"},
        "y": {"shape": [5], "dtype": "i8"},
        "s": {"shape": [], "dtype": "f4"},
        "n": {"shape": [2], "dtype": "U2"},
        "big": {"shape": [2, 0], "dtype": "f8"},
    }


def test_a_header_of_version_2_is_read() -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.arange(3, dtype="i4"), version=(2, 0))
    assert look(archive({"x.npy": buffer.getvalue()})).summary["arrays"] == {"x": {"shape": [3], "dtype": "i4"}}


def test_objects_are_refused() -> None:
    error = refusal(npz(x=np.array([{"a": 1}], dtype=object)))
    assert error.code == "unsafe_file"
    assert "holds Python objects" in error.message


def test_records_are_refused() -> None:
    assert "dtype" in refusal(npz(x=np.zeros(3, dtype=[("a", "f4"), ("b", "i4")]))).message


class Trap:
    """Unpickling one of these would be noticed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("the file was unpickled",)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_loaded(protocol: int) -> None:
    error = refusal(pickle.dumps(Trap(), protocol))
    assert error.code == "unsafe_file"
    assert "is a pickle" in error.message


TORCH = {"archive/data.pkl": pickle.dumps(Trap()), "archive/data/0": b"1234", "archive/version": b"3\n"}


@pytest.mark.parametrize("name", ["data.pkl", "model/other.pkl"])
def test_a_pickle_in_an_archive_is_refused(name: str) -> None:
    error = refusal(archive({name: pickle.dumps(Trap()), "archive/data/0": b"1234"}))
    assert "holds a pickle" in error.message


@pytest.mark.parametrize("content", [archive(TORCH), module.LEGACY_TORCH + pickle.dumps(Trap())])
def test_what_torch_saved_is_recognised_and_not_loaded(content: bytes) -> None:
    assert look(content) == module.Inspection("torch", {"arrays": {}})


@pytest.mark.parametrize(
    "name", ["archive/code/__torch__.py", "archive/constants.pkl", "other.npy", "../archive/data/1"]
)
def test_an_archive_of_torch_that_holds_more_than_weights_is_refused(name: str) -> None:
    assert refusal(archive({**TORCH, name: b"x"})).code == "unsafe_file"


def test_text_is_recognised_whatever_its_alphabet() -> None:
    assert look("[PAD]\n[UNK]\nété\n語\n".encode()).format == "text"
    assert look(b'{"model_type": "bert"}').format == "text"


@pytest.mark.parametrize("content", ["é".encode()[:1], b"a\0b", b"caf\xe9"])
def test_what_is_no_utf8_is_no_text(content: bytes) -> None:
    assert refusal(content).code == "unknown_format"


def test_of_a_long_text_only_the_begin_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TEXT_BYTES", module.TEXT_CHUNK)
    assert look(b"x" * module.TEXT_CHUNK + b"\0").format == "text"
    assert refusal(b"x" * (module.TEXT_CHUNK - 1) + b"\0").code == "unknown_format"


def test_a_bomb_is_refused_by_its_ratio() -> None:
    error = refusal(archive({"x.npy": npy(np.zeros(module.BOMB_BYTES + 1, np.uint8))}))
    assert error.code == "unsafe_file"
    assert "times its size" in error.message


def test_many_zeros_below_the_bombs_size_are_fine() -> None:
    assert look(archive({"x.npy": npy(np.zeros(1 << 20, np.uint8))})).format == "npz"


def test_the_total_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 1 << 20)
    assert "unpacks to" in refusal(archive({f"{i}.npy": npy(np.zeros(1 << 19, np.uint8)) for i in range(3)})).message


def test_too_many_members_are_refused() -> None:
    assert "1001 members" in refusal(archive({f"{i}.npy": npy(0) for i in range(1001)})).message


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/../../x.npy", "C:x.npy", "a\nb.npy"])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    assert refusal(archive({name: npy(1)})).code == "unsafe_file"


def test_a_backslash_in_a_name_is_refused() -> None:
    content = archive({"a_b.npy": npy(1)}).replace(b"a_b.npy", b"a\\b.npy")
    assert refusal(content).code == "unsafe_file"


@pytest.mark.parametrize("name", ["x.txt", ".npy", "x", "model.safetensors"])
def test_a_member_that_is_no_array_is_refused(name: str) -> None:
    assert "not an array" in refusal(archive({name: npy(1)})).message


def test_two_members_of_one_name_are_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.npy", npy(1))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("x.npy", npy(2))
    assert "two members" in refusal(buffer.getvalue()).message


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_compression_is_refused(method: int) -> None:
    assert f"method {method}" in refusal(archive({"x.npy": npy(np.arange(9))}, method)).message


def test_encryption_is_refused() -> None:
    content = bytearray(archive({"x.npy": npy(1)}))
    directory = content.rindex(b"PK\x01\x02")
    content[directory + 8] |= 1
    assert "encrypted" in refusal(bytes(content)).message


def test_overlapping_members_are_refused() -> None:
    content = bytearray(archive({"a.npy": npy(np.arange(50)), "b.npy": npy(np.arange(50))}, zipfile.ZIP_STORED))
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = struct.pack("<I", 0)  # the second entry now points at the first member
    assert "overlap" in refusal(bytes(content)).message


@pytest.mark.parametrize("change", [1, -1, 8])
def test_a_header_that_lies_about_the_size_is_refused(change: int) -> None:
    content = npy(np.arange(4))
    wrong = content + b"x" * change if change > 0 else content[:change]
    error = refusal(archive({"x.npy": wrong}))
    assert error.code == "malformed_file"
    assert "should have" in error.message


def header_npy(text: bytes, version: bytes = b"\x01\x00") -> bytes:
    length = struct.pack("<H" if version[:1] == b"\x01" else "<I", len(text))
    return b"\x93NUMPY" + version + length + text


@pytest.mark.parametrize(
    "text",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1e9,), }\n",
        b"{'descr': '<f4', 'shape': (1,), }\n",
        b"{'descr': 'nonsense', 'fortran_order': False, 'shape': (1,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 70 + b"), }\n",
        b"__import__('os').system('true')\n",
        b"(" * 9000,
        b"{" * 9000,
        b"\xff\xfe",
        b"",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_header_that_makes_no_sense_is_refused(text: bytes) -> None:
    assert refusal(archive({"x.npy": header_npy(text)})).code == "malformed_file"


def test_a_huge_header_is_not_unpacked() -> None:
    lies = b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b" " * (1 << 20)
    assert refusal(archive({"x.npy": lies})).code == "malformed_file"


@pytest.mark.parametrize("content", [b"not npy", b"\x93NUMPY\x03\x00", b"\x93NUMPY", b""])
def test_a_member_without_a_sound_header_is_refused(content: bytes) -> None:
    assert "not a valid array" in refusal(archive({"x.npy": content})).message


def test_a_huge_directory_is_not_read() -> None:
    content = bytearray(archive({"x.npy": npy(1)}))
    end = content.rindex(b"PK\x05\x06")
    padded = content[:end] + b"\0" * (module.MAX_DIRECTORY_BYTES + 1) + content[end:]
    place = padded.rindex(b"PK\x05\x06")
    padded[place + 12 : place + 16] = struct.pack("<I", module.MAX_DIRECTORY_BYTES + 1)
    assert "directory has more than" in refusal(bytes(padded)).message


def test_only_headers_are_read() -> None:
    content = npz(x=np.zeros((1000, 1000), np.uint8))

    class Counting(io.BytesIO):
        total = 0

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            Counting.total += len(data)
            return data

    assert inspect(Counting(content), len(content)).format == "npz"
    assert Counting.total < 100_000
