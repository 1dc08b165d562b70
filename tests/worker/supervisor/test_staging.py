"""Scratch folders, staging and the paths that a trainer may name."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from obstore.store import MemoryStore
from safetensors.torch import load_file

from app.core.settings import Settings
from app.core.store import Damaged, Store
from app.jobs.leases import CheckpointRef, Lease, StoredFile
from app.recipe.job import JobSpec
from tests.app.jobs.builders import job_spec
from worker.errors import UserError
from worker.fetch.model_cache import FetchCache
from worker.protocol import Assignment, CachePlace, InputSource
from worker.supervisor.endings import failure_from
from worker.supervisor.staging import (
    Scratch,
    Sources,
    UnsafePath,
    file_within,
    files_of,
    folder_within,
    safe_name,
    safe_place,
    stage,
    try_lock,
)


def test_scratch_removes_what_a_dead_worker_left(tmp_path: Path) -> None:
    dead = tmp_path / "worker-dead"
    (dead / "job_1" / "a1").mkdir(parents=True)
    (dead / "lock").touch()
    unlocked = tmp_path / "worker-killed-early"
    unlocked.mkdir()
    with Scratch(tmp_path) as scratch:
        assert [path.name for path in tmp_path.glob("worker-*")] == [scratch.path.name]


def test_scratch_spares_the_folder_of_a_living_worker(tmp_path: Path) -> None:
    with Scratch(tmp_path) as first, Scratch(tmp_path) as second:
        assert first.path != second.path
        assert first.path.exists()


def test_scratch_is_private_and_goes_with_its_worker(tmp_path: Path) -> None:
    with Scratch(tmp_path) as scratch:
        scratch.folder("job_1", "a1").joinpath("weights").touch()
        assert scratch.path.stat().st_mode & 0o077 == 0
        assert list(scratch.folder("job_1", "a1").iterdir()) == []
    assert not scratch.path.exists()


def test_a_lock_is_held_until_every_copy_of_it_is_closed(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "locks" / "gpu")
    assert lock is not None
    assert try_lock(tmp_path / "locks" / "gpu") is None
    inherited = os.dup(lock.fileno())
    lock.close()
    assert try_lock(tmp_path / "locks" / "gpu") is None
    os.close(inherited)
    assert try_lock(tmp_path / "locks" / "gpu") is not None


def test_a_file_below_the_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "a.txt").touch()
    (tmp_path / "bundle" / "b.txt").touch()
    assert file_within(tmp_path, "bundle/a.txt") == tmp_path / "bundle" / "a.txt"
    assert [path.name for path in files_of(folder_within(tmp_path, "bundle"))] == ["a.txt", "b.txt"]


def test_a_folder_that_is_reached_by_a_link_itself_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to("real")
    assert file_within(tmp_path / "link", "file") == tmp_path / "real" / "file"


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "inner/../../outside", "link", "linked/file", ".", ""])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    folder = tmp_path / "attempt"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "outside").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePath):
        file_within(folder, path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "pipe")
    with pytest.raises(UnsafePath):
        file_within(tmp_path, "folder")
    with pytest.raises(UnsafePath):
        files_of(tmp_path / "folder")
    with pytest.raises(UnsafePath):
        folder_within(tmp_path, "folder/pipe")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a\\b", "a\nb", "x" * 200, "ä"])
def test_a_name_that_could_be_more_than_a_file_name_is_refused(name: str) -> None:
    with pytest.raises(UnsafePath):
        safe_name(name)


@pytest.mark.parametrize("name", ["", "..", "../a", "a/..", "a/.b", "a/b/c", "/a", "a/", "a//b"])
def test_a_name_that_leads_out_of_its_folder_or_deep_into_it_is_refused(name: str) -> None:
    with pytest.raises(UnsafePath):
        safe_place(name)


def test_a_file_may_lie_in_a_folder() -> None:
    assert [safe_place(name) for name in ("a.json", "1_b/a.json")] == ["a.json", "1_b/a.json"]


def names_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


async def stored(store: Store, folder: Path, name: str, content: bytes) -> StoredFile:
    path = folder / "source"
    path.write_bytes(content)
    await store.upload(path, f"objects/{name}")
    return StoredFile(name, f"objects/{name}", len(content), hashlib.sha256(content).hexdigest())


def sources(store: Store, folder: Path) -> Sources:
    settings = Settings(_env_file=None, data_dir=folder / "home")
    return Sources(store, settings, FetchCache(folder / "cache", 1 << 30))


def lease(checkpoint: CheckpointRef | None = None) -> Lease:
    return Lease("job_1", "proj_1", 1, 1, "me", job_spec(seed=1), 60.0, checkpoint)


async def test_stage_lays_out_inputs_checkpoint_and_assignment(tmp_path: Path) -> None:
    store = Store(MemoryStore())
    data = await stored(store, tmp_path, "data.npz", b"data")
    weights = await stored(store, tmp_path, "model.safetensors", b"weights")
    state = await stored(store, tmp_path, "state.json", b"{}")
    folder = tmp_path / "attempt"
    folder.mkdir()
    inputs = {"model_1": [weights], "file_1": [data]}
    by_name = {"model_1": "my teacher"}
    await stage(sources(store, tmp_path), lease(CheckpointRef("ckpt_1", 5, [state])), inputs, folder, names=by_name)
    assignment = Assignment.model_validate(json.loads((folder / "assignment.json").read_text()))
    assert (folder / assignment.inputs["file_1"]).read_bytes() == b"data"
    assert (folder / assignment.inputs["model_1"] / "model.safetensors").read_bytes() == b"weights"
    assert assignment.resume is not None
    assert (folder / assignment.resume / "state.json").read_bytes() == b"{}"
    assert assignment.spec == lease().spec
    known = {"model_1": InputSource(name="my teacher"), "file_1": InputSource(name="data.npz", sha256=data.sha256)}
    assert assignment.sources == known


async def test_stage_names_the_cache_that_outlives_the_job(tmp_path: Path) -> None:
    await stage(
        sources(Store(MemoryStore()), tmp_path),
        lease(),
        {},
        tmp_path,
        CachePlace(folder="/var/cache/teachers", max_bytes=7),
    )
    assignment = Assignment.model_validate_json((tmp_path / "assignment.json").read_bytes())
    assert assignment.teacher_cache == CachePlace(folder="/var/cache/teachers", max_bytes=7)


async def test_stage_gives_a_data_file_no_name_of_its_users_making(tmp_path: Path) -> None:
    store = Store(MemoryStore())
    data = await stored(store, tmp_path, "data.npz", b"data")
    evil = StoredFile("../../evil", data.key, data.size, data.sha256)
    folder = tmp_path / "attempt"
    folder.mkdir()
    await stage(sources(store, tmp_path), lease(), {"file_1": [evil]}, folder)
    assert names_below(tmp_path) & {"evil"} == set()


async def test_stage_refuses_a_bundle_with_a_path_for_a_name(tmp_path: Path) -> None:
    store = Store(MemoryStore())
    data = await stored(store, tmp_path, "config.json", b"{}")
    evil = StoredFile("../evil", data.key, data.size, data.sha256)
    with pytest.raises(UnsafePath):
        await stage(sources(store, tmp_path), lease(), {"model_1": [evil]}, tmp_path)


async def test_stage_refuses_an_input_that_is_not_what_its_row_says(tmp_path: Path) -> None:
    store = Store(MemoryStore())
    data = await stored(store, tmp_path, "data.npz", b"data")
    with pytest.raises(Damaged):
        await stage(
            sources(store, tmp_path), lease(), {"file_1": [StoredFile("x", data.key, data.size, "0" * 64)]}, tmp_path
        )
    assert "data" not in names_below(tmp_path)


MLP = {
    "architecture": {"architecture": "mlp", "hidden": []},
    "input": {"channels": 1, "height": 2, "width": 2},
    "preprocessing": {"mean": [0.5], "std": [0.25]},
    "classes": 2,
}


async def torch_model(store: Store, folder: Path, key: str) -> list[StoredFile]:
    """A model whose weights are still as torch.save wrote them, under `key`."""
    buffer = io.BytesIO()
    torch.save({key: {"module.1.weight": torch.ones(2, 4), "module.1.bias": torch.ones(2)}}, buffer)
    order = {"checkpoint_key": "state_dict", "key_map": {"strip": ["module."]}}
    content = {
        "config.json": json.dumps(MLP).encode(),
        "convert.json": json.dumps(order).encode(),
        "weights.pt": buffer.getvalue(),
    }
    return [await stored(store, folder, name, raw) for name, raw in content.items()]


def taught(**teacher: str) -> Lease:
    return leased(job_spec(seed=1, teacher=teacher, recipe={"losses": [{"kind": "kd"}]}))


def leased(spec: JobSpec) -> Lease:
    return Lease("job_1", "proj_1", 1, 1, "me", spec, 60.0, None)


async def test_a_teacher_that_torch_saved_is_staged_as_safetensors(tmp_path: Path) -> None:
    store = Store(MemoryStore())
    files = await torch_model(store, tmp_path, "state_dict")
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        await stage(sources(store, tmp_path), taught(model="model_1"), {"model_1": files}, tmp_path / name)
        staged = tmp_path / name / "inputs" / "0"
        assert {path.name for path in staged.iterdir()} == {"config.json", "model.safetensors"}
        assert set(load_file(staged / "model.safetensors")) == {"1.weight", "1.bias"}
        await store.delete(file.key for file in files)  # the second time, nothing is fetched or converted


async def test_a_teacher_that_can_not_be_converted_is_its_owners_fault(tmp_path: Path) -> None:
    store = Store(MemoryStore())
    files = await torch_model(store, tmp_path, "model")
    with pytest.raises(UserError) as caught:
        await stage(sources(store, tmp_path), taught(model="model_1"), {"model_1": files}, tmp_path)
    assert (caught.value.code, caught.value.param) == ("invalid_teacher", "teacher.model")
    assert "the file has no 'state_dict'; it has 'model'" in caught.value.message
    ending = failure_from(caught.value)
    assert (ending.fault, ending.code, ending.param) == ("user", "invalid_teacher", "teacher.model")


async def test_what_a_student_goes_on_from_can_not_be_converted_either(tmp_path: Path) -> None:
    store = Store(MemoryStore())
    lease = leased(job_spec(seed=1, student={"architecture": "pretrained", "model": "model_1"}))
    with pytest.raises(UserError, match="the student can't be converted") as caught:
        await stage(sources(store, tmp_path), lease, {"model_1": await torch_model(store, tmp_path, "model")}, tmp_path)
    assert (caught.value.code, caught.value.param) == ("invalid_student", "student.model")


@pytest.mark.parametrize("whose", ["teacher", "student"])
async def test_a_model_from_outside_is_staged_under_its_reference(tmp_path: Path, whose: str) -> None:
    source = tmp_path / "models" / "mine"
    source.mkdir(parents=True)
    (source / "config.json").write_text(json.dumps(MLP))
    (source / "model.safetensors").write_bytes(b"weights")
    from_outside = sources(Store(MemoryStore()), tmp_path)
    accepted = from_outside.settings.model_copy(update={"teacher_prefixes": [f"file://{tmp_path}/models"]})
    folder = tmp_path / "attempt"
    folder.mkdir()
    uri = f"file://{source}"
    own = leased(job_spec(seed=1, student={"architecture": "pretrained", "uri": uri}))
    lease = taught(uri=uri) if whose == "teacher" else own
    for _ in range(2):  # staging is tried again when the store could not be reached
        await stage(replace(from_outside, settings=accepted), lease, {}, folder)
    assignment = Assignment.model_validate(json.loads((folder / "assignment.json").read_text()))
    staged = folder / assignment.inputs[lease.spec.origins[whose].reference]
    assert (staged / "model.safetensors").read_bytes() == b"weights"
