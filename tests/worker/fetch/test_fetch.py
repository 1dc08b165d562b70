"""Teachers from a hub, from its mirror, and from object stores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from app.core.settings import Settings
from app.core.store import Store
from app.recipe.students.pooling import Embedding
from app.recipe.students.sentence_folder import modules_of, pooling_of
from app.recipe.teachers.teacher import Teacher
from tests.servers.s3 import S3
from tests.worker.fetch.hub_server import Hub, serving
from worker.errors import UserError
from worker.fetch import fetch
from worker.fetch.hub import HubUnavailable
from worker.fetch.model_cache import FetchCache

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/tiny-bert"
TEACHER = Teacher(hub=NAME, revision=COMMIT)
CONFIG = {"model_type": "bert", "hidden_size": 4}
WEIGHTS = save({"bert.w": np.ones(4, np.float32)})


def write_model(folder: Path, **files: bytes) -> Path:
    """A model as a hub keeps it, with files that must not be fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": WEIGHTS,
        "vocab.txt": b"[PAD]\n",
        "pytorch_model.bin": b"a pickle",
        "modeling_bert.py": b"raise SystemExit",
        "README.md": b"# card",
    }
    for name, raw in {**content, **files}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(raw)
    return folder


FETCHED = {"README.md", "config.json", "model.safetensors", "vocab.txt"}
ENCODER = {
    "modules.json": json.dumps(modules_of(Embedding())).encode(),
    "1_Pooling/config.json": json.dumps(pooling_of(Embedding(), 4)).encode(),
    "2_Dense/model.safetensors": WEIGHTS,
}
"""Further files of an encoder, and one that is none of it."""


def settings_with(tmp_path: Path, **fields: Any) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path / "home", hub_endpoint="http://127.0.0.1:9", **fields)


async def fetched(tmp_path: Path, teacher: Teacher, settings: Settings, number: int = 1) -> dict[str, bytes]:
    """What a worker ends up with, by file name."""
    target = tmp_path / "attempt" / str(number)
    target.mkdir(parents=True)
    await fetch(teacher, "teacher.hub", settings, FetchCache(tmp_path / "cache", settings.model_cache_bytes), target)
    return {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}


async def refusal(tmp_path: Path, teacher: Teacher, settings: Settings) -> str:
    with pytest.raises(UserError) as caught:
        await fetched(tmp_path, teacher, settings)
    assert (caught.value.code, caught.value.param) == ("invalid_teacher", "teacher.hub")
    return caught.value.message


async def test_a_mirror_gives_the_files_of_a_model_and_no_others(tmp_path: Path) -> None:
    write_model(tmp_path / "mirror" / NAME / COMMIT)
    found = await fetched(tmp_path, TEACHER, settings_with(tmp_path, hub_mirror=tmp_path / "mirror"))
    assert set(found) == FETCHED
    assert found["model.safetensors"] == WEIGHTS


async def test_what_was_fetched_once_is_kept(tmp_path: Path) -> None:
    write_model(tmp_path / "mirror" / NAME / COMMIT)
    settings = settings_with(tmp_path, hub_mirror=tmp_path / "mirror")
    first = await fetched(tmp_path, TEACHER, settings, 1)
    shutil.rmtree(tmp_path / "mirror")
    assert await fetched(tmp_path, TEACHER, settings, 2) == first


async def test_the_settings_of_an_encoder_come_from_the_folder_within(tmp_path: Path) -> None:
    """From a mirror, from what was kept of it, and from a store."""
    mirrored = write_model(tmp_path / "mirror" / NAME / COMMIT, **ENCODER)
    settings = settings_with(tmp_path, hub_mirror=tmp_path / "mirror", teacher_prefixes=[f"file://{tmp_path}/models"])
    first = await fetched(tmp_path, TEACHER, settings, 1)
    assert set(first) == {*FETCHED, "modules.json", "1_Pooling/config.json"}
    shutil.move(mirrored, tmp_path / "models")
    assert await fetched(tmp_path, TEACHER, settings, 2) == first
    assert await fetched(tmp_path, Teacher(uri=f"file://{tmp_path}/models"), settings, 3) == first


async def test_a_refused_model_is_not_kept(tmp_path: Path) -> None:
    folder = write_model(
        tmp_path / "mirror" / NAME / COMMIT, **{"config.json": b'{"model_type": "bert", "auto_map": {}}'}
    )
    settings = settings_with(tmp_path, hub_mirror=tmp_path / "mirror")
    assert "config.json auto_map" in await refusal(tmp_path, TEACHER, settings)
    write_model(folder)
    assert set(await fetched(tmp_path, TEACHER, settings, 2)) == FETCHED


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": "x.Y"}}'}, "tokenizer_config.json auto_map"),
        ({"config.json": b'{"model_type": "mystery"}'}, "config.json model_type"),
        ({"config.json": b"{}"}, "config.json model_type is missing"),
        ({"config.json": b"{"}, "config.json "),
    ],
)
async def test_what_names_code_is_refused_by_its_file(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    write_model(tmp_path / "mirror" / NAME / COMMIT, **files)
    assert said in await refusal(tmp_path, TEACHER, settings_with(tmp_path, hub_mirror=tmp_path / "mirror"))


async def test_shards_come_with_their_index_and_must_all_be_there(tmp_path: Path) -> None:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = json.dumps({"weight_map": {"a": shards[0], "b": shards[1]}}).encode()
    folder = write_model(tmp_path / "mirror" / NAME / COMMIT, **{name: WEIGHTS for name in shards})
    (folder / "model.safetensors").unlink()
    settings = settings_with(tmp_path, hub_mirror=tmp_path / "mirror")
    assert "no weights as safetensors" in await refusal(tmp_path, TEACHER, settings)
    (folder / "model.safetensors.index.json").write_bytes(index)
    assert set(await fetched(tmp_path, TEACHER, settings, 2)) == {
        "README.md",
        "config.json",
        "vocab.txt",
        "model.safetensors.index.json",
        *shards,
    }
    shutil.rmtree(tmp_path / "cache")
    (folder / shards[1]).unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors, which is missing"):
        await fetched(tmp_path, TEACHER, settings, 3)


async def test_a_model_that_is_too_large_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    write_model(tmp_path / "mirror" / NAME / COMMIT)
    settings = settings_with(tmp_path, hub_mirror=tmp_path / "mirror", max_teacher_bytes=50)
    assert "accepted: at most 50" in await refusal(tmp_path, TEACHER, settings)


async def test_a_worker_refuses_what_its_settings_do_not_accept(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        await fetched(tmp_path, TEACHER, settings_with(tmp_path, hub_enabled=False))
    assert caught.value.code == "teacher_not_accepted"


async def test_a_mirror_alone_serves_what_it_has(tmp_path: Path) -> None:
    write_model(tmp_path / "mirror" / NAME / COMMIT)
    settings = settings_with(tmp_path, hub_mirror=tmp_path / "mirror", hub_enabled=False)
    assert set(await fetched(tmp_path, TEACHER, settings)) == FETCHED
    with pytest.raises(UserError, match="the mirror of the hub does not have"):
        await fetched(tmp_path, Teacher(hub=NAME, revision="f" * 40), settings, 2)


# --- over the network ---


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    with serving(write_model(tmp_path / "remote"), NAME, COMMIT) as hub:
        yield hub


async def test_a_hub_is_asked_for_the_files_of_a_model_and_no_others(tmp_path: Path, hub: Hub) -> None:
    settings = settings_with(tmp_path, hub_token="hf_secret").model_copy(update={"hub_endpoint": hub.endpoint})
    found = await fetched(tmp_path, TEACHER, settings)
    assert set(found) == set(hub.asked) == FETCHED
    assert found["model.safetensors"] == WEIGHTS
    assert hub.tokens == {"Bearer hf_secret"}


async def test_a_file_that_is_not_what_the_hub_states_is_refused(tmp_path: Path, hub: Hub) -> None:
    hub.stated["model.safetensors"] = "0" * 64
    settings = settings_with(tmp_path).model_copy(update={"hub_endpoint": hub.endpoint})
    assert "another digest" in await refusal(tmp_path, TEACHER, settings)


async def test_a_commit_that_the_hub_does_not_have_is_the_users_fault(tmp_path: Path, hub: Hub) -> None:
    settings = settings_with(tmp_path).model_copy(update={"hub_endpoint": hub.endpoint})
    missing = Teacher(hub=NAME, revision="f" * 40)
    assert f"no model {NAME} at {'f' * 40}" in await refusal(tmp_path, missing, settings)


async def test_a_hub_that_does_not_answer_is_nobodys_fault(tmp_path: Path) -> None:
    with pytest.raises(HubUnavailable):
        await fetched(tmp_path, TEACHER, settings_with(tmp_path))


# --- object stores ---


async def test_a_folder_on_disk_can_be_a_teacher_where_it_is_accepted(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models" / "bert")
    settings = settings_with(tmp_path, teacher_prefixes=[f"file://{tmp_path}/models"])
    found = await fetched(tmp_path, Teacher(uri=f"file://{folder}"), settings)
    assert set(found) == FETCHED
    nothing = Teacher(uri=f"file://{tmp_path}/models/gone")
    with pytest.raises(UserError, match="there is nothing at"):
        await fetched(tmp_path, nothing, settings, 2)
    assert not (tmp_path / "models" / "gone").exists()


async def test_a_teacher_is_read_from_a_bucket_with_the_stores_credentials(tmp_path: Path, s3_moto: S3) -> None:
    store = {
        "store_url": f"s3://{s3_moto.bucket}/service",
        "store_endpoint": s3_moto.endpoint,
        "store_access_key": s3_moto.access_key,
        "store_secret_key": s3_moto.secret_key,
    }
    settings = settings_with(tmp_path, teacher_prefixes=f"s3://{s3_moto.bucket}/teachers", **store)
    teachers = Store.from_settings(settings.model_copy(update={"store_url": f"s3://{s3_moto.bucket}/teachers"}))
    for path in write_model(tmp_path / "source").iterdir():
        await teachers.upload(path, f"bert/{path.name}")
    await teachers.upload(tmp_path / "source" / "vocab.txt", "bert/deeper/vocab.json")
    found = await fetched(tmp_path, Teacher(uri=f"s3://{s3_moto.bucket}/teachers/bert"), settings)
    assert set(found) == FETCHED
    assert found["model.safetensors"] == WEIGHTS
    with pytest.raises(UserError, match=r"there is no config\.json"):
        await fetched(tmp_path, Teacher(uri=f"s3://{s3_moto.bucket}/teachers/other"), settings, 2)
