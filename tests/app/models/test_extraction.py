"""Sub-networks of a searched student become models over HTTP."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from app.core.clock import now
from app.core.ids import new_id
from app.models import extraction
from app.models.extraction import leading
from app.models.tables import ModelRow
from app.recipe.students.architectures import Transformers
from app.recipe.students.model import ModelConfig
from app.recipe.students.searched import SEARCH, SearchedSpace, SearchFile, SearchRow, weights_name
from app.recipe.students.sub_spaces import SubNetwork, SubSpace
from tests import kinds
from tests.app.conftest import Api
from tests.app.files.uploads import keys_in_store, settle
from worker.methods.supernet_search import SharedWeights, _write
from worker.students.measure import network_cost
from worker.students.model import Model
from worker.students.super_network import SuperNetwork
from worker.students.weights import load_model

SIZES: dict[str, Any] = {
    **{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"intermediate_size": 32, "max_position_embeddings": 16},
}
SPACE = SubSpace(layers=[0.5, 0.75], width=[0.5, 0.75], ffn_ratio=[1.0, 2.0])


class Searched:
    """The bundle of a searched student with random weights, in a folder."""

    def __init__(self, folder: Path) -> None:
        kinds.write_encoder(folder)
        given = load_model(folder).config
        networks = SPACE.networks(SubNetwork(4, 16, 4, 32))
        whole = given.model_copy(update={"architecture": Transformers(config=SIZES)})
        self.space = SuperNetwork(SuperNetwork(whole, networks).config_of(networks[0]), networks)
        torch.manual_seed(0)
        self.model = Model(self.space.config).eval()
        rows = [self._row(number, sizes) for number, sizes in enumerate(networks)]
        described = SearchedSpace(weights=weights_name(0), config=self.space.config, axes=self.space.axes)
        self.document = SearchFile(spaces=[described], rows=rows, chosen=0)
        _write(self.document, [SharedWeights(self.space, self.model)], folder)
        (folder / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\nA student.\n")
        self.folder = folder

    def _row(self, number: int, sizes: SubNetwork) -> SearchRow:
        cost = network_cost(self.space.config_of(sizes))
        costs: dict[str, Any] = {**sizes._asdict(), "parameters": cost.parameters, "flops": cost.flops}
        return SearchRow(row=number, space=0, loss=0.5, **costs)

    async def publish(self, api: Api, config: ModelConfig) -> str:
        """Make it a model of the service."""
        files = []
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            name = path.relative_to(self.folder).as_posix()
            stored = await api.services.store.upload(path, f"jobs/x/artifacts/{name}")
            files.append({"name": name, "media_type": "application/octet-stream", **asdict(stored)})
        described = {"config": config.model_dump(mode="json"), "parameters": 1, "files": files, "report": {}}
        row = ModelRow(id=new_id("model"), project_id=api.project_id, name="found", created_at=now(), **described)
        async with api.services.database.write() as session:
            session.add(row)
        return row.id


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    return Searched(tmp_path_factory.mktemp("searched") / "bundle")


async def download(api: Api, model: dict[str, Any], folder: Path) -> Path:
    for file in model["files"]:
        path = folder / file["name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((await api.client.get(f"/v1/models/{model['id']}/files/{file['name']}")).content)
    return folder


async def test_an_extracted_model_is_the_slice_that_was_searched(
    api: Api, searched: Searched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "PART", 100)  # less than most tensors, and not a whole number of rows
    source = await searched.publish(api, searched.space.config)
    samples = torch.randint(5, 40, (3, 8), generator=torch.Generator().manual_seed(0))
    for row in searched.document.rows:
        answer = await api.client.post(f"/v1/models/{source}/extract", json={"row": row.row})
        assert answer.status_code == 201, answer.text
        model = answer.json()
        assert (model["name"], model["teacher_id"]) == (f"found row {row.row}", source)
        assert (model["job_id"], model["parameters"]) == (None, row.parameters)
        folder = await download(api, model, tmp_path / str(row.row))
        loaded, expected = load_model(folder), searched.space.extract(searched.model, row.sizes)
        with torch.no_grad():
            torch.testing.assert_close(loaded(samples), expected(samples), rtol=0.0, atol=0.0)
        assert sum(weight.numel() for weight in loaded.parameters()) == row.parameters
        assert loaded.config.model_dump() == searched.space.config_of(row.sizes).model_dump()
    library = AutoModel.from_pretrained(folder).config
    assert (library.num_hidden_layers, library.hidden_size, library.intermediate_size) == (2, 8, 8)
    assert SentenceTransformer(str(folder), device="cpu").encode(["red cat"]).shape == (1, 8)
    assert "license: mit" in (folder / "README.md").read_text()
    shown = (await api.client.get(f"/v1/models/{model['id']}")).json()
    assert shown["report"]["extracted"] == {"model": source, **searched.document.rows[-1].model_dump()}
    assert len((await api.client.get(f"/v1/models/{source}")).json()["children"]) == len(searched.document.rows)


async def test_a_repeated_request_returns_the_same_model(api: Api, searched: Searched) -> None:
    source = await searched.publish(api, searched.space.config)
    url, body = f"/v1/models/{source}/extract", {"row": 3, "name": "mine"}
    answers = await asyncio.gather(*(api.client.post(url, json=body) for _ in range(3)))
    (model_id,) = {answer.json()["id"] for answer in answers}
    await settle(api)
    assert len([key for key in await keys_in_store(api) if key.startswith("models/")]) == len(
        answers[0].json()["files"]
    )
    assert (await api.client.delete(f"/v1/models/{model_id}")).status_code == 200
    await settle(api)
    assert not [key for key in await keys_in_store(api) if key.startswith("models/")]
    assert (await api.client.post(url, json=body)).json()["id"] != model_id


async def test_a_row_that_was_extracted_has_one_name(api: Api, searched: Searched) -> None:
    url = f"/v1/models/{await searched.publish(api, searched.space.config)}/extract"
    model_id = (await api.client.post(url, json={"row": 3, "name": "mine"})).json()["id"]
    assert (await api.client.post(url, json={"row": 3})).json()["id"] == model_id
    answer = await api.client.post(url, json={"row": 3, "name": "other"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "already_extracted")
    assert model_id in answer.json()["error"]["message"]
    assert "mine" in answer.json()["error"]["message"]


async def test_what_cannot_be_extracted_is_refused(api: Api, searched: Searched) -> None:
    source = await searched.publish(api, searched.space.config)
    answer = await api.client.post(f"/v1/models/{source}/extract", json={"row": 99})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "row"
    assert answer.json()["error"]["errors"][0]["accepted"] == "0 to 7"
    row = {"config": searched.space.config.model_dump(mode="json"), "parameters": 1, "files": [], "report": {}}
    plain = ModelRow(id=new_id("model"), project_id=api.project_id, created_at=now(), **row)
    async with api.services.database.write() as session:
        session.add(plain)
    answer = await api.client.post(f"/v1/models/{plain.id}/extract", json={"row": 0})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_searched")
    assert SEARCH in answer.json()["error"]["message"]
    assert (await api.client.post("/v1/models/model_none/extract", json={"row": 0})).status_code == 404
    reader = await api.with_scopes("read")
    assert (await reader.post(f"/v1/models/{source}/extract", json={"row": 0})).status_code == 403


@pytest.mark.parametrize("wanted", [(3,), (2, 5), (4, 2), (2, 3, 1)])
def test_leading_parts_of_tensors(wanted: tuple[int, ...]) -> None:
    shape = (4, 5, 6)[: len(wanted)]
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    found = np.frombuffer(leading(memoryview(array.tobytes()), shape, wanted, 2), np.int16).reshape(wanted)
    assert np.array_equal(found, array[tuple(slice(0, size) for size in wanted)])
