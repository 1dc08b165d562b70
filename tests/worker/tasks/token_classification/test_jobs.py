"""Jobs of taggers: what they leave behind, and what they refuse."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from seqeval.metrics import f1_score
from transformers import AutoModelForTokenClassification, AutoTokenizer, BertConfig, BertForTokenClassification

from tests.worker.tasks.token_classification.sentences import (
    DISTILLED,
    NAMES,
    STUDENT,
    TEACHER,
    Document,
    rows,
    stage,
    write_lines,
)
from tests.worker.training.builders import finished, play, require_same_bits, weights
from worker.protocol import Assignment, CachePlace, Failed
from worker.students.weights import load_model, read_config

PLAIN = {"O": "DET", "B-PER": "NOUN", "I-PER": "NOUN", "B-LOC": "PROPN", "I-LOC": "PROPN"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a teacher that learned from the sentences."""
    folder = tmp_path_factory.mktemp("tags") / "teacher"
    return finished(folder, stage(folder, TEACHER, recipe={"epochs": 12}))


def report_of(bundle: Path) -> Document:
    told: Document = json.loads((bundle / "report.json").read_text())
    return told


def refusal(assignment: Assignment, folder: Path) -> Failed:
    word = play(assignment, folder).word
    assert isinstance(word, Failed)
    assert word.fault == "user"
    return word


def evaluated_on(folder: Path, some: list[Document]) -> Document:
    """Data with a file of their own to evaluate on."""
    write_lines(folder / "eval", some)
    return {"eval": "eval"}


def with_eval(assignment: Assignment) -> Assignment:
    return assignment.model_copy(update={"inputs": {**assignment.inputs, "eval": "eval"}})


def test_the_report_is_what_the_library_and_seqeval_find(tmp_path: Path, teacher: Path) -> None:
    held, folder = rows(30, seed=5), tmp_path / "student"
    data = evaluated_on(folder, held)
    recipe = {"epochs": 4}
    bundle = finished(folder, with_eval(stage(folder, STUDENT, teacher, DISTILLED, data=data, recipe=recipe)))
    read, network = (kind.from_pretrained(bundle) for kind in (AutoTokenizer, AutoModelForTokenClassification))
    assert network.config.id2label == dict(enumerate(NAMES))
    assert type(network).__name__ == "BertForTokenClassification"
    predicted = [predictions(read, network, row["words"]) for row in held]
    truth = [row["tags"][: len(own)] for row, own in zip(held, predicted, strict=True)]
    report = report_of(bundle)
    assert report["student"]["entity_f1"] == pytest.approx(f1_score(truth, predicted))
    pairs = [(a, b) for one, other in zip(truth, predicted, strict=True) for a, b in zip(one, other, strict=True)]
    assert report["student"]["accuracy"] == pytest.approx(np.mean([a == b for a, b in pairs]))
    assert report["teacher"]["entity_f1"] > 0.6
    assert report["epochs"]["by"] == "entity_f1"
    assert [row["type"] for row in report["entities"]] == ["LOC", "PER"]
    assert sum(row["support"] for row in report["entities"]) == sum(tag[0] == "B" for row in truth for tag in row)
    assert sum(row["samples"] for row in report["per_class"]) == len(pairs)


def predictions(read: Any, network: Any, words: list[str]) -> list[str]:
    """Tags of the words' first tokens."""
    encoded = read(words, is_split_into_words=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        choices = network(**encoded).logits[0].argmax(-1).tolist()
    told = encoded.word_ids()
    return [network.config.id2label[choices[told.index(word)]] for word in sorted({w for w in told if w is not None})]


def test_every_format_gives_logits_of_every_token(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    formats = ["safetensors", "onnx", "onnx-int8", "torch-export"]
    bundle = finished(folder, stage(folder, STUDENT, teacher, DISTILLED, export=formats))
    model, session = load_model(bundle), onnxruntime.InferenceSession(bundle / "model.onnx")
    program = torch.export.load(bundle / "model.pt2").module()
    draw = np.random.default_rng(0)
    for count, length in ((1, 32), (3, 7)):
        tokens = draw.integers(5, 40, (count, length))
        tokens[0, 5:] = 0
        expected = model(torch.from_numpy(tokens))
        assert expected.shape == (count, length, len(NAMES))
        (found,) = session.run(["logits"], {"tokens": tokens})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0.0, atol=1e-5)
        torch.testing.assert_close(program(torch.from_numpy(tokens)), expected, rtol=0.0, atol=1e-5)
    student = report_of(bundle)["student"]
    for graph in ("onnx", "torch_export"):
        assert student[graph]["entity_f1"] == pytest.approx(student["entity_f1"])
    assert 0.0 < student["onnx_int8"]["same_choice"] <= 1.0


def test_the_card_is_one_of_a_tagger_and_its_programs_run(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    bundle = finished(folder, stage(folder, STUDENT, teacher, DISTILLED, export=["safetensors", "onnx"]))
    card = (bundle / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card
    assert "The tag of a word is that of its first token." in card
    programs = [part.partition("```")[0] for part in card.split("```python\n")[1:]]
    assert len(programs) == 2
    for program in programs:
        printed: list[list[list[str]]] = []
        code = program.replace('"."', repr(str(bundle))).replace('"model.onnx"', repr(str(bundle / "model.onnx")))
        exec(code, {"print": printed.append})
        [both] = printed
        assert [len(row) for row in both] == [32, 32]
        assert set(both[0]) <= set(NAMES)


def test_a_distilled_student_resumes_to_the_same_bits(tmp_path: Path, teacher: Path) -> None:
    require_same_bits(partial(stage, network=STUDENT, teacher=teacher, losses=DISTILLED), tmp_path)


@pytest.mark.parametrize("kept", [{"store": "dense"}, {"store": "top-k", "k": 5}], ids=["dense", "top-k"])
def test_a_teacher_whose_logits_are_kept_teaches_the_same(tmp_path: Path, teacher: Path, kept: Document) -> None:
    make = partial(stage, network=STUDENT, teacher=teacher, losses=[*DISTILLED, {"kind": "kd-sim"}])
    finished(tmp_path / "asked", make(tmp_path / "asked", teacher_cache={"store": "off"}))
    told = []
    for name in ("first", "second"):
        place = {"teacher_cache": CachePlace(folder=str(tmp_path / "cache"))}
        bundle = finished(tmp_path / name, make(tmp_path / name, teacher_cache=kept).model_copy(update=place))
        told.append(report_of(bundle)["train"]["teacher_cache"]["teacher"])
    assert (told[0]["hits"], told[1]["misses"]) == (64, 0)
    assert weights(tmp_path / "first") == weights(tmp_path / "second") == weights(tmp_path / "asked")


def test_fewer_logits_may_be_kept(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    kept = {"store": "top-k", "k": 2, "dtype": "fp16"}
    place = {"teacher_cache": CachePlace(folder=str(tmp_path / "cache"))}
    assignment = stage(folder, STUDENT, teacher, DISTILLED, teacher_cache=kept)
    told = report_of(finished(folder, assignment.model_copy(update=place)))["train"]["teacher_cache"]["teacher"]
    assert told["bytes_per_token"] == 2 * (2 + 2) + 4


def test_micro_batches_do_not_change_what_is_learned(tmp_path: Path, teacher: Path) -> None:
    recipe = {"optimizer": {"kind": "sgd", "lr": 0.1}, "epochs": 1}
    found = []
    for parts in (1, 4):
        folder = tmp_path / str(parts)
        network = {**STUDENT, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        assignment = stage(folder, network, teacher, DISTILLED, recipe={**recipe, "accumulate": parts})
        found.append(load_model(finished(folder, assignment)).state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weighting", ["fixed", "entropy"])
def test_several_teachers_teach_together(tmp_path: Path, teacher: Path, weighting: str) -> None:
    folder = tmp_path / "student"
    assignment = stage(
        folder,
        STUDENT,
        losses=DISTILLED,
        teachers=[{"model": name, "name": name} for name in ("one", "other")],
        teacher_weighting=weighting,
    )
    inputs = {**assignment.inputs, "one": "one", "other": "other"}
    for name in ("one", "other"):
        shutil.copytree(teacher, folder / name)
    report = report_of(finished(folder, assignment.model_copy(update={"inputs": inputs})))
    assert list(report["teachers"]) == ["one", "other"]
    assert 0.0 <= report["student"]["agreement"] <= 1.0


@pytest.mark.parametrize("kind", ["token-mask", "mutual", "online", "meta", "ema"])
def test_other_ways_to_train_are_open(tmp_path: Path, teacher: Path, kind: str) -> None:
    changes: dict[str, Document] = {
        "token-mask": {"data": {"augment": [{"kind": "token-mask", "share": 0.2}]}},
        "mutual": {"recipe": {"method": {"kind": "mutual"}}},
        "online": {"recipe": {"method": {"kind": "online"}}},
        "meta": {"recipe": {"method": {"kind": "meta", "teacher_optimizer": {"kind": "sgd", "lr": 1e-3}}}},
        "ema": {"recipe": {"ema_decay": 0.9, "precision": "bf16"}},
    }
    folder = tmp_path / "student"
    report = report_of(finished(folder, stage(folder, STUDENT, teacher, DISTILLED, **changes[kind])))
    assert report["student"]["accuracy"] > 0.3
    assert ("learners" in report) == (kind == "mutual")


def test_a_student_made_of_its_teacher_begins_as_a_part_of_it(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    student = {"architecture": "shrink", "layers": 1}
    recipe = {"epochs": 1, "optimizer": {"kind": "sgd", "lr": 1e-9}}
    bundle = finished(folder, stage(folder, {}, teacher, DISTILLED, student=student, recipe=recipe))
    ours, theirs = (load_model(path).network.state_dict() for path in (bundle, teacher))
    torch.testing.assert_close(ours["classifier.weight"], theirs["classifier.weight"])
    assert read_config(bundle).class_names == NAMES


def test_a_stored_tagger_is_gone_on_from(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    assignment = stage(
        folder,
        {},
        student={"architecture": "pretrained", "model": "start"},
        recipe={"epochs": 1, "optimizer": {"kind": "sgd", "lr": 1e-9}},
    )
    shutil.copytree(teacher, folder / "start")
    inputs = {**assignment.inputs, "start": "start"}
    bundle = finished(folder, assignment.model_copy(update={"inputs": inputs}))
    ours, theirs = (load_model(path).network.state_dict() for path in (bundle, teacher))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0.0, atol=1e-6)


def test_a_tagger_of_the_library_teaches_by_the_names_of_its_tags(tmp_path: Path, teacher: Path) -> None:
    """Its tags stand in another order, and it knows one more."""
    theirs = tmp_path / "library"
    names = ["O", "I-PER", "B-PER", "B-MISC", "I-LOC", "B-LOC"]
    stored = BertForTokenClassification.from_pretrained(teacher)
    config = BertConfig.from_pretrained(teacher, id2label=dict(enumerate(names)), num_labels=len(names))
    network = BertForTokenClassification(config)
    state = stored.state_dict()
    order = [NAMES.index(name) if name in NAMES else 0 for name in names]
    state |= {f"classifier.{part}": state[f"classifier.{part}"][order].clone() for part in ("weight", "bias")}
    state["classifier.bias"][names.index("B-MISC")] = -1e3
    network.load_state_dict(state)
    network.save_pretrained(theirs)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(theirs)
    described = read_config(theirs)
    assert (described.task, described.class_names) == ("token-classification", names)
    reports = []
    for name, folder in (("ours", teacher), ("theirs", theirs)):
        own = tmp_path / name
        data = {"class_order": NAMES}
        reports.append(report_of(finished(own, stage(own, STUDENT, folder, DISTILLED, data=data))))
    for figure in ("entity_f1", "accuracy", "nll"):
        assert reports[1]["teacher"][figure] == pytest.approx(reports[0]["teacher"][figure])
        assert reports[1]["student"][figure] == pytest.approx(reports[0]["student"][figure], rel=1e-3)


def test_tags_of_words_are_judged_by_accuracy(tmp_path: Path) -> None:
    some = [{**row, "tags": [PLAIN[tag] for tag in row["tags"]]} for row in rows()]
    report = report_of(finished(tmp_path / "job", stage(tmp_path / "job", STUDENT, some=some)))
    assert report["epochs"]["by"] == "accuracy"
    assert not {"entity_f1", "entity_precision"} & report["student"].keys()
    assert "entities" not in report


@pytest.mark.parametrize("named", [True, False])
def test_tags_may_be_numbers(tmp_path: Path, named: bool) -> None:
    some = [{**row, "tags": [NAMES.index(tag) for tag in row["tags"]]} for row in rows()]
    data = {"class_order": NAMES} if named else {}
    bundle = finished(tmp_path / "job", stage(tmp_path / "job", STUDENT, some=some, data=data))
    assert read_config(bundle).class_names == (NAMES if named else None)
    assert report_of(bundle)["epochs"]["by"] == ("entity_f1" if named else "accuracy")


def test_files_name_tags_in_their_own_order(tmp_path: Path, teacher: Path) -> None:
    """The file to evaluate on lacks some of the tags."""
    folder = tmp_path / "job"
    held = [{"words": ["the", "ann"], "tags": ["O", "B-PER"]}, {"words": ["oslo"], "tags": ["B-LOC"]}]
    data = evaluated_on(folder, held)
    report = report_of(finished(folder, with_eval(stage(folder, STUDENT, teacher, DISTILLED, data=data))))
    assert [(row["name"], row["samples"]) for row in report["per_class"]] == [
        *(("B-LOC", 1), ("B-PER", 1), ("I-LOC", 0), ("I-PER", 0), ("O", 1)),
    ]


def test_words_that_are_not_read_are_warned_of(tmp_path: Path) -> None:
    some = [*rows(), {"words": ["the"] * 40, "tags": ["O"] * 40}]
    folder = tmp_path / "job"
    warnings = report_of(finished(folder, stage(folder, STUDENT, some=some)))["warnings"]
    told = [each["message"] for each in warnings if "max_length" in each["message"]]
    total = sum(len(row["words"]) for row in some)
    assert told == [f"10 of {total} words of data.train are beyond data.max_length, and their tags count for nothing"]


def test_a_weak_teacher_is_noticed_by_its_entities(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "job"
    some = [{**row, "tags": list(reversed(row["tags"]))} for row in rows()]
    evaluation = {"require_teacher": {"entity_f1": 0.9}}
    word = refusal(stage(folder, STUDENT, teacher, DISTILLED, some=some, evaluation=evaluation), folder)
    assert (word.code, word.param) == ("weak_teacher", "evaluation.require_teacher.entity_f1")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"words": ["a", "b"], "tags": ["O"]}, "row 1 of data.eval has 2 words and 1 tags"),
        ({"words": [], "tags": []}, "has [] in row 1; accepted: a list of words"),
        ({"words": ["a"], "tags": [None]}, "column 'tags' of data.eval has None in row 1"),
        ({"words": ["a", "b"], "tags": ["O", "B-MISC"]}, "label 'B-MISC' at row 1 of data.eval is no class"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, row: Document, told: str) -> None:
    folder = tmp_path / "job"
    data = evaluated_on(folder, [{"words": ["a"], "tags": ["O"]}, row])
    word = refusal(with_eval(stage(folder, STUDENT, data=data)), folder)
    assert (word.code, word.param) == ("invalid_data", "data.eval")
    assert told in word.message


def test_a_number_that_is_no_tag_is_named_with_its_row(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    some = [{"words": ["a", "b"], "tags": [0, 1]}, {"words": ["a", "b"], "tags": [1, 7]}]
    word = refusal(stage(folder, STUDENT, some=some * 5, data={"classes": 3}), folder)
    assert "label 7 at row 1 of data.train is outside 0..2" in word.message


def test_teachers_must_read_the_same_tokens(tmp_path: Path, teacher: Path) -> None:
    other = finished(tmp_path / "other", stage(tmp_path / "other", STUDENT, data={"tokenizer": {"kind": "bpe"}}))
    folder = tmp_path / "job"
    teachers = [{"model": "one", "name": "one"}, {"model": "other", "name": "other"}]
    assignment = stage(folder, STUDENT, losses=DISTILLED, teachers=teachers)
    shutil.copytree(teacher, folder / "one")
    shutil.copytree(other, folder / "other")
    inputs = {**assignment.inputs, "one": "one", "other": "other"}
    word = refusal(assignment.model_copy(update={"inputs": inputs}), folder)
    assert (word.code, word.param) == ("invalid_job", "data.tokenizer")


def test_a_teacher_of_whole_texts_is_refused(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "job"
    assignment = stage(folder, STUDENT, teacher, DISTILLED)
    described = json.loads((folder / "teacher" / "stillhouse.json").read_text())
    (folder / "teacher" / "stillhouse.json").write_text(json.dumps({**described, "task": "text-classification"}))
    word = refusal(assignment, folder)
    assert "was made for text-classification (accepted: a model for token-classification)" in word.message


def test_calibration_is_that_of_the_words_of_half_of_the_texts(tmp_path: Path, teacher: Path) -> None:
    held, folder = rows(40, seed=6), tmp_path / "student"
    asked = {"diagnostics": [{"kind": "calibration", "bins": 4}]}
    data = evaluated_on(folder, held)
    bundle = finished(folder, with_eval(stage(folder, STUDENT, teacher, DISTILLED, data=data, evaluation=asked)))
    report = report_of(bundle)
    found = report["diagnostics"]["calibration"]
    assert found["samples"] == {"fitted": 20, "judged": 20, "training": 0}
    assert set(found["figures"]) == {"student", "student_scaled", "teacher", "teacher_scaled"}
    plain = [row for row in found["table"] if row["model"] == "student" and row["bins"] == "equal-width"]
    words = sum(row["samples"] for row in plain)
    assert 20 < words < sum(len(row["words"]) for row in held)
    right = sum(row["samples"] * row["accuracy"] for row in plain)
    assert found["figures"]["student"]["accuracy"] == pytest.approx(right / words)
    assert found["figures"]["student_scaled"]["nll"] < found["figures"]["student"]["nll"]
