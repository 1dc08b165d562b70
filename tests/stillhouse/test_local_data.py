"""Local data of a job: sent ahead, folders of pictures packed, always as the same bytes."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from stillhouse import BadRequest, Client
from stillhouse.local_data import find
from stillhouse.packing import pack
from tests.stillhouse.conftest import job_document


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of pictures by class, and what systems and people leave beside them."""
    for name in ("cats/1.png", "cats/2.JPG", "dogs/1.png", "dogs/.DS_Store", "notes.txt"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "pets"


def members(archive: Path) -> list[str]:
    with tarfile.open(archive) as packed:
        return packed.getnames()


def test_a_folder_of_pictures_is_packed_by_class(pets: Path, tmp_path: Path) -> None:
    packed = pack(pets, tmp_path, "data.train")
    assert (packed.format, packed.files, packed.left_out) == ("image-folder", 3, 1)
    assert members(packed.path) == ["cats/1.png", "cats/2.JPG", "dogs/1.png"]


def test_the_same_pictures_are_the_same_archive(pets: Path, tmp_path: Path) -> None:
    first = pack(pets, tmp_path, "data.train").path.read_bytes()
    for path in pets.rglob("*"):
        path.touch()
    assert pack(pets, tmp_path, "data.train").path.read_bytes() == first


def test_a_saved_data_set_is_packed_whole(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow"):
        (folder / name).write_bytes(b"{}")
    packed = pack(folder, tmp_path, "data.train")
    assert packed.format == "hf-dataset"
    assert len(members(packed.path)) == 3


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["readme.txt"], "has no images"),
        (["1.png", "cats/2.png"], "outside of the class folders"),
        (["train/cats/1.png", "val/cats/1.png"], "nested folders (train, val)"),
    ],
)
def test_a_folder_that_is_no_set_of_pictures_is_refused(names: list[str], says: str, tmp_path: Path) -> None:
    for name in names:
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with pytest.raises(BadRequest, match=r"data\.train") as refused:
        pack(tmp_path / "folder", tmp_path, "data.train")
    assert says in str(refused.value)


def test_paths_become_ids_and_the_format_is_filled_in(pets: Path, tmp_path: Path) -> None:
    told: list[str] = []
    document: dict[str, Any] = {"name": "a", "data": {"train": "pets", "eval": "file_0", "classes": 2}}
    found = find(document, pets.parent, scratch(tmp_path), told.append)
    assert {field: path.name for field, path in found.files.items()} == {"train": "pets.tar"}
    assert found.replaced({"train": "file_1"}) == {
        "name": "a",
        "data": {"train": "file_1", "eval": "file_0", "classes": 2, "format": "image-folder"},
    }
    assert "packed 3 files" in told[0]
    assert document["data"]["train"] == "pets"


def test_two_folders_of_one_name_are_two_archives(pets: Path, tmp_path: Path) -> None:
    shutil.copytree(pets, tmp_path / "other" / "pets")
    (tmp_path / "other" / "pets" / "dogs" / "2.png").write_bytes(b"one more")
    found = find({"data": {"train": "pets", "eval": "other/pets"}}, tmp_path, scratch(tmp_path))
    assert [len(members(path)) for path in found.files.values()] == [3, 4]


@pytest.mark.parametrize("data", [None, 3, "pets", {}, {"train": 3}, {"train": "file_1"}])
def test_what_names_no_path_is_left_to_the_service(data: object, tmp_path: Path) -> None:
    document = {"data": data}
    found = find(document, tmp_path, scratch(tmp_path))
    assert (found.files, found.replaced({})) == ({}, document)


def scratch(folder: Path) -> Path:
    (folder / "scratch").mkdir()
    return folder / "scratch"


def test_a_folder_for_another_format_is_refused(pets: Path, tmp_path: Path) -> None:
    document = {"data": {"train": str(pets), "format": "csv"}}
    with pytest.raises(BadRequest, match=r"image-folder, and data\.format is csv"):
        find(document, pets.parent, scratch(tmp_path))


def test_the_python_client_sends_local_data_too(client: Client, data_file: Path) -> None:
    by_folder = client.submit(job_document(data_file.name), folder=data_file.parent)
    by_path = client.submit(job_document(str(data_file)))
    [file] = client.files()
    assert by_folder.spec["data"]["train"] == by_path.spec["data"]["train"] == file.id
    assert client.validate(job_document(str(data_file))).valid
    with pytest.raises(BadRequest, match=r"data\.train: there is no file"):
        client.submit(job_document("nowhere.npz"))


def test_the_files_of_diagnostics_are_sent_too(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.npz").write_bytes(b"noise")
    diagnostics = [{"kind": "calibration"}, {"kind": "mahalanobis", "data": "noise.npz"}]
    document = {**job_document("file_0"), "evaluation": {"diagnostics": diagnostics}}
    found = find(document, tmp_path, tmp_path)
    (field,) = found.files
    assert field == "evaluation.diagnostics[1].data"
    sent = found.replaced({field: "file_1"})
    assert sent["evaluation"]["diagnostics"] == [diagnostics[0], {"kind": "mahalanobis", "data": "file_1"}]
    assert sent["data"] == document["data"]
