"""Jobs of language models: their bundles can be evaluated, generate texts and serve as teachers."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.recipe.students.architectures import Transformers
from app.recipe.teachers.teacher import Teacher
from tests.worker.tasks.language import CHATS, DISTILLED, GPT2, LENGTH, LLAMA, Document, can_talk, sentences, stage
from tests.worker.training.builders import finished, play, require_same_bits
from worker.data.tokens import load_tokenizer
from worker.protocol import Failed
from worker.students.model import Model
from worker.students.weights import load_model, read_config, save_model

LAST: Document = {"teacher": "transformer.h.1", "student": "model.layers.0"}
HINT: Document = {"kind": "hint", "pairs": [LAST]}
RELATION: Document = {
    "kind": "attention-relation",
    "relation_heads": 2,
    "layer": {
        "teacher": {"qkv": "transformer.h.1.attn.c_attn"},
        "student": {name: f"model.layers.0.self_attn.{name[0]}_proj" for name in ("queries", "keys", "values")},
    },
}
OUTSIDE: Document = {"kind": "akl"}
"""A divergence that has no kernel."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a teacher that learned from the texts."""
    folder = tmp_path_factory.mktemp("language") / "teacher"
    return finished(folder, stage(folder, GPT2, recipe={"epochs": 4}))


@pytest.mark.parametrize("losses", [DISTILLED, [*DISTILLED, HINT, RELATION, OUTSIDE]], ids=["fused", "all"])
def test_the_library_opens_a_student_and_generates_with_it(
    tmp_path: Path, teacher: Path, losses: list[Document]
) -> None:
    folder = tmp_path / "student"
    bundle = finished(folder, stage(folder, LLAMA, teacher, losses))
    reader, theirs, ours = (
        AutoTokenizer.from_pretrained(bundle),
        AutoModelForCausalLM.from_pretrained(bundle),
        load_model(bundle),
    )
    encoded = reader("the cat", return_tensors="pt")
    torch.testing.assert_close(theirs(**encoded).logits, ours(encoded["input_ids"]))
    written = theirs.generate(**encoded, max_new_tokens=5, do_sample=False)
    assert written.shape[1] > encoded["input_ids"].shape[1]
    assert theirs.generation_config.eos_token_id == reader.eos_token_id == load_tokenizer(bundle, "").end
    assert load_tokenizer(bundle, "").digest == load_tokenizer(teacher, "").digest


def test_the_report_has_metrics_and_continuations_of_student_and_teacher(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    bundle = finished(folder, stage(folder, LLAMA, teacher, DISTILLED))
    report = json.loads((bundle / "report.json").read_text())
    student = report["student"]
    assert {"perplexity", "nll", "accuracy", "agreement", "kl", "latency_ms_p50"} <= student.keys()
    assert student["perplexity"] == pytest.approx(math.exp(student["nll"]))
    assert {"perplexity", "nll", "accuracy"} <= report["teacher"].keys()
    assert report["teacher"]["perplexity"] < 520
    assert len(report["continuations"]) == 3
    for row in report["continuations"]:
        assert row.keys() == {"prompt", "held_out", "student", "teacher"}
        assert row["prompt"]
    assert "perplexity" in (bundle / "README.md").read_text()


def test_a_report_has_no_continuations_unless_requested(tmp_path: Path) -> None:
    bundle = finished(tmp_path / "job", stage(tmp_path / "job", GPT2, evaluation={"prompts": 0}))
    assert json.loads((bundle / "report.json").read_bytes())["continuations"] == []


@pytest.mark.parametrize("network", [GPT2, LLAMA], ids=["tied", "untied"])
def test_a_distilled_student_resumes_to_the_same_bits(tmp_path: Path, teacher: Path, network: Document) -> None:
    losses = [*DISTILLED, OUTSIDE]
    make = partial(stage, network=network, teacher=teacher, losses=losses, recipe={"ema_decay": 0.9})
    require_same_bits(make, tmp_path)


def test_the_graphs_of_a_student_return_logits_at_every_token(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    formats = ["safetensors", "onnx", "onnx-int8", "torch-export"]
    bundle = finished(folder, stage(folder, LLAMA, teacher, DISTILLED, export=formats))
    session, model = onnxruntime.InferenceSession(bundle / "model.onnx"), load_model(bundle)
    program = torch.export.load(bundle / "model.pt2").module()
    draw = np.random.default_rng(0)
    for count, length in ((1, LENGTH), (3, 7), (5, 3)):
        tokens = draw.integers(5, model.config.outputs, (count, length))
        expected = model(torch.from_numpy(tokens))
        assert expected.shape == (count, length, model.config.outputs)
        theirs = torch.from_numpy(session.run(["logits"], {"tokens": tokens})[0])
        torch.testing.assert_close(theirs, expected, rtol=0.0, atol=1e-5)
        torch.testing.assert_close(program(torch.from_numpy(tokens)), expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("shrink", [{"layers": 1}, {"layers": [1], "width": 8, "hidden": 32}])
def test_a_smaller_copy_of_a_teacher_begins_with_its_weights(tmp_path: Path, teacher: Path, shrink: Document) -> None:
    folder = tmp_path / "student"
    still = {"optimizer": {"kind": "sgd", "lr": 1e-30, "momentum": 0.0}, "epochs": 1, "max_steps": 1}
    student = {"architecture": "shrink", **shrink}
    bundle = finished(folder, stage(folder, GPT2, teacher, DISTILLED, student=student, recipe=still))
    small, large = load_model(bundle).network.state_dict(), load_model(teacher).network.state_dict()
    width, layer = shrink.get("width", 16), shrink["layers"][0] if isinstance(shrink["layers"], list) else 0
    mine = small["transformer.h.0.attn.c_attn.weight"]
    theirs = large[f"transformer.h.{layer}.attn.c_attn.weight"]
    assert mine.shape == (width, 3 * width)
    torch.testing.assert_close(mine[:, width : 2 * width], theirs[:width, 16 : 16 + width])
    torch.testing.assert_close(small["transformer.wte.weight"], large["transformer.wte.weight"][:, :width])
    origin = json.loads((bundle / "report.json").read_text())["origin"]
    assert (origin["teacher"], origin["layers"], origin["of_layers"]) == ("teacher", [layer], 2)
    assert (origin["heads"], origin["of_heads"]) == (list(range(width // 8)), 2)


def test_a_stored_student_starts_with_its_weights_its_tokenizer_and_its_whole_vocabulary(
    tmp_path: Path, teacher: Path
) -> None:
    """Its network has more tokens than the tokenizer of both, and than the teacher's network."""
    began = load_model(teacher)
    wide = began.config.input.model_copy(update={"vocabulary": began.config.outputs + 8})
    config = began.config.model_copy(update={"input": wide, "architecture": Transformers(config=LLAMA)})
    folder = tmp_path / "student"
    still = {"optimizer": {"kind": "sgd", "lr": 1e-30, "momentum": 0.0}, "epochs": 1, "max_steps": 1}
    student = {"architecture": "pretrained", "model": "begins"}
    assignment = stage(folder, LLAMA, teacher, [*DISTILLED, OUTSIDE], student=student, recipe=still)
    (folder / "begins").mkdir()
    model = Model(config)
    save_model(model, folder / "begins")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(teacher / name, folder / "begins" / name)
    inputs = {**assignment.inputs, "begins": "begins"}
    bundle = finished(folder, assignment.model_copy(update={"inputs": inputs}))
    after = load_model(bundle)
    assert after.config.outputs == config.outputs
    for name, tensor in model.network.state_dict().items():
        torch.testing.assert_close(after.network.state_dict()[name], tensor)
    assert load_tokenizer(bundle, "").digest == load_tokenizer(teacher, "").digest
    report = json.loads((bundle / "report.json").read_text())
    assert 0 < report["student"]["kl"] < 20
    assert report["origin"] == {"started_from": "begins"}
    assert "started from `begins`" in (bundle / "README.md").read_text()


def test_a_student_from_weights_without_a_tokenizer_is_refused(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    student = {"architecture": "pretrained", "model": "begins"}
    assignment = stage(folder, LLAMA, teacher, DISTILLED, student=student)
    shutil.copytree(teacher, folder / "begins", ignore=shutil.ignore_patterns("tokenizer*", "stillhouse.json"))
    word = play(assignment.model_copy(update={"inputs": {**assignment.inputs, "begins": "begins"}}), folder).word
    assert isinstance(word, Failed)
    assert (word.code, word.param) == ("invalid_student", "student.model")
    assert "tokenizer" in word.message


def test_accumulation_leaves_the_step_as_it_is(tmp_path: Path, teacher: Path) -> None:
    states = []
    for parts in (1, 3):
        folder = tmp_path / str(parts)
        losses = [*DISTILLED, HINT, OUTSIDE]
        recipe = {"accumulate": parts, "max_steps": 3, "optimizer": {"kind": "sgd", "lr": 0.5}}
        bundle = finished(folder, stage(folder, LLAMA, teacher, losses, recipe=recipe))
        states.append(load_model(bundle).network.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_a_teacher_may_have_more_tokens_than_its_tokenizer(tmp_path: Path, teacher: Path) -> None:
    """As published models are, whose vocabularies are rounded up."""
    wide = tmp_path / "wide"
    config = json.loads((teacher / "config.json").read_text()) | {"vocab_size": 640}
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.resize_token_embeddings(640)
    model.save_pretrained(wide)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (wide / name).write_bytes((teacher / name).read_bytes())
    assert read_config(wide).outputs == config["vocab_size"]
    folder = tmp_path / "student"
    bundle = finished(folder, stage(folder, LLAMA, wide, [*DISTILLED, OUTSIDE]))
    assert load_model(bundle).config.outputs < 640


def test_a_teacher_may_run_in_bf16(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    losses = [*DISTILLED, HINT, OUTSIDE]
    finished(folder, stage(folder, LLAMA, teacher, losses, recipe={"precision": "bf16"}))


def test_only_the_answers_of_chats_are_targets(tmp_path: Path, teacher: Path) -> None:
    talking = can_talk(teacher, tmp_path / "talking")
    folder = tmp_path / "student"
    bundle = finished(folder, stage(folder, LLAMA, talking, DISTILLED, CHATS))
    reader = AutoTokenizer.from_pretrained(bundle)
    assert reader.apply_chat_template(CHATS[0]["messages"], tokenize=False).endswith("That is all.</s>\n")


def test_chats_without_a_template_are_refused(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    word = play(stage(folder, LLAMA, teacher, DISTILLED, CHATS), folder).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("user", "invalid_job", "data.tokenizer")


def test_teachers_with_another_tokenizer_are_refused(tmp_path: Path, teacher: Path) -> None:
    other = tmp_path / "other"
    finished(other, stage(other, GPT2, data={"tokenizer": {"kind": "bpe", "vocabulary": 600, "lowercase": True}}))
    folder = tmp_path / "student"
    assignment = stage(folder, LLAMA, teacher, DISTILLED)
    (folder / "other").symlink_to(other / "bundle")
    named = [Teacher(model=name, name=name) for name in ("teacher", "other")]
    spec = assignment.spec.model_copy(update={"teacher": None, "teachers": named})
    inputs = {**assignment.inputs, "other": "other"}
    word = play(assignment.model_copy(update={"spec": spec, "inputs": inputs}), folder).word
    assert isinstance(word, Failed)
    assert (word.code, word.param) == ("invalid_job", "recipe.losses[1].kind")
    assert "accepted: uld" in word.message


def test_the_measures_are_those_of_plain_logits(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    data = {"eval": "held"}
    assignment = stage(folder, LLAMA, teacher, DISTILLED, data=data)
    held = "".join(json.dumps({"text": text}) + "\n" for text in sentences(3))
    (folder / "held").write_text(held)
    bundle = finished(folder, assignment.model_copy(update={"inputs": {**assignment.inputs, "held": "held"}}))
    reader = load_tokenizer(bundle, "")
    stream = [token for text in sentences(3) for token in plain_ids(reader, text)]
    student, teacher_model = load_model(bundle), load_model(teacher)
    logs, known = [], []
    for start in range(0, len(stream) - 1, LENGTH):
        ids = torch.tensor([stream[start : min(start + LENGTH, len(stream) - 1)]])
        logs.append(F.log_softmax(student(ids)[0].double(), -1))
        known.append(F.log_softmax(teacher_model(ids)[0].double(), -1))
    q, p, labels = torch.cat(logs), torch.cat(known), torch.tensor(stream[1:])
    counted = labels != stream[0]  # what a text begins with is not predicted
    q, p, labels = q[counted], p[counted], labels[counted]
    found = json.loads((bundle / "report.json").read_text())["student"]
    assert found["nll"] == pytest.approx(float(F.nll_loss(q, labels)), rel=1e-5)
    assert found["kl"] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert found["agreement"] == pytest.approx(float((q.argmax(-1) == p.argmax(-1)).double().mean()))
    size = sum(len(text.encode()) for text in sentences(3))
    bits = float(F.nll_loss(q, labels, reduction="sum")) / math.log(2)
    assert found["bits_per_byte"] == pytest.approx(bits / size, rel=1e-5)


def plain_ids(reader: object, text: str) -> list[int]:
    """A text's tokens with those around it."""
    [encoding] = reader.encode_whole([text])  # type: ignore[attr-defined]
    return [*reader.begin, *encoding.ids, reader.end]  # type: ignore[attr-defined]
