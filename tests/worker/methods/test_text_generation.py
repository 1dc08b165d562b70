"""Students that learn from texts that they or their teachers generate."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.worker.data.loading import load_task
from tests.worker.tasks.language import CHATS, DISTILLED, GPT2, LENGTH, LLAMA, Document, can_talk, stage
from tests.worker.training.builders import Played, finished, play, require_same_bits, weights
from worker.data.randomness import derive_seed, generator
from worker.data.running_text import PackingDir
from worker.data.tokens import load_tokenizer
from worker.protocol import Assignment, CachePlace, Failed, Finished, Log, Metrics, Stopped
from worker.students.decoding import SamplingParams, next_logits
from worker.students.measure import reading
from worker.students.model import Model
from worker.students.weights import load_model, read_config
from worker.training.state import fresh_student

BEGIN, MOST, SEED, LONG = 4, 8, 1, 64
ON_POLICY: Document = {"kind": "on-policy", "share": 0.5, "prompt_tokens": BEGIN, "new_tokens": MOST}
ALWAYS: Document = {**ON_POLICY, "share": 1.0}
SEQUENCES: Document = {"kind": "sequence-level", "prompt_tokens": BEGIN, "new_tokens": MOST}
JUDGED: list[Document] = [
    {"kind": "jsd", "weight": 0.5, "temperature": 1.0},
    {"kind": "reverse-kl", "temperature": 2.0},
]
FEW: Document = {"store": "top-k", "k": 8, "dtype": "fp16"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a teacher that learned from the texts."""
    folder = tmp_path_factory.mktemp("written") / "teacher"
    return finished(
        folder, stage(folder, GPT2 | {"n_positions": LONG}, data={"max_length": LONG}, recipe={"epochs": 6})
    )


def job(
    folder: Path, teacher: Path, generation: Document | None, losses: list[Document] | None = None, **more: Any
) -> Assignment:
    recipe = {**({"method": generation} if generation else {}), **more.pop("recipe", {})}
    return stage(folder, LLAMA, teacher, losses or DISTILLED, recipe=recipe, **more)


def ran(folder: Path, assignment: Assignment) -> Played:
    played = play(assignment, folder)
    assert isinstance(played.word, Finished), played.word
    return played


def values_of(played: Played, name: str) -> list[float]:
    return [metrics.values[name] for metrics in played.of(Metrics) if name in metrics.values]


def card(folder: Path) -> str:
    return (folder / "bundle" / "README.md").read_text()


def report(folder: Path) -> Any:
    return json.loads((folder / "bundle" / "report.json").read_text())


@pytest.mark.parametrize(
    "generation", [ON_POLICY, {**SEQUENCES, "share": 0.5, "top_k": None}], ids=["on-policy", "sequences"]
)
def test_a_job_that_is_stopped_resumes_to_the_same_bits(tmp_path: Path, teacher: Path, generation: Document) -> None:
    require_same_bits(partial(job, teacher=teacher, generation=generation), tmp_path)
    for folder in (tmp_path / "straight", tmp_path / "halting"):
        assert 0 < report(folder)["train"]["written"]["steps"] < report(folder)["train"]["steps"]


@pytest.mark.parametrize("kind", ["on-policy", "sequence-level"])
def test_a_share_of_nothing_leaves_the_job_as_it_is(tmp_path: Path, teacher: Path, kind: str) -> None:
    for name, generation in (
        ("plain", None),
        ("none", {"kind": kind, "share": 0.0, "prompt_tokens": BEGIN, "new_tokens": 9}),
    ):
        ran(tmp_path / name, job(tmp_path / name, teacher, generation))
    assert weights(tmp_path / "none") == weights(tmp_path / "plain")


def test_the_loss_is_the_divergence_from_the_teacher_on_the_student_s_texts(tmp_path: Path, teacher: Path) -> None:
    """All of it computed again: prompts, draws without any memory, and the divergences of whole rows of logits."""
    folder, steps = tmp_path / "job", {"max_steps": 1, "batch_size": 64}
    played = ran(folder, job(folder, teacher, ALWAYS, JUDGED, recipe=steps))
    student, teacher_model = fresh_student(read_config(folder / "bundle"), SEED).eval(), load_model(teacher).eval()
    prompts = prompts_of(folder, teacher)
    texts = drawn(student, prompts, derive_seed(SEED, "writing", "student", 0, 0))
    ends = (texts[:, BEGIN:] == load_tokenizer(teacher, "").end).long()
    over = ends.cumsum(1) > ends
    with torch.no_grad():
        q, p = (model(texts[:, :-1])[:, BEGIN - 1 :].double() for model in (student, teacher_model))
    q, p = q[~over], p[~over]
    first, second = (logits.softmax(-1) for logits in (p, q))
    mean = (first + second) / 2
    jsd = 0.5 * divergence(first, mean) + 0.5 * divergence(second, mean)
    reverse = divergence((q / 2).softmax(-1), (p / 2).softmax(-1))
    assert values_of(played, "train/loss/jsd")[0] == pytest.approx(float(jsd), rel=1e-4)
    assert values_of(played, "train/loss/reverse-kl")[0] == pytest.approx(float(reverse), rel=1e-4)
    assert values_of(played, "train/loss")[0] == pytest.approx(0.5 * float(jsd) + float(reverse), rel=1e-4)
    assert values_of(played, "train/written_tokens") == [pytest.approx(int((~over).sum()) / len(texts))]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q), the mean of all rows."""
    return (p * (p.log() - q.log())).sum(-1).mean()


def drawn(student: Model, texts: Tensor, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(MOST):
        with torch.no_grad():
            chosen = SamplingParams(1.0, None).choose(next_logits(student, texts), draw)
        texts = torch.cat((texts, chosen.unsqueeze(1)), 1)
    return texts


def prompts_of(folder: Path, teacher: Path) -> Tensor:
    """The first step of a job whose batch is the whole data."""
    assignment = job(folder / "again", teacher, ALWAYS, JUDGED)
    inputs = {name: folder / "again" / path for name, path in assignment.inputs.items()}
    task = load_task(assignment.spec, inputs, {"teacher": read_config(teacher)}, SEED, PackingDir(folder / "packed"))
    assert task.prompts is not None
    order = torch.randperm(task.train.samples, generator=generator(SEED, "order", 0))
    return task.prompts.tokens[order]


@pytest.mark.parametrize("generation", [ALWAYS, SEQUENCES], ids=["on-policy", "sequences"])
def test_if_all_texts_are_generated_the_answers_of_the_data_are_not_used(
    tmp_path: Path, teacher: Path, generation: Document
) -> None:
    talking, prompt = can_talk(teacher, tmp_path / "talking"), "What did the cat do?"
    for name, answer in (("one", "the cat sat on the mat."), ("other", "A bird sang, and flew off")):
        rows = [{"messages": [{"role": "user", "content": f"{prompt} {row}"}, {"role": "assistant", "content": answer}]}
                for row in range(20)]  # fmt: skip
        data = {"max_length": LONG, "eval_fraction": 0.1}
        recipe = {"method": generation, "max_steps": 4, "epochs": 9}
        folder = tmp_path / name
        ran(
            folder,
            stage(folder, LLAMA | {"max_position_embeddings": LONG}, talking, JUDGED, rows, data=data, recipe=recipe),
        )
        assert report(folder)["train"]["written"]["steps"] == 4
    assert weights(tmp_path / "one") == weights(tmp_path / "other")


def test_the_cost_of_generation_is_counted_and_reported(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "job"
    played = ran(folder, job(folder, teacher, ALWAYS, JUDGED))
    own, other = reading(read_config(folder / "bundle")), reading(read_config(teacher))
    train, length = report(folder)["train"], BEGIN + MOST
    texts = 2 * report(folder)["samples"]["train"]
    assert train["written"]["by"] == "student"
    assert (train["written"]["texts"], train["written"]["steps"]) == (texts, train["steps"])
    assert train["written"]["mean_tokens"] == train["written"]["tokens"] / texts
    assert MOST / 2 < train["written"]["mean_tokens"] <= MOST
    assert train["student_flops"] == texts * (own.writing(BEGIN, length) + 3 * own.of(length - 1))
    assert train["teacher_flops"] == texts * other.of(length - 1)
    assert set(values_of(played, "train/written")) == {1.0}
    assert f"{train['steps']} of these steps on texts generated by the student" in card(folder)


def test_a_teacher_that_only_generates_computes_no_outputs(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "job"
    played = ran(folder, job(folder, teacher, SEQUENCES, [{"kind": "cross-entropy"}]))
    train, prompts = report(folder)["train"], report(folder)["samples"]["train"]
    assert (train["written"]["by"], train["written"]["texts"]) == ("teacher", prompts)
    assert any("has generated" in log.message for log in played.of(Log))
    length, cost = BEGIN + MOST, reading(read_config(teacher))
    assert train["teacher_flops"] == prompts * cost.writing(BEGIN, length)
    assert train["student_flops"] == 3 * 2 * prompts * reading(read_config(folder / "bundle")).of(length - 1)


def test_texts_are_generated_once_for_all_jobs_and_a_killed_one_continues(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sampler", "sequence_generator"):
        monkeypatch.setattr(f"worker.methods.{module}.CHUNK", 5)
    drawn = {**SEQUENCES, "top_k": None, "temperature": 1.5}

    def cached(name: str) -> Assignment:
        place = CachePlace(folder=str(tmp_path / "cache"))
        return job(tmp_path / name, teacher, drawn).model_copy(update={"teacher_cache": place})

    ran(tmp_path / "straight", job(tmp_path / "straight", teacher, drawn))
    killed = play(cached("killed"), tmp_path / "killed", steps=3)
    assert killed.word == Stopped(step=0)
    spent = []
    for name in ("next", "last"):
        ran(tmp_path / name, cached(name))
        assert weights(tmp_path / name) == weights(tmp_path / "straight")
        spent.append(report(tmp_path / name)["train"]["teacher_flops"])
    whole = report(tmp_path / "straight")["train"]["teacher_flops"]
    config, chunks = reading(read_config(teacher)), 2 * 5
    written = config.writing(BEGIN, BEGIN + MOST)
    assert spent[0] == whole - chunks * written
    assert spent[1] == whole - report(tmp_path / "last")["samples"]["train"] * written


def test_a_teacher_with_cached_outputs_is_run_on_generated_texts(tmp_path: Path, teacher: Path) -> None:
    make = partial(job, teacher=teacher, generation=ON_POLICY, teacher_cache=FEW)
    require_same_bits(make, tmp_path)
    train = report(tmp_path / "straight")["train"]
    cost, written = reading(read_config(teacher)), train["written"]
    misses = train["teacher_cache"]["teacher"]["misses"]
    assert train["teacher_flops"] == misses * cost.of(LENGTH) + written["texts"] * cost.of(BEGIN + MOST - 1)


@pytest.mark.parametrize(
    "recipe", [{"precision": "bf16"}, {"ema_decay": 0.9}, {"stages": [{"losses": DISTILLED, "epochs": 1}]}]
)
def test_generation_works_with_the_rest_of_a_recipe(tmp_path: Path, teacher: Path, recipe: Document) -> None:
    folder = tmp_path / "job"
    ran(folder, job(folder, teacher, ALWAYS, JUDGED, recipe=recipe))
    train, stages = report(folder)["train"], len(recipe.get("stages", ()))
    assert train["steps"] * 2 == train["written"]["steps"] * (2 + stages)  # of a stage before, none


def test_accumulation_does_not_change_a_step_on_generated_texts(tmp_path: Path, teacher: Path) -> None:
    states = []
    for parts in (1, 3):
        folder = tmp_path / str(parts)
        recipe = {"accumulate": parts, "max_steps": 2, "optimizer": {"kind": "sgd", "lr": 0.5}}
        ran(folder, job(folder, teacher, ALWAYS, JUDGED, recipe=recipe))
        states.append(load_model(folder / "bundle").network.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_a_student_with_non_finite_weights_is_an_error(tmp_path: Path, teacher: Path) -> None:
    folder = tmp_path / "job"
    recipe = {"optimizer": {"kind": "sgd", "lr": 1e30}}
    word = play(job(folder, teacher, ALWAYS, JUDGED, recipe=recipe), folder).word
    assert isinstance(word, Failed)
    assert word.code == "nan_loss"


def test_chats_whose_prompts_are_too_long_are_refused(tmp_path: Path, teacher: Path) -> None:
    talking, folder = can_talk(teacher, tmp_path / "talking"), tmp_path / "job"
    word = play(stage(folder, LLAMA, talking, JUDGED, CHATS, recipe={"method": ALWAYS}), folder).word
    assert isinstance(word, Failed)
    assert (word.fault, word.code, word.param) == ("user", "invalid_data", "recipe.method.new_tokens")


def test_a_teacher_with_more_tokens_generates_those_of_the_student(tmp_path: Path, teacher: Path) -> None:
    wide, folder = tmp_path / "wide", tmp_path / "job"
    wide.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(teacher / name, wide)
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.resize_token_embeddings(2000)
    model.save_pretrained(wide)
    drawn = {**SEQUENCES, "top_k": None, "temperature": 50.0}  # nearly every token is as likely as the others
    ran(folder, job(folder, wide, drawn))


def test_generated_texts_are_refused_for_a_teacher_with_another_tokenizer(tmp_path: Path, teacher: Path) -> None:
    other = tmp_path / "other"
    tokenizer = {"kind": "bpe", "vocabulary": 512, "lowercase": False}
    rows = [{"text": f"{row} other words, in other pieces"} for row in range(12)]
    data = {"tokenizer": tokenizer, "max_length": 48}
    finished(other, stage(other, GPT2 | {"n_positions": LONG}, rows=rows, data=data, recipe={"max_steps": 1}))
    losses, folder = [{"kind": "uld"}], tmp_path / "job"
    data = {"tokenizer": {"kind": "bpe", "vocabulary": 520, "lowercase": False}}
    word = play(job(folder, other / "bundle", ON_POLICY, losses, data=data), folder).word
    assert isinstance(word, Failed)
    assert (word.code, word.param) == ("invalid_job", "recipe.method")
