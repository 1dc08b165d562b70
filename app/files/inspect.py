"""Recognises the format of uploaded files from their headers, and rejects inconsistent or harmful ones.

Nothing here unpickles, and only headers are read: a file may be larger than memory.
"""

from __future__ import annotations

import codecs
import io
import json
import math
import re
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np

from app.core.errors import Invalid

MAX_MEMBERS = 1000
MAX_DIRECTORY_BYTES = 4 << 20
"""Largest directory of a zip archive: a thousand members need a tenth of it."""
MAX_TORCH_MEMBERS = 40_000
"""Most members of a torch.save archive: one per tensor, including those of an optimizer's state."""
_TORCH_INDEX = re.compile(r"[^/]+/data\.pkl")
_TORCH_MEMBER = re.compile(r"[^/]+/(data\.pkl|data/[0-9]+|version|byteorder|\.?[a-z_]+|\.data/serialization_id)")
MAX_UNPACKED_BYTES = 64 << 30
BOMB_BYTES = 64 << 20
BOMB_RATIO = 50
"""A member that unpacks to more than BOMB_BYTES may be at most this many times larger than packed."""
LOCAL_HEADER_BYTES = 30
"""Smallest header of a zip member; its name follows."""
NPY_HEADER_BYTES = 16 << 10
MAX_DIMENSIONS = 64
MAX_TENSORS = 10_000
SAFETENSORS_HEADER_BYTES = 8 << 20
"""The format allows 100 MB, which would take gigabytes to parse; 10,000 tensors need about one."""
FIRST_LINE_BYTES = 64 << 10
"""Longest first line that is read; a longer one is left to the trainer."""
_SAMPLE_FILES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".arrow", ".json", "/")
"""Endings of the names of data set files, and of folders; NumPy arrays are not in folders."""
_NPY_KINDS = "biufcSU"
_SAFETENSORS_DTYPES = {
    "BOOL": ("b1", 1),
    "U8": ("u1", 1),
    "I8": ("i1", 1),
    "F8_E4M3": ("f8_e4m3", 1),
    "F8_E5M2": ("f8_e5m2", 1),
    "U16": ("u2", 2),
    "I16": ("i2", 2),
    "F16": ("f2", 2),
    "BF16": ("bf16", 2),
    "U32": ("u4", 4),
    "I32": ("i4", 4),
    "F32": ("f4", 4),
    "U64": ("u8", 8),
    "I64": ("i8", 8),
    "F64": ("f8", 8),
}
"""Name in the format: NumPy's notation where it has one, and bytes per element."""
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    ValueError,
    EOFError,
    OverflowError,
    RuntimeError,
)
_BROKEN_HEADER = (
    ValueError,
    SyntaxError,
    TypeError,
    KeyError,
    EOFError,
    OverflowError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)

LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""Begin of files that torch.save wrote before it used zip archives: a pickled magic number."""
TEXT_CHUNK = 1 << 20
MAX_TEXT_BYTES = 64 << 20
"""Bytes of a text that are checked; the tokenizers of the largest vocabularies in use have half as many."""

Format = Literal["npz", "safetensors", "torch", "parquet", "text", "gzip", "tar", "zip"]
_NAMES = (
    "a NumPy archive (.npz) with arrays",
    "safetensors",
    "a file written by torch.save",
    "Parquet",
    "text in UTF-8 (CSV, JSON lines, JSON)",
    "an archive (tar, tar.gz, zip) of images or of a saved data set",
)


@dataclass(frozen=True)
class Inspection:
    """Format of a file, and a summary of its headers: `{"arrays": {name: {"shape": [...], "dtype": "f4"}}}` for arrays
    (none if reading them would need unpickling), and `{"first_line": "..."}` for lines of text. Only the trainer
    reads packed samples."""

    format: Format
    summary: dict[str, Any]


def inspect(file: BinaryIO, size: int) -> Inspection:
    """Recognise a seekable file of `size` bytes. Raises `Invalid` with a description of the fault."""
    head = file.read(512)
    if head[:4] == b"PK\x03\x04":
        return Inspection("zip", {}) if _holds_samples(head) else _archive(file, size)
    if head[: len(LEGACY_TORCH)] == LEGACY_TORCH:
        return Inspection("torch", {"arrays": {}})
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        raise _unsafe("is a pickle, which can run code when it is loaded; send safetensors or npz")
    if head[:2] == b"\x1f\x8b":
        return Inspection("gzip", {})
    if head[257:262] == b"ustar":
        return Inspection("tar", {})
    if head[:4] == b"PAR1":
        return Inspection("parquet", _parquet(file, size))
    if head[8:9] == b"{" and (b"\0" in head[:8] or not head[:8].isascii()):  # JSON lines may have a brace here
        return Inspection("safetensors", {"arrays": _safetensors(file, size)})
    return Inspection("text", _text(file))


def _holds_samples(head: bytes) -> bool:
    """Whether the first member of a zip archive is a sample file and not an array."""
    (length,) = struct.unpack_from("<H", head.ljust(LOCAL_HEADER_BYTES), 26)
    name = head[LOCAL_HEADER_BYTES : LOCAL_HEADER_BYTES + length]
    return name.lower().endswith(tuple(suffix.encode() for suffix in _SAMPLE_FILES))


def _parquet(file: BinaryIO, size: int) -> dict[str, Any]:
    """Check the magic bytes at both ends; the metadata at the end is left to the trainer."""
    file.seek(max(size - 8, 0))
    length, magic = struct.unpack("<I4s", file.read(8).rjust(8))
    if size < 12 or magic != b"PAR1" or length > size - 12:
        raise _broken("begins like a Parquet file but does not end like one")
    return {}


def _text(file: BinaryIO) -> dict[str, Any]:
    """The first of several lines, unless it is too long or not printable."""
    if not _is_text(file):
        raise Invalid("unknown_format", "is not one of " + ", ".join(_NAMES))
    file.seek(0)
    line, newline, rest = file.read(FIRST_LINE_BYTES).removeprefix(b"\xef\xbb\xbf").partition(b"\n")
    shown = line.removesuffix(b"\r").decode("utf-8") if newline and rest else ""
    return {"first_line": shown} if shown.replace("\t", " ").isprintable() and shown else {}


def _is_text(file: BinaryIO) -> bool:
    """Whether a file begins as UTF-8 without control characters that text does not have, and is not empty."""
    file.seek(0)
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        while read < MAX_TEXT_BYTES and (chunk := file.read(TEXT_CHUNK)):
            read += len(chunk)
            if "\0" in decoder.decode(chunk):
                return False
        if read < MAX_TEXT_BYTES:
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return read > 0


def _unsafe(message: str) -> Invalid:
    return Invalid("unsafe_file", message)


def _broken(message: str) -> Invalid:
    return Invalid("malformed_file", message)


def _archive(file: BinaryIO, size: int) -> Inspection:
    try:
        with zipfile.ZipFile(_ShortReads(file)) as archive:
            members = archive.infolist()
            if any(_TORCH_INDEX.fullmatch(member.filename) for member in members):
                _check_members(members, size, MAX_TORCH_MEMBERS, _check_torch_name)
                return Inspection("torch", {"arrays": {}})
            _check_members(members, size, MAX_MEMBERS, _check_array_name)
            arrays = {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
            return Inspection("npz", {"arrays": arrays})
    except _BROKEN_ZIP as error:
        raise _broken(f"is not a valid zip archive: {error}") from error


class _ShortReads:
    """Limits the size of a single read: `zipfile` trusts the sizes that an archive claims."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise ValueError(f"its directory has more than {MAX_DIRECTORY_BYTES} bytes")
        return self._file.read(size)


def _check_members(members: list[zipfile.ZipInfo], size: int, most: int, check_name: Callable[[str], None]) -> None:
    if not members:
        raise _broken("holds no arrays")
    if len(members) > most:
        raise _unsafe(f"has {len(members)} members; at most {most} are allowed")
    names = Counter(member.filename for member in members)
    for member in members:
        check_name(member.filename)
        if names[member.filename] > 1:
            raise _broken(f"has two members named {member.filename!r}")
        _check_packing(member)
    _check_overlap(sorted(members, key=lambda member: member.header_offset), size)
    if (unpacked := sum(member.file_size for member in members)) > MAX_UNPACKED_BYTES:
        raise _unsafe(f"unpacks to {unpacked} bytes; at most {MAX_UNPACKED_BYTES} are allowed")


def _check_overlap(members: list[zipfile.ZipInfo], size: int) -> None:
    """Reject members that share bytes: with them a small archive unpacks to a huge size at an inconspicuous ratio."""
    ends = [member.header_offset + LOCAL_HEADER_BYTES + member.compress_size for member in members]
    starts = [member.header_offset for member in members[1:]] + [size]
    if any(start < end for start, end in zip(starts, ends, strict=True)):
        raise _unsafe("has members that overlap")


def _check_array_name(name: str) -> None:
    if name.endswith(".pkl"):
        raise _unsafe(f"holds a pickle ({name!r}), which can run code when it is loaded; send safetensors or npz")
    _check_path(name)
    if not name.endswith(".npy") or name == ".npy":
        raise _broken(f"has a member {name!r} that is not an array (.npy)")


def _check_torch_name(name: str) -> None:
    """Check a member of a torch.save archive; its pickle is only read by a reader that creates nothing but tensors."""
    _check_path(name)
    if not _TORCH_MEMBER.fullmatch(name):
        raise _unsafe(f"holds {name!r}, which is not part of saved weights; save a state_dict, not a program")


def _check_path(name: str) -> None:
    if name.startswith("/") or "\\" in name or ":" in name or ".." in name.split("/") or not name.isprintable():
        raise _unsafe(f"has a member with the unsafe name {name!r}")


def _check_packing(member: zipfile.ZipInfo) -> None:
    name = member.filename
    if member.flag_bits & 0x1:
        raise _unsafe(f"member {name!r} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _unsafe(f"member {name!r} is compressed by method {member.compress_type}; use stored or deflated")
    if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
        raise _broken(f"member {name!r} is not compressed, but has two sizes")
    if member.file_size > BOMB_BYTES and member.file_size > BOMB_RATIO * member.compress_size:
        ratio = member.file_size // max(member.compress_size, 1)
        raise _unsafe(f"member {name!r} unpacks to {ratio} times its size; at most {BOMB_RATIO} times is allowed")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> dict[str, Any]:
    """Shape and dtype of one member, whose size must match them."""
    name = member.filename
    with archive.open(member) as packed:
        header = io.BytesIO(packed.read(NPY_HEADER_BYTES))
    try:
        version = np.lib.format.read_magic(header)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"it has version {version[0]}.{version[1]} of the format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(header)
    except _BROKEN_HEADER as error:
        raise _broken(f"member {name!r} is not a valid array: {_first_line(error)}") from error
    if dtype.hasobject:
        raise _unsafe(f"array {name!r} holds Python objects, which are pickles; send numbers")
    if dtype.kind not in _NPY_KINDS:
        raise _broken(f"array {name!r} has dtype {dtype}; send numbers or text")
    if len(shape) > MAX_DIMENSIONS or any(length < 0 for length in shape):
        raise _broken(f"array {name!r} has an impossible shape")
    stated = header.tell() + math.prod(shape) * dtype.itemsize
    if stated != member.file_size:
        raise _broken(f"array {name!r} should have {stated} bytes by its header, but has {member.file_size}")
    return {"shape": list(shape), "dtype": dtype.str[1:]}


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _safetensors(file: BinaryIO, size: int) -> dict[str, Any]:
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > size - 8:
        raise _broken(f"declares a header of {length} bytes, but only {size - 8} follow")
    if length > SAFETENSORS_HEADER_BYTES:
        raise _unsafe(f"has a header of {length} bytes; at most {SAFETENSORS_HEADER_BYTES} are allowed")
    header = _header(file.read(length))
    _check_metadata(header.pop("__metadata__", {}))
    if not 1 <= len(header) <= MAX_TENSORS:
        raise _broken(f"holds {len(header)} tensors; from 1 to {MAX_TENSORS} are allowed")
    _check_cover((_offsets(name, entry) for name, entry in header.items()), size - 8 - length)
    return {name: _tensor(name, entry) for name, entry in header.items()}


def _header(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _broken(f"has a header that can't be read: {_first_line(error)}") from error
    if not isinstance(header, dict):
        raise _broken("has a header that is not an object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} is repeated")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken("has metadata that is not a mapping from text to text")


def _offsets(name: str, entry: object) -> tuple[int, int, str]:
    """Begin and end of one tensor's bytes; raises `Invalid` unless the entry is well-formed."""
    if not name.isprintable() or not name:
        raise _broken(f"has a tensor with the unusable name {name!r}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _broken(f"tensor {name!r} must have dtype, shape and data_offsets, and nothing else")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise _broken(f"tensor {name!r} has an impossible shape")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _broken(f"tensor {name!r} has impossible data_offsets")
    return offsets[0], offsets[1], name


def _counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_cover(spans: Iterable[tuple[int, int, str]], size: int) -> None:
    """Check that the tensors are contiguous and cover the data from the first byte to the last."""
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            what = "overlaps the one before it" if start < end else f"leaves a gap of {start - end} bytes before it"
            raise _broken(f"tensor {name!r} {what}")
        end = stop
    if end != size:
        raise _broken(f"has {size} bytes of data, but its tensors end at {end}")


def _tensor(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _SAFETENSORS_DTYPES:
        raise _broken(f"tensor {name!r} has dtype {entry['dtype']!r}; use one of " + ", ".join(_SAFETENSORS_DTYPES))
    dtype, width = _SAFETENSORS_DTYPES[entry["dtype"]]
    start, end = entry["data_offsets"]
    if (stated := math.prod(entry["shape"]) * width) != end - start:
        raise _broken(f"tensor {name!r} should have {stated} bytes by its dtype and shape, but has {end - start}")
    return {"shape": entry["shape"], "dtype": dtype}
