"""Jobs of sentence encoders: their bundles open in the readers of users, and return the same embeddings."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from app.recipe.job import JobSpec
from app.recipe.students.model import ModelConfig
from tests import kinds
from tests.kinds import BERT, ENCODER, LISTS, PAIRS, small_job
from tests.worker.training.builders import Played, play, weights
from worker.data.formats.columns import TextSamples
from worker.data.tokens import load_tokenizer
from worker.protocol import Assignment, CachePlace, CheckpointSaved, Failed, Finished, Log, Metrics, PhaseBegan, Stopped
from worker.students.model import Model
from worker.students.weights import load_model, save_model

Document = dict[str, Any]
TEXTS = ["red cat runs", "blue", "the old old tree sleeps and runs and sleeps", "house unknown"]
DISTANCE: Document = {"kind": "embedding-distance"}
LEARNED: Document = {"losses": [DISTANCE, {"kind": "similarity-matrix"}]}
MAKINGS: dict[str, Document] = {
    "mean": {},
    "cls": {"pooling": "cls"},
    "normalised mean": {"normalise": True},
    "normalised cls": {"pooling": "cls", "normalise": True},
}
SENTENCES: Document = {
    **PAIRS,
    **{"input_columns": ["one"], "label_columns": []},
    **{"eval": "pairs", "eval_input_columns": ["one", "other"], "eval_label_columns": ["score"]},
}
UNSCORED: Document = {**PAIRS, "label_columns": []}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    kinds.write_data(folder)
    kinds.write_encoder(folder / "encoder")
    return {path.stem: str(path) for path in folder.iterdir()}


def played(inputs: dict[str, str], folder: Path, recipe: Document = LEARNED, **more: Any) -> Played:
    job = JobSpec.model_validate(small_job(recipe, more.pop("student", ENCODER), "embedding", **more))
    named = {name: inputs[name] for name in job.references.values()}
    place = CachePlace(folder=str(folder.parent / "teachers"))
    return play(Assignment(spec=job, inputs=named, teacher_cache=place), folder)


def finished(inputs: dict[str, str], folder: Path, **more: Any) -> Path:
    word = played(inputs, folder, **more).word
    assert isinstance(word, Finished), word
    return folder / "bundle"


def report(folder: Path) -> Document:
    found: Document = json.loads((folder / "report.json").read_text())
    return found


def tokens(folder: Path) -> Tensor:
    return load_tokenizer(folder, "").encode(TextSamples(TEXTS), 8).ids


def plain(folder: Path, making: Document) -> Tensor:
    """Embeddings by the published recipe for such a folder: the library's hidden states, pooled by hand."""
    read = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder).eval()(**read).last_hidden_state
    seen = read["attention_mask"].unsqueeze(-1)
    vectors = states[:, 0] if making.get("pooling") == "cls" else (states * seen).sum(1) / seen.sum(1)
    return vectors / vectors.norm(dim=1, keepdim=True) if making.get("normalise") else vectors


@pytest.mark.parametrize("making", MAKINGS)
def test_every_reader_of_the_folder_returns_the_same_embeddings(
    inputs: dict[str, str], tmp_path: Path, making: str
) -> None:
    wanted = MAKINGS[making]
    formats = ["safetensors", "onnx", "torch-export"]
    folder = finished(inputs, tmp_path / "job", embedding=wanted, export=formats)
    ours = load_model(folder)(tokens(folder))
    assert ours.shape == (len(TEXTS), BERT["hidden_size"])
    encoder = SentenceTransformer(str(folder), device="cpu")
    assert encoder.max_seq_length == 8
    readers = {
        "sentence-transformers": torch.from_numpy(encoder.encode(TEXTS)),
        "transformers": plain(folder, wanted),
        "onnx": torch.from_numpy(
            onnxruntime.InferenceSession(folder / "model.onnx").run(["embeddings"], {"tokens": tokens(folder).numpy()})[
                0
            ]
        ),
        "torch-export": torch.export.load(folder / "model.pt2").module()(tokens(folder)),
    }
    for name, found in readers.items():
        torch.testing.assert_close(found, ours, rtol=0.0, atol=1e-5, msg=name)


def test_the_graph_takes_any_number_of_texts_of_any_length(inputs: dict[str, str], tmp_path: Path) -> None:
    folder = finished(inputs, tmp_path / "job", export=["safetensors", "onnx"], embedding={"normalise": True})
    session, model = onnxruntime.InferenceSession(folder / "model.onnx"), load_model(folder)
    draw = np.random.default_rng(0)
    for count, length in ((1, 8), (3, 5), (70, 4)):
        ids = draw.integers(5, 20, (count, length))
        ids[0, 3:] = 0
        found = torch.from_numpy(session.run(None, {"tokens": ids})[0])
        torch.testing.assert_close(found, model(torch.from_numpy(ids)), rtol=0.0, atol=1e-5)


def test_the_folder_describes_how_embeddings_are_computed(inputs: dict[str, str], tmp_path: Path) -> None:
    folder = finished(inputs, tmp_path / "job", embedding={"pooling": "cls", "normalise": True})
    modules = json.loads((folder / "modules.json").read_text())
    assert [(module["path"], module["type"].rpartition(".")[2]) for module in modules] == [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Normalize", "Normalize"),
    ]
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert pooling == {
        "word_embedding_dimension": 8,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_cls_token": True,
    }
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertModel"]
    card = (folder / "README.md").read_text()
    assert "SentenceTransformer" in card
    assert "`embeddings` (N, 8)" not in card  # there is no graph


def test_a_projection_is_learned_and_left_out_of_the_model(inputs: dict[str, str], tmp_path: Path) -> None:
    """The teacher's embeddings are twice as wide."""
    run = played(inputs, tmp_path / "job", export=["safetensors", "onnx"])
    assert isinstance(run.word, Finished)
    folder = tmp_path / "job" / "bundle"
    assert not [name for name in load_file(folder / "model.safetensors") if "projection" in name]
    figures = report(folder)
    assert (figures["targets"], figures["teacher"]["parameters"] > figures["student"]["parameters"]) == (8, True)
    assert "teacher_cosine" not in figures["student"]
    assert -1.0 <= figures["student"]["teacher_correlation"] <= 1.0
    assert "`embeddings` (N, 8)" in (folder / "README.md").read_text()


def test_widths_that_differ_without_a_projection_are_refused(inputs: dict[str, str], tmp_path: Path) -> None:
    word = played(inputs, tmp_path / "job", {"losses": [{**DISTANCE, "projection": "none"}]}).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("user", "invalid_job", "recipe.losses[0].projection")


def test_scores_are_compared_by_ranks_and_the_report_has_the_teachers_figures(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    figures = report(finished(inputs, tmp_path / "job", data=SENTENCES))
    assert figures["samples"] == {"train": 30, "eval": 30}
    for side in (figures["student"], figures["teacher"], figures["epochs"]["last"], figures["epochs"]["best"]):
        assert {"spearman", "pearson"} <= side.keys()
        assert "mrr" not in side
    assert figures["epochs"]["by"] == "spearman"


def test_pairs_without_scores_are_evaluated_by_retrieval(inputs: dict[str, str], tmp_path: Path) -> None:
    figures = report(finished(inputs, tmp_path / "job", data=UNSCORED))
    assert {"mrr", "recall_at_1", "recall_at_5", "recall_at_10"} <= figures["student"].keys() & figures[
        "teacher"
    ].keys()
    assert "spearman" not in figures["student"]
    assert figures["epochs"]["by"] == "mrr"


def test_queries_are_evaluated_by_retrieval_among_the_candidates_of_all(inputs: dict[str, str], tmp_path: Path) -> None:
    recipe = {"losses": [DISTANCE, {"kind": "contrastive"}, {"kind": "contrastive", "target": "teacher"}]}
    figures = report(finished(inputs, tmp_path / "job", recipe=recipe, data=LISTS))
    assert figures["samples"] == {"train": 24, "eval": 6}
    for side in (figures["student"], figures["teacher"]):
        assert {"mrr", "recall_at_1", "recall_at_5", "recall_at_10", "ndcg_at_10"} <= side.keys()
    assert figures["epochs"]["by"] == "mrr"


@pytest.mark.parametrize("form", ["lists", "pairs"])
def test_a_corpus_makes_retrieval_harder(inputs: dict[str, str], tmp_path: Path, form: str) -> None:
    """The texts of the pairs are added to the candidates of the lists, or the lines to the second texts of pairs."""
    path = tmp_path / "corpus"
    texts = [" ".join(words) for words in itertools.permutations(["red", "cat", "runs", "old"])]
    lines = ["text", *texts] if form == "pairs" else [json.dumps({"text": text}) for text in texts]
    path.write_text("\n".join(lines) + "\n")
    data = {**(LISTS if form == "lists" else UNSCORED), "eval": form}
    given = {**inputs, "corpus": str(path)}
    alone = report(finished(given, tmp_path / "alone", data=data))
    among = report(finished(given, tmp_path / "among", data={**data, "corpus": "corpus"}))
    assert {"mrr", "recall_at_10", "ndcg_at_10"} <= among["student"].keys()
    assert among["student"]["mrr"] < alone["student"]["mrr"]
    assert among["sources"]["data.corpus"]["reference"] == "corpus"


MINED: Document = {"data": {**UNSCORED, "mining": {"count": 3, "keep": "margin", "margin": 0.02}}, "teacher": None}


@pytest.mark.parametrize("form", ["pairs", "lists"])
@pytest.mark.parametrize("teacher", [None, {"model": "encoder"}])
def test_negatives_are_found_before_training(
    inputs: dict[str, str], tmp_path: Path, form: str, teacher: Document | None
) -> None:
    taught = [{"kind": "unime", "target": "teacher"}] if teacher and form == "lists" else []
    losses = [{"kind": "contrastive"}, *taught]
    data = {**(LISTS if form == "lists" else UNSCORED), "mining": {"count": 3, "skip_first": 1}}
    run = played(inputs, tmp_path / "job", recipe={"losses": losses}, data=data, teacher=teacher)
    assert isinstance(run.word, Finished), run.word
    mined = report(tmp_path / "job" / "bundle")["data"]["mining"]
    assert mined["by"] == ("teacher" if teacher else "student")
    assert mined["queries"] == 24
    assert 0 < mined["negatives"] <= 3 * 24
    assert mined["filtered"] > 0
    assert (mined["queries_with_fewer"] == 0) == (mined["negatives"] == 3 * 24)
    assert next(phase.phase for phase in run.of(PhaseBegan)) == "mining"
    assert any(f"{mined['filtered']} were left out" in entry.message for entry in run.of(Log))


def test_a_job_that_is_stopped_finds_the_same_negatives_again(inputs: dict[str, str], tmp_path: Path) -> None:
    def assignment(folder: Path) -> Assignment:
        spec = JobSpec.model_validate(small_job({"losses": [{"kind": "contrastive"}]}, ENCODER, "embedding", **MINED))
        return Assignment(spec=spec, inputs={name: inputs[name] for name in spec.references.values()})

    straight, halting, early = (tmp_path / name for name in ("straight", "halting", "early"))
    assert isinstance(play(assignment(straight), straight).word, Finished)
    assert play(assignment(early), early, steps=1).word == Stopped(step=0)
    stopped = play(assignment(halting), halting, steps=3)
    assert stopped.word == Stopped(step=2)
    saved = stopped.of(CheckpointSaved)[-1].path
    again = play(assignment(halting).model_copy(update={"resume": saved}), halting)
    assert isinstance(again.word, Finished)
    assert weights(halting) == weights(straight)
    assert report(halting / "bundle")["data"]["mining"] == report(straight / "bundle")["data"]["mining"]


def test_a_rule_that_keeps_nothing_ends_the_job(inputs: dict[str, str], tmp_path: Path) -> None:
    data = {**UNSCORED, "mining": {"keep": "margin", "margin": 2.0}}
    word = played(inputs, tmp_path / "job", recipe={"losses": [{"kind": "contrastive"}]}, data=data, teacher=None).word
    assert isinstance(word, Failed)
    assert (word.code, word.param) == ("invalid_data", "data.mining")


def test_a_trained_student_approaches_its_teacher(inputs: dict[str, str], tmp_path: Path) -> None:
    recipe = {"losses": [DISTANCE], "epochs": 30, "optimizer": {"kind": "adamw", "lr": 1e-2}}
    student = {"architecture": "shrink", "layers": 1, "init": "fresh"}
    run = played(inputs, tmp_path / "job", recipe, student=student, data=SENTENCES)
    cosines = [each.values["eval/teacher_cosine"] for each in run.of(Metrics) if "eval/teacher_cosine" in each.values]
    assert 1.0 - cosines[-1] < (1.0 - cosines[0]) / 2


def test_a_smaller_copy_begins_as_its_teacher(inputs: dict[str, str], tmp_path: Path) -> None:
    """With all layers and a negligible learning rate, it stays there."""
    recipe = {"losses": [DISTANCE], "epochs": 1, "optimizer": {"kind": "adamw", "lr": 1e-12}}
    student = {"architecture": "shrink", "layers": 2}
    folder = finished(inputs, tmp_path / "job", recipe=recipe, student=student)
    assert report(folder)["student"]["teacher_cosine"] == pytest.approx(1.0, abs=1e-6)
    narrow = {"architecture": "shrink", "width": 8}
    small = load_file(finished(inputs, tmp_path / "narrow", recipe=recipe, student=narrow) / "model.safetensors")
    whole = load_file(Path(inputs["encoder"]) / "model.safetensors")
    for name, tensor in small.items():
        leading = whole[name][tuple(slice(0, size) for size in tensor.shape)]
        torch.testing.assert_close(tensor, leading, rtol=0.0, atol=1e-6, msg=name)


def test_teacher_outputs_for_a_text_are_cached_for_the_next_job(inputs: dict[str, str], tmp_path: Path) -> None:
    """30 pairs in either job; other pairs are held out."""
    first = report(finished(inputs, tmp_path / "first", seed=1))["train"]["teacher_cache"]["teacher"]
    again = report(finished(inputs, tmp_path / "again", seed=2, recipe={"losses": [{"kind": "similarity-matrix"}]}))
    kept = again["train"]["teacher_cache"]["teacher"]
    assert (first["misses"], first["hits"]) == (48, 48)
    assert kept["key"] == first["key"]
    assert 0 < kept["misses"] < 48


def test_a_job_s_encoder_teaches_the_next_one(inputs: dict[str, str], tmp_path: Path) -> None:
    folder = finished(inputs, tmp_path / "first", embedding={"pooling": "cls"})
    made = {**inputs, "encoder": str(folder)}
    figures = report(finished(made, tmp_path / "second", student={"architecture": "shrink", "layers": 1}))
    pooling = json.loads((tmp_path / "second" / "bundle" / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode_cls_token"]
    assert "teacher_cosine" in figures["student"]


def test_a_classifier_can_not_teach_vectors(inputs: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    kinds.write_teachers(tmp_path / "models")
    word = played({**inputs, "encoder": str(tmp_path / "models" / "cnn")}, tmp_path / "job").word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "teacher.model")


def test_an_encoder_starts_from_a_stored_classifier_without_its_last_layer(
    inputs: dict[str, str], tmp_path: Path
) -> None:
    encoder = load_model(Path(inputs["encoder"]))
    outputs: Document = {"task": "text-classification", "classes": 3, "targets": None, "embedding": None}
    described = ModelConfig.model_validate({**encoder.config.model_dump(), **outputs})
    stored = tmp_path / "classifier"
    shutil.copytree(inputs["encoder"], stored)
    save_model(classifier := Model(described), stored)
    recipe = {**LEARNED, "max_steps": 1, "optimizer": {"kind": "sgd", "lr": 1e-30, "momentum": 0.0}}
    student = {"architecture": "pretrained", "model": "classifier"}
    result = played({**inputs, "classifier": str(stored)}, tmp_path / "job", recipe, student=student)
    assert isinstance(result.word, Finished), result.word
    body = classifier.network.state_dict()
    started = load_model(tmp_path / "job" / "bundle").network.state_dict()
    torch.testing.assert_close(started, {name: body[f"bert.{name}"] for name in started}, rtol=0, atol=1e-20)
