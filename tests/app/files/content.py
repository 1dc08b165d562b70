"""Contents of files, and what is told of them."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from app.core.errors import Invalid
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
