"""Files other than archives: weights, tables, texts, and what is none of them."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from app.core.errors import Invalid
from app.files import inspect as module
from app.files.inspect import Inspection
from tests.app.files.content import LIES, SOUND, archive, look, npy, npz, refusal, tensor, tensors


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
