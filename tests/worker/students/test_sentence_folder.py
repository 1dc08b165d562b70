"""Folders of sentence-transformers: written by that library and read here, and what can't be read is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from app.recipe.students.hugging_face import check_document, is_model_file
from app.recipe.students.model import TextInput
from app.recipe.students.pooling import Embedding
from app.recipe.students.sentence_folder import FILES, GENERAL, MODULES, POOLING, embedding_of, modules_of, pooling_of
from tests.kinds import write_encoder
from worker.data.formats.columns import TextSamples
from worker.data.tokens import load_tokenizer
from worker.students.faults import InvalidModel
from worker.students.weights import load_model, read_config

TEXTS = ["red cat runs", "blue", "the old old tree sleeps and runs", "old"]
MAKINGS = [Embedding(pooling=pooling, normalise=yes) for pooling in ("mean", "cls") for yes in (False, True)]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with random weights and a tokenizer, as the Transformers library keeps them."""
    folder = tmp_path_factory.mktemp("network") / "bert"
    write_encoder(folder)
    (folder / "stillhouse.json").unlink()
    return folder


def theirs(network: Path, folder: Path, making: Embedding, *more: torch.nn.Module) -> SentenceTransformer:
    """An encoder that the library has made and saved."""
    read = Transformer(str(network), max_seq_length=12)
    modules = [read, Pooling(16, pooling_mode=making.pooling), *more, *([Normalize()] if making.normalise else [])]
    encoder = SentenceTransformer(modules=modules, device="cpu")
    encoder.save(str(folder))
    return encoder


def edited(folder: Path, name: str, **changes: Any) -> None:
    document = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(document | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(InvalidModel) as caught:
        read_config(folder)
    return str(caught.value)


@pytest.mark.parametrize("making", MAKINGS)
def test_what_the_library_saved_gives_its_vectors(network: Path, tmp_path: Path, making: Embedding) -> None:
    encoder = theirs(network, tmp_path / "theirs", making)
    model = load_model(tmp_path / "theirs")
    assert model.config.embedding == making
    assert isinstance(model.config.input, TextInput)
    assert (model.config.task, model.config.outputs, model.config.input.length) == ("embedding", 16, 12)
    ids = load_tokenizer(tmp_path / "theirs", "").encode(TextSamples(TEXTS), 12).ids
    torch.testing.assert_close(model(ids), torch.from_numpy(encoder.encode(TEXTS)), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("making", MAKINGS)
def test_what_is_written_is_read_as_it_was(making: Embedding) -> None:
    for name in FILES:
        assert is_model_file(name)
    modules = check_document(MODULES, json.dumps(modules_of(making)).encode())["modules"]
    assert embedding_of(modules, pooling_of(making, 16), {}) == making


def test_older_settings_of_the_pooling_are_understood(network: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    theirs(network, folder, Embedding())
    older = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / POOLING).write_text(json.dumps(older))
    assert read_config(folder).embedding == Embedding(pooling="cls")


@pytest.mark.parametrize("pooling", ["max", "mean_sqrt_len_tokens", ["cls", "mean"]])
def test_another_pooling_is_refused(network: Path, tmp_path: Path, pooling: Any) -> None:
    theirs(network, tmp_path / "theirs", Embedding())
    edited(tmp_path / "theirs", POOLING, pooling_mode=pooling)
    assert "accepted: mean, cls" in refusal(tmp_path / "theirs")


def test_a_layer_behind_the_pooling_is_refused_by_its_name(network: Path, tmp_path: Path) -> None:
    theirs(network, tmp_path / "theirs", Embedding(), Dense(16, 4))
    assert "Dense' as module 2; accepted: Normalize" in refusal(tmp_path / "theirs")


def test_words_before_every_text_are_refused(network: Path, tmp_path: Path) -> None:
    theirs(network, tmp_path / "theirs", Embedding())
    edited(tmp_path / "theirs", GENERAL, prompts={"query": "query: "}, default_prompt_name="query")
    assert "default_prompt_name" in refusal(tmp_path / "theirs")


def test_capitals_that_the_tokenizer_does_not_see_are_refused(network: Path, tmp_path: Path) -> None:
    theirs(network, tmp_path / "theirs", Embedding())
    edited(tmp_path / "theirs", "sentence_bert_config.json", do_lower_case=True)
    assert "do_lower_case" in refusal(tmp_path / "theirs")


def test_settings_that_are_named_must_be_there(network: Path, tmp_path: Path) -> None:
    theirs(network, tmp_path / "theirs", Embedding())
    shutil.rmtree(tmp_path / "theirs" / "1_Pooling")
    assert "1_Pooling/config.json is missing" in refusal(tmp_path / "theirs")


@pytest.mark.parametrize(
    "modules",
    [
        b"{}",
        b"[]",
        b"[1, 2]",
        b'[{"type": "os.system", "path": ""}]',
        b'[{"type": "sentence_transformers.models.Transformer", "path": "../up"}]',
        b'[{"type": "sentence_transformers.models.Transformer", "path": ""}]',
        b'[{"type": "mine.Transformer", "path": ""}, {"type": "mine.Pooling", "path": "1_Pooling"}]',
    ],
)
def test_modules_that_we_do_not_know_are_refused_at_the_door(modules: bytes) -> None:
    with pytest.raises(ValueError, match=r"accepted|JSON list"):
        check_document(MODULES, modules)
