"""Weight-shared networks whose sub-networks are trained together and searched."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from app.recipe.checks import find_problems
from app.recipe.job import JobSpec
from app.recipe.students.architectures import Transformers
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.students.pooling import Embedding
from app.recipe.students.searched import SearchFile
from app.recipe.students.sub_spaces import PRESETS, SubNetwork, SubSpace
from tests import kinds
from tests.kinds import BERT, PAIRS, WORDS, WordPiece, small_job
from tests.worker.training.builders import Played, play, require_same_bits, require_same_bits_after_death
from worker.bundle import writer as bundle
from worker.data.formats.columns import TextSamples
from worker.data.tokens import train_tokenizer
from worker.methods.supernet_step import SupernetStep, draw
from worker.protocol import Assignment, Failed, Finished, Metrics
from worker.students.hugging_face_folder import write_tokenizer
from worker.students.model import Model
from worker.students.super_network import SuperNetwork
from worker.students.weights import load_model, save_model
from worker.training import measure

Document = dict[str, Any]
SIZES: Document = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32}
TEACHER = SubNetwork(4, 16, 4, 32)
SPACE: Document = {"layers": [0.5, 1.0], "width": [0.5, 0.75], "ffn_ratio": [1.0, 2.0]}
SMALL: Document = {"layers": [0.25, 0.5], "width": [0.5], "ffn_ratio": [1.0]}
METHOD: Document = {"kind": "supernet", "spaces": [SPACE], "drawn": 1}


def projections(layer: int) -> Document:
    names = (("queries", "query"), ("keys", "key"), ("values", "value"))
    return {key: f"encoder.layer.{layer}.attention.self.{name}" for key, name in names}


def relation(**changes: Any) -> Document:
    layer = {"teacher": projections(3), "student": projections(3)}
    return {"kind": "attention-relation", "relation_heads": 2, "layer": layer, **changes}


def job(recipe: Document = {}, **more: Any) -> Document:
    losses = [relation(), {"kind": "similarity-matrix", "compare": "mse", "weight": 0.1}]
    base = {"losses": losses, "method": METHOD, "optimizer": {"kind": "adamw", "lr": 1e-2}, **recipe}
    return small_job(base, {"architecture": "shrink"}, "embedding", **more)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    kinds.write_data(folder)
    write_encoder(folder / "encoder")
    return {path.stem: str(path) for path in folder.iterdir()}


def write_encoder(folder: Path) -> None:
    tokenizer = train_tokenizer(WordPiece(vocabulary=100), TextSamples(WORDS))
    config = ModelConfig(
        task="embedding",
        architecture=Transformers(config={**BERT, **SIZES}),
        input=TextInput(length=16, vocabulary=tokenizer.vocabulary, pad=tokenizer.pad, separator=tokenizer.separator),
        targets=16,
        embedding=Embedding(normalise=True),
    )
    folder.mkdir()
    torch.manual_seed(0)
    save_model(Model(config), folder)
    write_tokenizer(tokenizer, config, folder)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "draw_curves", lambda *_: None)
    monkeypatch.setattr(measure, "RUNS", 1)


def stage(folder: Path, inputs: dict[str, str], document: Document) -> Assignment:
    spec = JobSpec.model_validate(document)
    return Assignment(spec=spec, inputs={name: inputs[name] for name in spec.references.values()})


def played(folder: Path, inputs: dict[str, str], document: Document) -> Played:
    found = play(stage(folder, inputs, document), folder)
    assert isinstance(found.word, Finished), found.word
    return found


def test_a(inputs, tmp_path):
    found = played(tmp_path, inputs, job())
    for m in found.of(Metrics): print(m.values)
    print((tmp_path/"bundle"/"search.json").read_text()[:3000])
    print(json.loads((tmp_path/"bundle"/"report.json").read_text())["train"])
    print(sorted(p.name for p in (tmp_path/"bundle").iterdir()))
