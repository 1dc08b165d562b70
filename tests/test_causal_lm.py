"""Language models over HTTP: a teacher learns, a student learns from it, and another is made of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillhouse import Client
from tests.stillhouse.process import environment, running
from tests.worker.tasks.language import DISTILLED, GPT2, LENGTH, LLAMA, sentences

SECONDS = 900


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    env = environment(tmp_path_factory.mktemp("language"))
    with running(env) as (_, hello), Client(hello["url"], hello["key"]) as client:
        yield client


def job(train: str, **more: Any) -> dict[str, Any]:
    tokens = {"tokenizer": {"kind": "bpe", "vocabulary": 520, "lowercase": False}} if "teacher" not in more else {}
    data = {"train": train, "format": "jsonl", "input_columns": ["text"], "max_length": LENGTH, **tokens}
    losses = DISTILLED if "teacher" in more else [{"kind": "cross-entropy"}]
    recipe = {"losses": losses, "epochs": 2, "batch_size": 8, "optimizer": {"kind": "adamw", "lr": 3e-3}}
    return {"task": "causal-lm", "data": data, "recipe": recipe, "export": ["safetensors"], "seed": 1, **more}


@pytest.mark.long
@pytest.mark.timeout(SECONDS)
def test_a_teacher_a_student_and_a_smaller_copy(client: Client, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences()))
    train = client.upload(tmp_path / "texts.jsonl").id
    network = {"architecture": "transformers", "config": GPT2}
    taught = client.wait(client.submit(job(train, student=network)).id, timeout_seconds=SECONDS)
    assert taught.status == "succeeded", taught.error
    teacher = {"model": str(taught.model_id)}
    students = {
        "student": {"architecture": "transformers", "config": LLAMA},
        "copy": {"architecture": "shrink", "layers": 1},
    }
    sent = {name: client.submit(job(train, student=student, teacher=teacher)).id for name, student in students.items()}
    for name, number in sent.items():
        ended = client.wait(number, timeout_seconds=SECONDS)
        assert ended.status == "succeeded", ended.error
        for artifact in client.artifacts(number):
            client.download(number, artifact.name, tmp_path / name)
        reader, model = (kind.from_pretrained(tmp_path / name) for kind in (AutoTokenizer, AutoModelForCausalLM))
        encoded = reader("the cat", return_tensors="pt")
        assert model.generate(**encoded, max_new_tokens=4, do_sample=False).shape[1] > encoded["input_ids"].shape[1]
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert {"perplexity", "agreement", "kl"} <= report["student"].keys()
        assert report["teacher"]["perplexity"] > 1.0
    refused = client.validate(job(train, student={"architecture": "mlp"}))
    assert not refused.valid
    require_written(client, job(train, student=students["student"], teacher=teacher), tmp_path)


def require_written(client: Client, document: dict[str, Any], folder: Path) -> None:
    """A student that learns from what it writes, unless that is longer than its sequences."""
    wanted = {"kind": "on-policy", "prompt_tokens": 4, "new_tokens": 8}
    written = client.submit({**document, "recipe": {**document["recipe"], "method": wanted}}).id
    ended = client.wait(written, timeout_seconds=SECONDS)
    assert ended.status == "succeeded", ended.error
    client.download(written, "report.json", folder)
    told = json.loads((folder / "report.json").read_text())["train"]["written"]
    assert told["by"] == "student"
    assert 0 < told["mean_tokens"] <= wanted["new_tokens"]
    long = {**document["recipe"], "method": {**wanted, "new_tokens": LENGTH}}
    [error] = client.validate({**document, "recipe": long}).errors
    assert error.param == "recipe.method.new_tokens"
