"""Jobs of language models whose teacher has another tokenizer."""

from __future__ import annotations

import json
import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from app.recipe.teachers.teacher import Teacher
from tests.worker.tasks.language import DISTILLED, GPT2, LENGTH, LLAMA, Document, sentences, stage
from tests.worker.training.builders import finished, play, require_same_bits
from worker.data.tokens import TextTokenizer, load_tokenizer
from worker.protocol import Assignment, Failed, Metrics
from worker.students.weights import load_model

ULD: list[Document] = [{"kind": "cross-entropy"}, {"kind": "uld"}]
OWN: Document = {"tokenizer": {"kind": "bpe", "vocabulary": 520, "lowercase": False}}


def babble() -> list[Document]:
    """Texts that fill a vocabulary with words that the other texts lack, and those other texts."""
    draw = random.Random(1)
    words = ["".join(draw.choices("bcdfghjklmnpqrstvwxyz", k=9)) for _ in range(32)]
    return [{"text": " ".join([word] * 90)} for word in words] + [{"text": text} for text in sentences()]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a teacher trained on the texts, in smaller pieces than a tokenizer trained on them."""
    folder = tmp_path_factory.mktemp("other") / "teacher"
    return finished(folder, stage(folder, {**GPT2, "n_positions": 64}, rows=babble(), data=SMALL, recipe={"epochs": 1}))


SMALL: Document = {"tokenizer": {"kind": "bpe", "vocabulary": 512, "lowercase": False}, "max_length": 48}
job = partial(stage, network=LLAMA, losses=ULD, data=OWN)


def report_of(bundle: Path) -> Any:
    return json.loads((bundle / "report.json").read_text())


def refusal(assignment: Assignment, folder: Path) -> Failed:
    word = play(assignment, folder).word
    assert isinstance(word, Failed), word
    assert word.fault == "user"
    return word


def test_a_student_learns_from_it_where_both_have_read_the_same_text(tmp_path: Path, teacher: Path) -> None:
    distances = []
    for weight in (1e-6, 3.0):
        folder = tmp_path / str(weight)
        losses = [{"kind": "cross-entropy"}, {"kind": "uld", "weight": weight}]
        recipe = {"epochs": 7, "optimizer": {"kind": "adamw", "lr": 1e-2}}
        played = play(job(folder, teacher=teacher, losses=losses, recipe=recipe), folder)
        distances.append(
            [each.values["train/loss/uld"] for each in played.of(Metrics) if "train/loss/uld" in each.values]
        )
    assert distances[1][-1] < 0.75 * distances[0][-1]  # the rest is where the teacher is uncertain
    report = report_of(tmp_path / "3.0" / "bundle")
    assert all(share > 0.9 for share in report["alignment"]["teacher"].values())  # pieces end where words do
    assert load_tokenizer(tmp_path / "3.0" / "bundle", "").digest != load_tokenizer(teacher, "").digest
    assert not {"agreement", "kl"} & report["student"].keys()
    assert {"perplexity", "bits_per_byte"} <= report["student"].keys() & report["teacher"].keys()


def test_teacher_and_student_are_measured_on_the_same_text(tmp_path: Path, teacher: Path) -> None:
    """The teacher's figures are those of plain logits, over sequences that end where the student's do."""
    folder = tmp_path / "student"
    assignment = job(folder, teacher=teacher, data={**OWN, "eval": "held", "max_length": 20})
    held_out = ["the cat sat on the mat.", "A bird"]
    (folder / "held").write_text("".join(json.dumps({"text": text}) + "\n" for text in held_out))
    bundle = finished(folder, assignment.model_copy(update={"inputs": {**assignment.inputs, "held": "held"}}))
    reader, model = load_tokenizer(teacher, ""), load_model(teacher)
    ids = torch.tensor([token for text in held_out for token in plain_ids(reader, text)])
    logs = F.log_softmax(model(ids[None, :-1])[0].double(), -1)
    counted = ids[1:] != ids[0]
    bits = float(F.nll_loss(logs[counted], ids[1:][counted], reduction="sum")) / math.log(2)
    found = report_of(bundle)["teacher"]
    assert found["bits_per_byte"] == pytest.approx(bits / sum(len(text.encode()) for text in held_out), rel=1e-5)


def test_the_report_has_continuations_of_teacher_and_student(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "student"
    bundle = finished(
        folder, job(folder, teacher=teacher, evaluation={"prompts": 2, "prompt_tokens": 5, "new_tokens": 4})
    )
    assert [row.keys() for row in report_of(bundle)["continuations"]] == [
        {"prompt", "held_out", "student", "teacher"}
    ] * 2


def test_a_job_resumes_to_the_same_bits(tmp_path: Path, teacher: Path) -> None:
    require_same_bits(partial(job, teacher=teacher), tmp_path)


def test_accumulation_leaves_the_step_as_it_is(tmp_path: Path, teacher: Path) -> None:
    states = []
    for parts in (1, 3):
        folder = tmp_path / str(parts)
        recipe = {"accumulate": parts, "max_steps": 3, "optimizer": {"kind": "sgd", "lr": 0.5}}
        states.append(load_model(finished(folder, job(folder, teacher=teacher, recipe=recipe))).network.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_it_can_be_combined_with_a_teacher_of_the_same_tokens(tmp_path: Path, teacher: Path) -> None:
    alike, folder = tmp_path / "alike", tmp_path / "student"
    finished(alike, stage(alike, GPT2))
    losses = [*DISTILLED[:1], {**DISTILLED[1], "teacher": "alike"}, {"kind": "uld", "teacher": "other"}]
    assignment = stage(folder, LLAMA, teacher, losses)
    (folder / "alike").symlink_to(alike / "bundle")
    named = [Teacher(model="alike", name="alike"), Teacher(model="teacher", name="other")]
    spec = assignment.spec.model_copy(update={"teacher": None, "teachers": named})
    inputs = {**assignment.inputs, "alike": "alike"}
    report = report_of(finished(folder, assignment.model_copy(update={"spec": spec, "inputs": inputs})))
    assert {"agreement", "kl"} <= report["student"].keys()
    assert list(report["alignment"]) == ["other"]
    assert {"alike", "other"} <= report["continuations"][0].keys()


def test_a_student_that_starts_as_a_stored_model_keeps_its_own_tokens(tmp_path: Path, teacher: Path) -> None:
    own, folder = tmp_path / "own", tmp_path / "student"
    began = finished(own, stage(own, LLAMA))
    student = {"architecture": "pretrained", "model": "own"}
    assignment = stage(folder, LLAMA, teacher, ULD, student=student)
    (folder / "own").symlink_to(began)
    bundle = finished(folder, assignment.model_copy(update={"inputs": {**assignment.inputs, "own": "own"}}))
    assert load_tokenizer(bundle, "").digest == load_tokenizer(began, "").digest
    assert report_of(bundle)["alignment"]["teacher"]["train"] > 0.9


@pytest.mark.parametrize(
    ("template", "prefix"),
    [
        ("[{{ m.role }}] {{ m.content | trim }}</s>\n", "[assistant] "),
        ("{{ m.role }}: {{ m.content }}</s>", "assistant: "),
    ],
)
def test_answers_of_chats_are_compared_whatever_the_templates(
    tmp_path: Path, teacher: Path, template: str, prefix: str
) -> None:
    talking, first = tmp_path / "talking", tmp_path / "first"
    add_template(teacher, talking, template, prefix)
    finished(first, stage(first, GPT2))
    add_template(first / "bundle", tmp_path / "own", "<s>{{ m.role }}\n{{ m.content }}</s>\n", "<s>assistant\n")
    folder = tmp_path / "student"
    assignment = stage(folder, LLAMA, talking, [{"kind": "uld", "teacher": "other"}, *ULD[:1]], CHATS)
    (folder / "own").symlink_to(tmp_path / "own")
    named = [Teacher(model="own", name="own"), Teacher(model="teacher", name="other")]
    spec = assignment.spec.model_copy(update={"teacher": None, "teachers": named})
    inputs = {**assignment.inputs, "own": "own"}
    report = report_of(finished(folder, assignment.model_copy(update={"spec": spec, "inputs": inputs})))
    assert 0.3 < report["alignment"]["other"]["train"] < 1.0


CHATS: list[Document] = [
    {"messages": [{"role": "user", "content": " What did it do?"}, {"role": "assistant", "content": text}]}
    for text in sentences(12)
]


def add_template(model: Path, to: Path, message: str, prefix: str) -> None:
    """A copy of a model with a chat template."""
    to.mkdir()
    for path in model.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    whole = f"{{% for m in messages %}}{message}{{% endfor %}}{{% if add_generation_prompt %}}{prefix}{{% endif %}}"
    settings = json.loads((model / "tokenizer_config.json").read_text()) | {"chat_template": whole}
    (to / "tokenizer_config.json").write_text(json.dumps(settings))


def test_chats_are_refused_if_its_tokenizer_has_no_template(tmp_path: Path, teacher: Path) -> None:
    own, folder = tmp_path / "own", tmp_path / "student"
    finished(tmp_path / "first", stage(tmp_path / "first", GPT2))
    add_template(tmp_path / "first" / "bundle", own, "<s>{{ m.role }}\n{{ m.content }}</s>\n", "<s>assistant\n")
    assignment = stage(folder, LLAMA, teacher, [{"kind": "uld"}], CHATS)
    (folder / "own").symlink_to(own)
    named = [Teacher(model="own", name="own"), Teacher(model="teacher", name="other")]
    spec = assignment.spec.model_copy(update={"teacher": None, "teachers": named})
    word = refusal(assignment.model_copy(update={"spec": spec, "inputs": {**assignment.inputs, "own": "own"}}), folder)
    assert (word.code, word.param) == ("invalid_teacher", "teachers[1].model")
    assert "chat template" in word.message


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"losses": DISTILLED}, "recipe.losses[1].kind"),
        ({"losses": [*ULD, {"kind": "jsd"}]}, "recipe.losses[2].kind"),
        (
            {
                "losses": [
                    *ULD,
                    {"kind": "hint", "pairs": [{"teacher": "transformer.h.1", "student": "model.layers.0"}]},
                ]
            },
            "recipe.losses[2].kind",
        ),
        ({"teacher_cache": {"store": "top-k", "k": 4}}, "teacher_cache.store"),
    ],
)
def test_losses_that_compare_token_with_token_are_refused(
    tmp_path: Path, teacher: Path, changes: Document, param: str
) -> None:
    folder = tmp_path / "student"
    losses = {"losses": ULD, **changes}
    word = refusal(stage(folder, LLAMA, teacher, data=OWN, **losses), folder)
    assert (word.code, word.param) == ("invalid_job", param)
    assert "another tokenizer" in word.message


def test_sequences_longer_than_its_context_are_refused(tmp_path: Path) -> None:
    teacher_folder, folder = tmp_path / "teacher_folder", tmp_path / "student"
    bundle = finished(
        teacher_folder,
        stage(
            teacher_folder,
            {**GPT2, "n_positions": LENGTH},
            rows=babble(),
            data={**SMALL, "max_length": LENGTH},
            recipe={"max_steps": 1},
        ),
    )
    word = refusal(job(folder, teacher=bundle), folder)
    assert (word.code, word.param) == ("invalid_job", "data.max_length")
    assert "at most" in word.message


def test_a_tokenizer_that_changes_every_text_is_refused(tmp_path: Path) -> None:
    teacher_folder, folder = tmp_path / "teacher_folder", tmp_path / "student"
    small = {"tokenizer": {"kind": "bpe", "vocabulary": 512, "lowercase": True}, "max_length": 32}
    bundle = finished(teacher_folder, stage(teacher_folder, GPT2, data=small, recipe={"max_steps": 1}))
    word = refusal(job(folder, teacher=bundle), folder)
    assert (word.code, word.param) == ("invalid_teacher", "teacher.model")
    assert "do not change texts" in word.message


def plain_ids(reader: TextTokenizer, text: str) -> list[int]:
    """A text's tokens with those around it."""
    [encoding] = reader.encode_whole([text])
    assert reader.end is not None
    return [*reader.begin, *encoding.ids, reader.end]
