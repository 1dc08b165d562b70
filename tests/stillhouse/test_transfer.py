"""Files up and down: in parts, resumed after a break, verified, and never outside the folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stillhouse import Artifact, BadRequest, Client, ServiceError, TransferError, local_files
from stillhouse.local_files import Download, part_bytes, safe_name
from tests.stillhouse.conftest import LiveService, answer, cut_off, ignore_range, job_document, spoil

WEIGHTS = np.random.default_rng(0).bytes(3_000_000)


def test_a_file_is_sent_in_parts_with_digests(
    service: LiveService, client: Client, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_files, "PART_BYTES", 1000)
    seen: list[tuple[int, int]] = []
    file = client.upload(data_file, progress=lambda done, total: seen.append((done, total)))
    size = data_file.stat().st_size
    assert file.sha256 == hashlib.sha256(data_file.read_bytes()).hexdigest()
    assert seen[-1] == (size, size)
    parts = [headers for method, path, headers in service.faults.seen if method == "PUT"]
    assert len(parts) == -(-size // 1000)
    assert all(headers["content-digest"].startswith("sha-256=:") for headers in parts)


def test_the_same_file_is_not_sent_twice(service: LiveService, client: Client, data_file: Path) -> None:
    first = client.upload(data_file)
    assert client.upload(data_file).id == first.id
    renamed = data_file.with_name("other.npz")
    renamed.write_bytes(data_file.read_bytes())
    assert client.upload(renamed).id != first.id
    assert client.upload(data_file, reuse=False).id != first.id


def test_a_broken_upload_goes_on_where_it_stopped(
    service: LiveService, client: Client, data_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_files, "PART_BYTES", 1000)
    service.faults.next("/parts/3", cut_off(-1))
    with (
        Client(service.url, service.key, outage_seconds=0.0) as impatient,
        pytest.raises(TransferError, match="resume it by its id upload_") as broken,
    ):
        impatient.upload(data_file)
    before = len(service.faults.seen)
    file = client.upload(data_file, resume=broken.value.upload_id)
    sent = [path for method, path, _ in service.faults.seen[before:] if method == "PUT"]
    assert file.sha256 == local_files.sha256_of(data_file)
    assert not any(path.endswith(("/1", "/2")) for path in sent)
    assert sent


def test_a_lost_answer_to_the_completion_does_no_harm(service: LiveService, client: Client, data_file: Path) -> None:
    service.faults.next("/complete", cut_off(-1))
    file = client.upload(data_file)
    assert [item.id for item in client.files()] == [file.id]


def test_what_is_no_data_is_refused_with_the_services_reason(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ServiceError) as error:
        client.upload(path)
    assert error.value.status == 422


def test_parts_are_large_enough_for_huge_files_and_never_larger_than_allowed() -> None:
    assert part_bytes(1, 64 << 20) == 8 << 20
    assert part_bytes(16 << 30, 64 << 20) == 8 << 20
    assert -(-(100 << 30) // part_bytes(100 << 30, 64 << 20)) <= local_files.MOST_PARTS
    assert part_bytes(1, 1 << 20) == 1 << 20


@pytest.fixture
def finished(service: LiveService, client: Client, data_file: Path) -> str:
    """A job that has published three megabytes and an empty file."""
    job = client.submit(job_document(client.upload(data_file).id))
    service.succeed(service.start(job.id), {"model.safetensors": WEIGHTS, "empty.txt": b""})
    return job.id


def test_a_download_is_verified_and_complete(client: Client, finished: str, tmp_path: Path) -> None:
    seen: list[int] = []
    path = client.download(finished, "model.safetensors", tmp_path / "out", progress=lambda done, _: seen.append(done))
    assert path == tmp_path / "out" / "model.safetensors"
    assert path.read_bytes() == WEIGHTS
    assert seen[-1] == len(WEIGHTS)
    assert client.download(finished, "empty.txt", tmp_path / "out").read_bytes() == b""
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["empty.txt", "model.safetensors"]


def test_a_download_goes_on_after_a_break(service: LiveService, client: Client, finished: str, tmp_path: Path) -> None:
    service.faults.next("/artifacts/model", cut_off(1_000_000))
    service.faults.next("/artifacts/model", answer(503, Retry_After="0"))
    assert client.download(finished, "model.safetensors", tmp_path).read_bytes() == WEIGHTS
    ranges = [headers.get("range") for _, path, headers in service.faults.seen if "/artifacts/model" in path]
    assert ranges[0] is None
    assert ranges[-1] is not None
    assert 0 < int(ranges[-1].removeprefix("bytes=").removesuffix("-")) <= 1_000_000


def test_a_later_run_goes_on_where_an_earlier_one_broke_off(
    service: LiveService, client: Client, finished: str, tmp_path: Path
) -> None:
    service.faults.next("/artifacts/model", cut_off(1_000_000))
    service.faults.next("/artifacts/model", cut_off(-1))
    with (
        Client(service.url, service.key, outage_seconds=0.0) as impatient,
        pytest.raises(TransferError, match="was interrupted"),
    ):
        impatient.download(finished, "model.safetensors", tmp_path)
    [leftover] = tmp_path.glob(".*.part")
    assert leftover.stat().st_size > 0
    assert client.download(finished, "model.safetensors", tmp_path).read_bytes() == WEIGHTS
    assert service.faults.seen[-1][2]["range"].startswith("bytes=")
    assert not list(tmp_path.glob(".*.part"))


def test_a_server_without_ranges_is_read_from_the_start(
    service: LiveService, client: Client, finished: str, tmp_path: Path
) -> None:
    service.faults.next("/artifacts/model", cut_off(1_000_000))
    service.faults.next("/artifacts/model", ignore_range)
    assert client.download(finished, "model.safetensors", tmp_path).read_bytes() == WEIGHTS


def test_a_spoiled_download_leaves_nothing_behind(
    service: LiveService, client: Client, finished: str, tmp_path: Path
) -> None:
    service.faults.next("/artifacts/model", spoil)
    with pytest.raises(TransferError, match="sha256"):
        client.download(finished, "model.safetensors", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_there_already_is_not_fetched_again(
    service: LiveService, client: Client, finished: str, tmp_path: Path
) -> None:
    client.download(finished, "model.safetensors", tmp_path)
    before = len(service.faults.seen)
    client.download(finished, "model.safetensors", tmp_path)
    assert not [path for _, path, _ in service.faults.seen[before:] if "/artifacts/model" in path]


def test_an_unknown_artifact_is_named(client: Client, finished: str, tmp_path: Path) -> None:
    with pytest.raises(TransferError, match=r"nothing\.bin"):
        client.download(finished, "nothing.bin", tmp_path)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../up", "a/..", "a/", "a//b", "a/b/c", "/etc/passwd", "a\\b", "c:x", ".hidden", "a\0b", "a\nb"],
)
def test_names_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest):
        safe_name(name)
    item = Artifact(name=name, media_type="x/y", size=1, sha256="0" * 64)
    with pytest.raises(BadRequest):
        Download(item, tmp_path)


def test_a_models_files_can_be_fetched_and_models_registered(
    service: LiveService, client: Client, data_file: Path, tmp_path: Path
) -> None:
    job = client.submit(job_document(client.upload(data_file).id, name="made"))
    model_id = service.succeed(service.start(job.id), {"model.safetensors": WEIGHTS})
    model = client.model(model_id)
    assert (model.job_id, model.name) == (job.id, "made")
    assert [item.id for item in client.models()] == [model_id]
    assert client.download_model(model_id, "model.safetensors", tmp_path).read_bytes() == WEIGHTS
    client.delete_model(model_id)
    assert list(client.models()) == []


def test_weights_become_a_model(client: Client, weights: tuple[Path, dict[str, Any]]) -> None:
    path, config = weights
    model = client.register_model(client.upload(path).id, config, "mine")
    assert (model.name, model.job_id, model.parameters) == ("mine", None, 64 * 4 + 4 + 4 * 10 + 10)
