"""What is recognised, what is refused, and in which words. Nothing of it is unpickled or read as a whole."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from app.core.errors import Invalid
from app.files import inspect as module
from app.files.inspect import Inspection, inspect


def look(content: bytes) -> Inspection:
    return inspect(io.BytesIO(content), len(content))


def refusal(content: bytes) -> Invalid:
    with pytest.raises(Invalid) as caught:
        look(content)
    return caught.value


def npz(save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array))
    return buffer.getvalue()


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def tensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


# --- NumPy archives ---


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


# --- safetensors ---


def test_safetensors_are_told_by_their_header() -> None:
    weights = {"fc.weight": np.zeros((10, 64), np.float32), "n": np.array(3), "half": np.zeros(2, np.float16)}
    found = look(save(weights, metadata={"format": "pt"}))
    assert found.format == "safetensors"
    assert found.summary["arrays"] == {
        "fc.weight": {"shape": [10, 64], "dtype": "f4"},
        "n": {"shape": [], "dtype": "i8"},
        "half": {"shape": [2], "dtype": "f2"},
    }


def test_types_that_numpy_lacks_keep_their_names() -> None:
    content = tensors({"a": tensor("BF16", (4,), (0, 8)), "b": tensor("F8_E4M3", (3,), (8, 11))}, bytes(11))
    assert [array["dtype"] for array in look(content).summary["arrays"].values()] == ["bf16", "f8_e4m3"]


SOUND = tensors({"a": tensor()}, bytes(8))
LIES: dict[str, tuple[bytes, str]] = {
    "header longer than the file": (tensors({"a": tensor()}, bytes(8), length=10_000), "only"),
    "header longer than any file": (tensors({"a": tensor()}, bytes(8), length=2**64 - 1), "only"),
    "truncated": (SOUND[:-1], "7 bytes of data"),
    "one byte more": (SOUND + b"x", "9 bytes of data"),
    "offset outside": (tensors({"a": tensor(shape=(4,), offsets=(0, 16))}, bytes(8)), "end at 16"),
    "gap": (tensors({"a": tensor(), "b": tensor(offsets=(12, 20))}, bytes(20)), "gap of 4 bytes"),
    "gap at the begin": (tensors({"a": tensor(offsets=(4, 12))}, bytes(12)), "gap of 4 bytes"),
    "overlap": (tensors({"a": tensor(), "b": tensor(offsets=(4, 12))}, bytes(12)), "overlaps"),
    "same bytes twice": (tensors({"a": tensor(), "b": tensor()}, bytes(8)), "overlaps"),
    "backwards": (tensors({"a": tensor(offsets=(8, 0))}, bytes(8)), "data_offsets"),
    "negative": (tensors({"a": tensor(shape=(-2,))}, bytes(8)), "shape"),
    "boolean size": (tensors({"a": tensor(shape=(True, 2))}, bytes(8)), "shape"),
    "fractional size": (tensors({"a": tensor(shape=(2.0,))}, bytes(8)), "shape"),
    "three offsets": (tensors({"a": tensor(offsets=(0, 8, 8))}, bytes(8)), "data_offsets"),
    "more than it has": (tensors({"a": tensor(shape=(3,))}, bytes(8)), "should have 12 bytes"),
    "overflowing shape": (tensors({"a": tensor(shape=(2**62, 4))}, bytes(8)), "should have"),
    "too many axes": (tensors({"a": tensor(shape=[1] * 65 + [2])}, bytes(8)), "shape"),
    "unknown dtype": (tensors({"a": tensor("F31")}, bytes(8)), "dtype 'F31'"),
    "dtype of a wrong type": (tensors({"a": tensor(3)}, bytes(8)), "dtype 3"),  # type: ignore[arg-type]
    "extra key": (tensors({"a": {**tensor(), "code": "x"}}, bytes(8)), "nothing else"),
    "missing key": (tensors({"a": {"dtype": "F32"}}, bytes(8)), "must have"),
    "entry of a wrong type": (tensors({"a": 3}, bytes(8)), "must have"),
    "no tensors": (tensors({}), "0 tensors"),
    "only metadata": (tensors({"__metadata__": {"a": "b"}}), "0 tensors"),
    "metadata of a wrong type": (tensors({"__metadata__": {"a": 1}, "a": tensor()}, bytes(8)), "metadata"),
    "duplicate key": (tensors(b'{"a":' + json.dumps(tensor()).encode() + b',"a":3}', bytes(8)), "'a' is repeated"),
    "duplicate key inside": (tensors(b'{"a":{"dtype":"F32","dtype":"I8"}}'), "'dtype' is repeated"),
    "not UTF-8": (tensors(b'{"\xff": 1}'), "can't be read"),
    "not JSON": (tensors(b"{oops}"), "can't be read"),
    "not finite": (tensors(b'{"a": NaN}'), "NaN is not JSON"),
    "too deep": (tensors(b'{"a":' * 20_000), "can't be read"),
    "huge number": (tensors(b'{"a":' + b"9" * 5000 + b"}"), "can't be read"),
    "unprintable name": (tensors({"a\x00": tensor()}, bytes(8)), "unusable name"),
    "lone surrogate": (tensors(b'{"\\ud800":' + json.dumps(tensor()).encode() + b"}", bytes(8)), "unusable name"),
}


@pytest.mark.parametrize(("content", "message"), LIES.values(), ids=LIES)
def test_a_lying_header_is_refused(content: bytes, message: str) -> None:
    error = refusal(content)
    assert error.code == "malformed_file"
    assert message in error.message


def test_a_huge_header_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAFETENSORS_HEADER_BYTES", 50)
    error = refusal(tensors({"a": tensor(), "__metadata__": {"pad": "x" * 100}}, bytes(8)))
    assert error.code == "unsafe_file"
    assert "at most 50" in error.message


# --- data sets ---


@pytest.mark.parametrize("name", ["set/", "set/cat/1.png", "a/b.JPG", "set/state.json", "set/data-0.arrow", "a/b.webp"])
def test_an_archive_of_samples_is_left_to_the_trainer(name: str) -> None:
    assert look(archive({name: b"content"})) == Inspection("zip", {})


def test_an_archive_that_begins_with_an_array_holds_nothing_else() -> None:
    assert "not an array" in refusal(archive({"x.npy": npy(1), "a/1.png": b"content"})).message


def test_a_tar_and_a_packed_file_are_known_by_their_first_bytes() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as packed:
        packed.addfile(tarfile.TarInfo("a/1.png"))
    assert look(buffer.getvalue()) == Inspection("tar", {})
    assert look(gzip.compress(b"text,label\na,1\n")) == Inspection("gzip", {})


def test_a_parquet_file_must_begin_and_end_as_one() -> None:
    sound = b"PAR1" + bytes(50) + struct.pack("<I", 20) + b"PAR1"
    assert look(sound) == Inspection("parquet", {})
    for broken in (sound[:-1], sound[:-8] + struct.pack("<I", 900) + b"PAR1", b"PAR1", b"PAR1PAR1"):
        assert refusal(broken).code == "malformed_file"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"text,label\na,1\n", "text,label"),
        (b"\xef\xbb\xbftext\tlabel\r\na\t1", "text\tlabel"),
        ('{"text": "ü"}\n{"text": "b"}\n'.encode(), '{"text": "ü"}'),
        (b'{"text":{"a": 1}}\n{"text":{"a": 2}}\n', '{"text":{"a": 1}}'),
    ],
)
def test_lines_of_text_show_the_first(content: bytes, line: str) -> None:
    assert look(content) == Inspection("text", {"first_line": line})


def test_a_first_line_that_is_too_long_is_not_kept() -> None:
    assert look(b'{"text": "' + b"a" * module.FIRST_LINE_BYTES + b'"}\n') == Inspection("text", {})


@pytest.mark.parametrize("content", [b"text,label\n", b"a\x1b[0m\nb\n", b"\na\n"])
def test_a_line_that_tells_nothing_is_not_kept(content: bytes) -> None:
    assert look(content) == Inspection("text", {})


@pytest.mark.parametrize("content", [b"text\0label\na,1\n", b"text\xff\na\n", b"\x00" * (70 << 10)])
def test_what_is_no_text_is_refused(content: bytes) -> None:
    assert refusal(content).code == "unknown_format"


# --- anything else ---


@pytest.mark.parametrize("content", [b"", b"\xff", b"PK\x05\x06" + bytes(18), bytes(100)])
def test_anything_else_is_refused(content: bytes) -> None:
    assert refusal(content).code == "unknown_format"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_whatever_is_changed_the_answer_is_a_summary_or_a_refusal(data: st.DataObject) -> None:
    content = bytearray(
        data.draw(st.sampled_from([npz(x=np.arange(6), y=np.zeros(2)), SOUND, save({"a": np.ones(3)})]))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))]) if data.draw(st.booleans()) else bytes(content)
    try:
        found = look(cut)
    except Invalid:
        return
    assert found.summary.get("arrays") or found.format not in ("npz", "safetensors")


@pytest.mark.parametrize("content", [b"text,label\n", b'{"model_type": "bert"}'])
def test_text_of_one_line_has_no_first(content: bytes) -> None:
    assert look(content) == Inspection("text", {})
