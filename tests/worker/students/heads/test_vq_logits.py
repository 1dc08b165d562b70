"""Language models whose last layer is a codebook: clusters, jobs, files, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.recipe.checks import InputFacts, find_problems
from app.recipe.job import JobSpec
from app.recipe.students.architectures import Shrink, Transformers
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.students.shrink import Unshrinkable, shrunk
from tests.worker.tasks.language import DISTILLED, GPT2, LENGTH, LLAMA, Document, stage
from tests.worker.training.builders import finished, play, require_same_bits
from worker.clustering import k_means
from worker.protocol import Failed
from worker.students.heads.vq_logits import CodebookHead
from worker.students.measure import network_cost
from worker.students.weights import InvalidModel, load_model

CODES = 24
HEAD: Document = {"kind": "vq-logits", "codes": CODES}
STILL: Document = {"optimizer": {"kind": "sgd", "lr": 1e-30, "momentum": 0.0}, "epochs": 1, "max_steps": 1}


def student_of(network: Document = LLAMA, **head: Any) -> Document:
    return {"architecture": "transformers", "config": network, "head": {**HEAD, **head}}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a teacher that learned from the texts."""
    folder = tmp_path_factory.mktemp("language") / "teacher"
    return finished(folder, stage(folder, GPT2, recipe={"epochs": 4}))


@pytest.fixture(scope="module")
def bundle(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coded") / "student"
    formats = ["safetensors", "onnx", "torch-export"]
    return finished(folder, stage(folder, LLAMA, teacher, DISTILLED, student=student_of(), export=formats))


def test_clusters_end_where_nothing_moves_and_an_empty_one_stays() -> None:
    draw = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = (middles.repeat_interleave(5, 0) + torch.randn(15, 2, generator=draw)).double()
    start = torch.cat((middles, torch.tensor([[90.0, 90.0]]))).double()
    centres, clusters = k_means(rows, start)
    assert clusters.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    torch.testing.assert_close(centres[:3], rows.view(3, 5, 2).mean(1))
    torch.testing.assert_close(centres[3], start[3])


def test_of_equally_near_centres_the_first_counts() -> None:
    _, clusters = k_means(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [2.0], [2.0]]), rounds=1)
    assert clusters.tolist() == [0, 1]


@pytest.mark.parametrize("network", [LLAMA, {**LLAMA, "hidden_size": 8}], ids=["same", "narrower"])
def test_the_codes_are_clusters_of_the_teachers_output_embeddings(
    tmp_path: Path, teacher: Path, network: Document
) -> None:
    coded = finished(
        tmp_path / "job",
        stage(tmp_path / "job", network, teacher, DISTILLED, student=student_of(network), recipe=STILL),
    )
    head, rows = load_model(coded).codebook, load_model(teacher).network.lm_head.weight.detach()
    assert isinstance(head, CodebookHead)
    means = torch.stack([rows[head.codes == code].mean(0) for code in head.codes.unique()])
    nearest = head.codes.unique()[torch.cdist(rows, means).argmin(1)]
    assert (nearest == head.codes).double().mean() > 0.98, "Lloyd's algorithm has ended, or nearly so"
    if network == LLAMA:
        torch.testing.assert_close(head.weight.detach()[head.codes.unique()], means, rtol=1e-4, atol=1e-5)


def test_the_library_opens_a_student_by_a_row_for_every_token(bundle: Path) -> None:
    reader, theirs, ours = (
        AutoTokenizer.from_pretrained(bundle),
        AutoModelForCausalLM.from_pretrained(bundle),
        load_model(bundle),
    )
    encoded = reader("the cat", return_tensors="pt")
    torch.testing.assert_close(theirs(**encoded).logits, ours(encoded["input_ids"]))
    head = ours.codebook
    assert isinstance(head, CodebookHead)
    torch.testing.assert_close(theirs.lm_head.weight, head.weight[head.codes])
    written = theirs.generate(**encoded, max_new_tokens=5, do_sample=False)
    assert written.shape[1] > encoded["input_ids"].shape[1]


def test_the_graphs_give_the_same_tokens_and_have_the_codebook(bundle: Path) -> None:
    model, session = load_model(bundle), onnxruntime.InferenceSession(bundle / "model.onnx")
    program = torch.export.load(bundle / "model.pt2").module()
    tokens = np.random.default_rng(0).integers(5, model.config.outputs, (3, 7))
    expected = model(torch.from_numpy(tokens))
    (found,) = session.run(["logits"], {"tokens": tokens})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0.0, atol=1e-5)
    torch.testing.assert_close(program(torch.from_numpy(tokens)), expected, rtol=0.0, atol=1e-5)
    assert (found.argmax(-1) == expected.argmax(-1).numpy()).all()
    rows = model.config.outputs * LLAMA["hidden_size"] * 4
    assert (bundle / "model.onnx").stat().st_size < (bundle / "model.safetensors").stat().st_size + 40_000 - rows // 2


def test_the_report_has_the_size_of_the_head_and_what_it_can_not_learn(bundle: Path, teacher: Path) -> None:
    report = json.loads((bundle / "report.json").read_text())
    figures, tokens = report["codebook"], load_model(bundle).config.outputs
    assert (figures["codes"], figures["full_bytes"]) == (CODES, 4 * tokens * 16)
    assert figures["bytes"] == 4 * CODES * 16 + 4 * tokens
    assert 0 < figures["codes_in_use"] <= CODES
    assert figures["entropy_within_codes"] > 0.0
    assert 0.0 < figures["least_kl"] < report["student"]["kl"]
    assert report["student"]["parameters"] == network_cost(load_model(bundle).config).parameters


@pytest.mark.parametrize("network", [GPT2, LLAMA], ids=["tied", "untied"])
def test_a_student_with_a_codebook_resumes_to_the_same_bits(tmp_path: Path, teacher: Path, network: Document) -> None:
    make = partial(
        stage,
        network=network,
        teacher=teacher,
        losses=DISTILLED,
        student=student_of(network),
        recipe={"ema_decay": 0.9},
    )
    require_same_bits(make, tmp_path)


def test_a_student_with_a_codebook_can_teach_and_be_trained_further(tmp_path: Path, bundle: Path) -> None:
    taught = tmp_path / "taught"
    every: list[Document] = [*DISTILLED, {"kind": "akl"}]
    finished(taught, stage(taught, LLAMA, bundle, every))
    folder = tmp_path / "further"
    further = {"architecture": "pretrained", "model": "begins"}
    assignment = stage(folder, LLAMA, bundle, DISTILLED, student=further, recipe=STILL)
    (folder / "begins").symlink_to(bundle)
    again = finished(folder, assignment.model_copy(update={"inputs": {**assignment.inputs, "begins": "begins"}}))
    before, after = (load_model(each).network.state_dict() for each in (bundle, again))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor)


def test_files_that_are_no_codebook_are_refused(tmp_path: Path, bundle: Path) -> None:
    weights = load_file(bundle / "model.safetensors")
    for name, changed, message in (
        ("missing", {}, "lacks the tensor 'lm_head.codes'"),
        ("large", {"lm_head.codes": weights["lm_head.codes"] + CODES}, f"not from 0 to {CODES - 1}"),
        ("other", {"lm_head.codes": weights["lm_head.codes"].flip(0)}, "different weights"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for path in bundle.glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
        kept = {key: tensor for key, tensor in weights.items() if key != "lm_head.codes"}
        save_file({**kept, **changed}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(InvalidModel, match=message):
            load_model(folder)


def test_more_codes_than_tokens_end_the_job_as_its_owners_fault(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "job"
    word = play(stage(folder, LLAMA, teacher, DISTILLED, student=student_of(codes=4096)), folder).word
    assert isinstance(word, Failed)
    assert (word.fault, word.param) == ("user", "student.head.codes")
    assert "fewer than outputs" in word.message


def refusals(student: Document, losses: list[Document], teacher: bool = True) -> dict[str, str]:
    document: Document = {
        "task": "causal-lm",
        "data": {"format": "jsonl", "train": "file_1", "input_columns": ["text"], "max_length": LENGTH},
        "student": student,
        "recipe": {"losses": losses, "epochs": 1},
    }
    document |= {"teacher": {"model": "model_1"}} if teacher else {}
    text = TextInput(length=32, vocabulary=520)
    known = ModelConfig(task="causal-lm", architecture=Transformers(config=GPT2), input=text)
    problems = find_problems(JobSpec.model_validate(document), InputFacts(teachers={"model_1": known}))
    return {str(problem.param): problem.message for problem in problems}


@pytest.mark.parametrize(
    ("loss", "param"),
    [
        ({"kind": "reverse-kl"}, "recipe.losses[1].kind"),
        ({"kind": "akl"}, "recipe.losses[1].kind"),
        ({"kind": "kd", "standardize": True}, "recipe.losses[1].standardize"),
        ({"kind": "cross-entropy", "label_smoothing": 0.1}, "recipe.losses[1].label_smoothing"),
    ],
)
def test_losses_that_need_the_logits_of_all_tokens_are_refused(loss: Document, param: str) -> None:
    plain = {"architecture": "transformers", "config": LLAMA}
    assert param not in refusals(plain, [{"kind": "cross-entropy"}, loss])
    assert param in refusals(student_of(), [{"kind": "cross-entropy"}, loss])


def test_a_codebook_without_a_teacher_is_refused() -> None:
    assert "student.head.kind" in refusals(student_of(), [{"kind": "cross-entropy"}], teacher=False)
    assert refusals(student_of(), DISTILLED) == {}


def test_a_teacher_with_a_codebook_is_not_shrunk() -> None:
    coded = Transformers.model_validate({"config": GPT2, "head": HEAD})
    with pytest.raises(Unshrinkable, match="vq-logits"):
        shrunk(Shrink(layers=1), coded)
