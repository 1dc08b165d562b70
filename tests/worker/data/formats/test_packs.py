"""Iterating over untrusted archives."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worker.data.formats.builders import PARAM, packed
from worker.data.formats import packs
from worker.data.formats.packs import members
from worker.errors import UserError

KINDS = ["a.tar", "a.tar.gz", "a.zip"]
SIZES = [0, 1, 511, 512, 513, 1024, 5000]
FILES = {f"set/{i % 3}/{'x' * (i % 5 * 60)}é{i}.png": random.Random(i).randbytes(SIZES[i % 7]) for i in range(60)}


def refusal(path: Path, largest: int = 10_000) -> str:
    with pytest.raises(UserError) as caught:
        list(members(path, largest, PARAM))
    assert (caught.value.code, caught.value.param) == ("invalid_data", PARAM)
    return caught.value.message


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_back_in_their_order(tmp_path: Path, kind: str) -> None:
    found = [(str(member.path), member.content) for member in members(packed(tmp_path / kind, FILES), 10_000, PARAM)]
    assert found == list(FILES.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/../../x.png", "a\\b.png", "a\nb.png"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    assert "unsafe name" in refusal(packed(tmp_path / kind, {name: b"x"}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_above_the_cap_is_refused(tmp_path: Path, kind: str) -> None:
    assert "has 5000 bytes" in refusal(packed(tmp_path / kind, {"a/b.png": bytes(5000)}), largest=4999)


@pytest.mark.parametrize("kind", KINDS)
def test_all_files_together_are_capped(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MAX_BYTES", 7000)
    path = packed(tmp_path / kind, {f"{i}.png": bytes(3000) for i in range(3)})
    assert "unpacks to more than 7000" in refusal(path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_files_is_capped(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MAX_MEMBERS", 2)
    assert "more than 2 files" in refusal(packed(tmp_path / kind, {f"{i}.png": b"" for i in range(3)}))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("a/b.png")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(info)
    assert "link or a device" in refusal(tmp_path / "a.tar")


def test_links_in_a_zip_are_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a/b.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "link or a device" in refusal(tmp_path / "a.zip")


def test_a_bomb_in_a_zip_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "FREE_BYTES", 5000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.png", bytes(9000))
    monkeypatch.setattr(packs, "MAX_RATIO", 10)
    assert "packed size" in refusal(tmp_path / "a.zip")


def test_a_header_of_a_tar_that_claims_much_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 2**32
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT) + bytes(4096)))
    assert "not a valid" in refusal(tmp_path / "a.tar.gz")


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a/b.png"), io.BytesIO())
    assert "twice" in refusal(tmp_path / "a.tar")


def truncate(content: bytes) -> bytes:
    return content[: len(content) // 2]


def scramble(content: bytes) -> bytes:
    return content[:100] + bytes(byte ^ 0x55 for byte in content[100:])


@pytest.mark.parametrize("damage", [truncate, scramble, lambda _: b"", lambda _: b"hello, world" * 100])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_is_refused(tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]) -> None:
    path = packed(tmp_path / kind, {"a/b.png": random.Random(1).randbytes(5000)})
    path.write_bytes(damage(path.read_bytes()))
    assert "not a valid" in refusal(path)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_changed_the_answer_is_files_or_a_refusal(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = packed(tmp_path / KINDS[seed % 3], dict(list(FILES.items())[:8]))
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        assert all(len(member.content) <= 10_000 for member in members(path, 10_000, PARAM))
