"""What becomes a model: torch files, weights under other names, and folders in the Hugging Face layout."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from safetensors.numpy import save

from app.models import uploads
from app.recipe.students.hugging_face import DOCUMENTS
from app.recipe.students.pooling import Embedding
from app.recipe.students.sentence_folder import POOLING, modules_of, pooling_of
from app.recipe.teachers.key_map import Conversion
from tests.app.conftest import Api
from tests.app.files.uploads import DATA, code_of, keys_in_store, send, settle
from tests.app.models.test_endpoints import CONFIG, weights

TEACHERS = Path(__file__).parents[3] / "examples" / "teachers"
BERT = {"model_type": "bert", "hidden_size": 4, "id2label": {"0": "no", "1": "yes"}}
RENAME = {"strip": ["module."], "rename": [{"from": "fc{i}.", "to": "{i}."}]}


def torch_file() -> bytes:
    """As torch.save writes; nobody here reads what is inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("archive/data.pkl", "archive/data/0", "archive/version"):
            archive.writestr(name, b"never read")
    return buffer.getvalue()


def tensors(*names: str) -> bytes:
    return save({name: np.ones((2, 3), np.float32) for name in names})


async def register(api: Api, **body: Any) -> httpx.Response:
    return await api.client.post("/v1/models", json=body)


async def uploaded(api: Api, files: dict[str, bytes]) -> dict[str, str]:
    return {name: (await send(api, content, name))["id"] for name, content in files.items()}


async def folder(api: Api, **changes: bytes | None) -> dict[str, str]:
    """Ids of the files of a sound folder, by name; none leaves a file out."""
    content: dict[str, bytes | None] = {
        "config.json": json.dumps(BERT).encode(),
        "model.safetensors": tensors("bert.w"),
        "vocab.txt": b"[PAD]\n",
    }
    return await uploaded(api, {name: raw for name, raw in {**content, **changes}.items() if raw is not None})


def params(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    return [error["param"] for error in answer.json()["error"]["errors"]]


async def content_of(api: Api, model: dict[str, Any], name: str) -> bytes:
    return (await api.client.get(f"/v1/models/{model['id']}/files/{name}")).content


async def test_a_torch_file_waits_for_a_worker_with_the_order_to_convert_it(api: Api) -> None:
    file = await send(api, torch_file(), "teacher.pt")
    answer = await register(api, file=file["id"], config=CONFIG, checkpoint_key="state_dict", key_map=RENAME)
    model = answer.json()
    assert (answer.status_code, model["format"], model["parameters"]) == (201, "torch", 16 * 64 + 16 + 160 + 10)
    assert [file["name"] for file in model["files"]] == ["config.json", "convert.json", "weights.pt"]
    order = Conversion.model_validate_json(await content_of(api, model, "convert.json"))
    assert (order.checkpoint_key, order.key_map.name("module.fc0.weight")) == ("state_dict", "0.weight")


async def test_a_key_map_may_be_known_by_name_and_a_torch_file_hold_a_network_of_the_library(api: Api) -> None:
    described = yaml.safe_load((TEACHERS / "torchvision-resnet18.yaml").read_text())
    file = await send(api, torch_file(), "resnet18.pth")
    model = (await register(api, file=file["id"], **described)).json()
    assert (model["format"], model["parameters"]) == ("torch", None)
    order = Conversion.model_validate_json(await content_of(api, model, "convert.json"))
    assert order.key_map.name("layer2.1.bn2.bias") == "resnet.encoder.stages.1.layers.1.layer.1.normalization.bias"
    answer = await register(api, file=file["id"], **{**described, "key_map": "torchvision-vgg"})
    assert params(answer) == ["key_map"]
    assert "accepted: torchvision-resnet" in answer.text


async def test_a_folder_of_timm_describes_itself(api: Api) -> None:
    told = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {"custom_load": False}}
    card = b"---\nlicense: mit\n---\n"
    given = {"config.json": json.dumps(told).encode(), "model.safetensors": tensors("fc.w"), "README.md": card}
    model = (await register(api, files=await uploaded(api, given))).json()
    assert (model["config"], model["parameters"]) == (None, 6)
    assert sorted(file["name"] for file in model["files"]) == sorted(given)


async def test_weights_under_other_names_are_held_against_the_architecture_at_once(api: Api) -> None:
    shapes = {"fc0.weight": (16, 64), "fc0.bias": (16,), "fc2.weight": (10, 16), "fc2.bias": (10,), "extra": (3,)}
    theirs = save({f"module.{name}": np.ones(shape, np.float32) for name, shape in shapes.items()})
    file = (await send(api, theirs, "teacher.safetensors"))["id"]
    assert params(await register(api, file=file, config=CONFIG, key_map=RENAME)) == ["config.architecture"]
    answer = await register(api, file=file, config=CONFIG, key_map={**RENAME, "drop": ["extra"]})
    assert answer.status_code == 201, answer.text
    assert [file["name"] for file in answer.json()["files"]] == ["config.json", "convert.json", "weights.safetensors"]
    assert answer.json()["format"] == "safetensors"


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"checkpoint_key": "state_dict"}, ["checkpoint_key"]),
        ({"key_map": {"rename": [{"from": "{i}.", "to": "x."}]}}, ["key_map"]),
        ({"key_map": {"rename": [{"from": "a", "to": "{i}"}]}}, ["key_map.rename[0]"]),
        ({"key_map": {"rename": [{"from": "a{", "to": "b"}]}}, ["key_map.rename[0].from"]),
    ],
)
async def test_an_order_that_does_not_fit_the_file_is_refused_by_its_field(
    api: Api, fields: dict[str, Any], wrong: list[str]
) -> None:
    file = (await send(api, weights(), "teacher.safetensors"))["id"]
    assert params(await register(api, file=file, config=CONFIG, **fields)) == wrong


@pytest.mark.parametrize(
    "body",
    [
        {"config": CONFIG},
        {"file": "file_1"},
        {"file": "file_1", "files": {"config.json": "file_2"}, "config": CONFIG},
        {"files": {"config.json": "file_2"}, "checkpoint_key": "model"},
        {"files": {"config.json": "file_2"}, "key_map": {}},
        {"files": {}},
        {"files": {"modeling.py": "file_1"}},
        {"files": {"pytorch_model.bin": "file_1"}},
        {"files": {"../config.json": "file_1"}},
    ],
)
async def test_a_request_is_for_one_file_or_for_a_folder_of_known_files(api: Api, body: dict[str, Any]) -> None:
    assert (await register(api, **body)).status_code == 422


async def test_a_folder_becomes_a_model_that_is_as_it_was_sent(api: Api) -> None:
    files = await folder(api)
    model = (await register(api, files=files, name="bert")).json()
    assert (model["config"], model["format"], model["parameters"], model["file_id"]) == (
        None,
        "safetensors",
        6,
        files["model.safetensors"],
    )
    assert [file["name"] for file in model["files"]] == sorted(files)
    assert json.loads(await content_of(api, model, "config.json")) == BERT
    assert (await api.client.get(f"/v1/models/{model['id']}")).json()["config"] is None


async def encoder(api: Api, modules: bytes) -> dict[str, str]:
    """Ids of the files of a sentence encoder, one of them in a folder of its own."""
    pooling = await send(api, json.dumps(pooling_of(Embedding(), 2)).encode(), "config.json")
    return {**await folder(api, **{"modules.json": modules}), POOLING: pooling["id"]}


async def test_a_sentence_encoder_keeps_the_folder_within(api: Api) -> None:
    files = await encoder(api, json.dumps(modules_of(Embedding())).encode())
    model = (await register(api, files=files)).json()
    assert POOLING in [file["name"] for file in model["files"]]
    for place in (POOLING, POOLING.replace("/", "%2F")):
        assert json.loads(await content_of(api, model, place))["word_embedding_dimension"] == 2


async def test_a_sentence_encoder_of_other_modules_is_refused_by_its_file(api: Api) -> None:
    modules = json.dumps([*modules_of(Embedding()), {"type": "mine.Dense", "path": "2_Dense"}]).encode()
    assert params(await register(api, files=await encoder(api, modules))) == ["files.modules.json"]


async def test_shards_are_held_against_their_index(api: Api) -> None:
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    sent = {
        shards[0]: tensors("a"),
        shards[1]: tensors("b"),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    files = await folder(api, **{**sent, "model.safetensors": None})
    model = (await register(api, files=files)).json()
    assert (model["parameters"], model["file_id"]) == (12, None)
    without = {name: file for name, file in files.items() if name != shards[1]}
    assert params(await register(api, files=without)) == [f"files.{shards[1]}"]
    swapped = {**files, shards[1]: files[shards[0]]}
    assert params(await register(api, files=swapped)) == [f"files.{shards[1]}"]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"config.json": None}, "files"),
        ({"model.safetensors": None}, "files"),
        ({"config.json": b'{"model_type": "bert", "auto_map": {"AutoModel": "x.Y"}}'}, "files.config.json"),
        ({"config.json": b'{"model_type": "mystery"}'}, "files.config.json"),
        ({"config.json": b"not json"}, "files.config.json"),
        ({"tokenizer_config.json": b'{"auto_map": {}}'}, "files.tokenizer_config.json"),
        ({"config.json": b'{"architecture": 1}'}, "files.config.json"),
        ({"config.json": tensors("a")}, "files.config.json"),
        ({"vocab.txt": DATA}, "files.vocab.txt"),
        ({"model.safetensors": torch_file()}, "files.model.safetensors"),
        ({"model-00001-of-00001.safetensors": tensors("a")}, "files.model-00001-of-00001.safetensors"),
    ],
)
async def test_a_folder_that_is_no_model_is_refused_by_its_file(
    api: Api, changes: dict[str, bytes | None], wrong: str
) -> None:
    files = await folder(api, **changes)
    before = await keys_in_store(api)
    assert params(await register(api, files=files)) == [wrong]
    assert await keys_in_store(api) == before


async def test_a_document_without_end_is_refused_unread(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DOCUMENTS, "config.json", 10)
    assert params(await register(api, files=await folder(api))) == ["files.config.json"]


async def test_a_missing_file_of_a_folder_is_named(api: Api) -> None:
    files = await folder(api)
    assert params(await register(api, files={**files, "vocab.txt": "file_none"})) == ["files.vocab.txt"]


async def test_every_file_of_a_folder_is_kept_as_long_as_the_model(api: Api) -> None:
    files = await folder(api)
    model = (await register(api, files=files)).json()
    for file in files.values():
        assert code_of(await api.client.delete(f"/v1/files/{file}")) == (409, "file_in_use")
    await api.client.delete(f"/v1/models/{model['id']}")
    await settle(api)
    assert len(await keys_in_store(api)) == len(files)
    for file in files.values():
        assert (await api.client.delete(f"/v1/files/{file}")).status_code == 200


async def test_a_folder_of_this_services_own_is_described_by_itself(api: Api) -> None:
    files = await folder(api, **{"config.json": json.dumps(CONFIG).encode(), "model.safetensors": weights()})
    model = (await register(api, files=files)).json()
    assert model["config"]["architecture"] == CONFIG["architecture"]
    assert params(await register(api, files=files, config=CONFIG)) == ["config"]


SHARD = "model-00001-of-00002.safetensors"
ODD: list[bytes] = [
    b"{}",
    b"[]",
    b"1",
    b'"x"',
    b"null",
    b"not json",
    b'{"weight_map": null}',
    b'{"weight_map": []}',
    b'{"weight_map": {}}',
    b'{"weight_map": {"a": 1}}',
    b'{"weight_map": {"a": null}}',
    b'{"weight_map": {"a": ["model-00001-of-00002.safetensors"]}}',
    b'{"weight_map": {"a": "../model-00001-of-00002.safetensors"}}',
    b'{"weight_map": {"a": "/etc/passwd"}}',
    b'{"weight_map": {"a": "config.json"}}',
    b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"}}',
    b'{"weight_map": {"\\ud800": "x"}}',
    b"[" * 2000 + b"]" * 2000,
    b'{"weight_map": ' + b"[" * 900 + b"]" * 900 + b"}",
]


async def test_an_index_of_any_other_form_is_refused_by_its_name(api: Api) -> None:
    files = await folder(api, **{SHARD: tensors("a"), "model.safetensors": None})
    for raw in ODD:
        index = (await send(api, raw, "index"))["id"]
        answer = await register(api, files={**files, "model.safetensors.index.json": index})
        assert params(answer) == ["files.model.safetensors.index.json"], raw[:60]


async def test_shards_hold_what_the_index_says_and_nothing_else(api: Api) -> None:
    other = SHARD.replace("00001-", "00002-")

    async def told(placed: dict[str, str], **sent: bytes) -> list[str]:
        index = json.dumps({"weight_map": placed}).encode()
        files = {**sent, "model.safetensors.index.json": index, "model.safetensors": None}
        return params(await register(api, files=await folder(api, **files)))

    assert await told({"a": SHARD, "b": other}, **{SHARD: tensors("a")}) == [f"files.{other}"]
    assert await told({"a": SHARD}, **{SHARD: tensors("a", "b")}) == [f"files.{SHARD}"]
    assert await told({"a": SHARD}, **{SHARD: tensors("a"), other: tensors("b")}) == [f"files.{other}"]
    assert await told({"a": SHARD, "c": SHARD}, **{SHARD: tensors("a")}) == [f"files.{SHARD}"]


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
async def test_a_document_of_another_form_is_refused_by_its_name(api: Api, name: str) -> None:
    files = await folder(api)
    for raw in (b"null", b"1", b'"x"', b"not json", b"[1, {}]", b"{" * 500, b'{"a": [' + b"[" * 800):
        sent = (await send(api, raw, "document"))["id"]
        assert params(await register(api, files={**files, name: sent})) == [f"files.{name}"], raw[:60]


async def test_more_renames_than_a_client_can_wait_for_are_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_RENAMINGS", 1)
    file = (await send(api, tensors("fc0.weight", "fc0.bias"), "weights"))["id"]
    answer = await register(api, file=file, config=CONFIG, key_map=RENAME)
    assert params(answer) == ["key_map.rename"]
