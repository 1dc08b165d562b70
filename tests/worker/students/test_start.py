"""Students that start from stored models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import SampleFacts
from app.recipe.job import JobSpec
from app.recipe.students.architectures import CifarResNet, Mlp, Network
from app.recipe.students.derived import student_input
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing, TextInput
from tests.worker.students import builders
from worker.errors import UserError
from worker.students.model import Model
from worker.students.start import start
from worker.students.weights import WEIGHTS, save_model

JOB: dict[str, Any] = {
    "data": {"train": "data"},
    "student": {"architecture": "pretrained", "model": "m"},
    "recipe": {"losses": [{"kind": "cross-entropy"}]},
}


def job(task: str = "image-classification", **changes: Any) -> JobSpec:
    return JobSpec.model_validate({**JOB, "task": task, **changes})


def texts(task: str = "text-classification", **data: Any) -> JobSpec:
    columns = {"label_columns": ["b"]} if task == "text-classification" else {}
    given = {"train": "data", "format": "jsonl", "input_columns": ["a"], **columns, "max_length": builders.LENGTH}
    return job(task, data={**given, **data})


def zoo(network: Network, **changes: Any) -> ModelConfig:
    image = ImageInput(channels=3, height=8, width=8)
    fields: dict[str, Any] = {"preprocessing": Preprocessing(mean=[0.5], std=[2.0]), "classes": 5, **changes}
    return ModelConfig(architecture=network, input=image, **fields)


def stored(folder: Path, model: Model) -> Path:
    folder.mkdir()
    save_model(model, folder)
    return folder


def started(model: Model, folder: Path, **changes: Any) -> Model:
    torch.manual_seed(1)
    return start(Model(model.config.model_copy(update=changes)), job(), {"m": folder}, print).eval()


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "vit", "resnet", "llama", "phi3"])
def test_it_outputs_what_the_stored_model_outputs(kind: str, tmp_path: Path) -> None:
    model = builders.decoder(kind) if kind in builders.DECODERS else builders.model(kind)
    samples = builders.samples(model.config)
    student = started(model, stored(tmp_path / "m", model))
    torch.testing.assert_close(student(samples), model(samples))


def test_one_of_the_zoo_takes_over_its_running_statistics_too(tmp_path: Path) -> None:
    model = Model(zoo(CifarResNet(depth=8, width=4))).eval()
    for name, buffer in model.network.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(0.3)
    student = started(model, stored(tmp_path / "m", model))
    ours, theirs = student.network.state_dict(), model.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", ["roberta", "vit", "zoo"])
def test_with_other_classes_only_what_makes_the_answer_is_fresh(kind: str, tmp_path: Path) -> None:
    model = Model(zoo(Mlp(hidden=[6]))) if kind == "zoo" else builders.model(kind)
    student = started(model, stored(tmp_path / "m", model), classes=3)
    torch.manual_seed(1)
    fresh = Model(student.config).network.state_dict()
    ours, theirs = student.network.state_dict(), model.network.state_dict()
    other = {name for name in ours if ours[name].shape != theirs[name].shape}
    assert other
    assert all(torch.equal(ours[name], fresh[name]) for name in other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() - other)


@pytest.mark.parametrize("kind", ["bert", "vit", "zoo"])
def test_with_as_many_answers_to_another_question_what_makes_them_is_fresh(kind: str, tmp_path: Path) -> None:
    model = Model(zoo(Mlp(hidden=[6]))) if kind == "zoo" else builders.model(kind)
    student = started(model, stored(tmp_path / "m", model), task="multi-label-classification")
    torch.manual_seed(1)
    fresh = Model(student.config).network.state_dict()
    ours, theirs = student.network.state_dict(), model.network.state_dict()
    last = {name for name in ours if ours[name].shape[:1] == (5,)}
    assert last
    assert all(torch.equal(ours[name], fresh[name]) for name in last)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours.keys() - last)


def renamed(folder: Path, change: Any) -> None:
    """The stored weights, changed as a whole."""
    weights = load_file(folder / WEIGHTS)
    save_file(change(weights), folder / WEIGHTS, metadata={"format": "pt"})


def test_an_encoder_without_a_classifier_gets_a_fresh_head(tmp_path: Path) -> None:
    """As the checkpoints that learned to fill in hidden words."""
    model = builders.model("bert")
    folder = stored(tmp_path / "m", model)
    renamed(
        folder,
        lambda all_: (
            {n: t for n, t in all_.items() if n.startswith("bert.") and "pooler" not in n}
            | {"cls.predictions.bias": torch.zeros(30)}
        ),
    )
    student = started(model, folder)
    ours, theirs = student.network.state_dict(), model.network.state_dict()
    body = [name for name in ours if name.startswith("bert.") and "pooler" not in name]
    assert len(body) > 10
    assert all(torch.equal(ours[name], theirs[name]) for name in body)
    assert not torch.equal(ours["classifier.weight"], theirs["classifier.weight"])


@pytest.mark.parametrize(
    ("kind", "name"),
    [("bert", "bert.encoder.layer.1.output.dense.weight"), ("gpt2", "transformer.h.1.mlp.c_fc.weight")],
)
def test_a_body_with_a_tensor_missing_is_refused_by_its_name(kind: str, name: str, tmp_path: Path) -> None:
    model = builders.decoder(kind) if kind in builders.DECODERS else builders.model(kind)
    folder = stored(tmp_path / "m", model)
    renamed(folder, lambda all_: {n: t for n, t in all_.items() if n != name})
    with pytest.raises(UserError, match="lacks the tensor") as caught:
        started(model, folder)
    assert (caught.value.code, caught.value.param) == ("invalid_student", "student.model")
    assert name in caught.value.message


def problems(spec: JobSpec, config: ModelConfig, train: SampleFacts | None = None) -> list[tuple[str, str]]:
    return [(each.param, each.message) for each in find_problems(spec, InputFacts(train, teachers={"m": config}))]


def pixels(channels: int = 3) -> SampleFacts:
    return SampleFacts(9, ImageInput(channels=channels, height=40, width=40), 4800, pixels=True)


def test_an_unfit_stored_model_is_reported_at_the_field_that_names_it() -> None:
    resnet, bert = zoo(CifarResNet(depth=8)), builders.described(builders.network("bert"))
    llama = builders.decoder("llama").config
    assert problems(job(), resnet, pixels()) == []
    assert problems(texts(), bert) == []
    assert problems(texts("causal-lm"), llama) == []
    assert problems(job(), resnet, pixels(channels=1)) == [("student.model", "takes 3 x 8 x 8")]
    assert problems(texts(), resnet) == [("student.model", "cifar-resnet reads no texts")]
    assert problems(texts("causal-lm"), bert) == [("student.model", "bert is not for causal-lm")]
    assert problems(texts(), llama) == [("student.model", "llama is not for text-classification")]


def test_how_it_reads_is_the_stored_model_s_to_say() -> None:
    bert = builders.described(builders.network("bert"))
    longer = texts(max_length=99)
    assert problems(longer, bert) == [("data.max_length", f"is 99, and student.model reads {builders.LENGTH} tokens")]
    own = texts(tokenizer={"kind": "wordpiece"})
    assert [param for param, _ in problems(own, bert)] == ["data.tokenizer"]
    sized = job(student_image_size=[16, 16])
    assert [param for param, _ in problems(sized, zoo(CifarResNet(depth=8)), pixels())] == ["student_image_size"]
    hub = job(student={"architecture": "pretrained", "hub": "some/model", "revision": "0" * 40})
    assert hub.references == {"data.train": "data"}
    assert job().references == {"data.train": "data", "student.model": "m"}


def test_texts_keep_the_vocabulary_of_the_network() -> None:
    llama = builders.decoder("llama").config
    given = TextInput(length=8, vocabulary=20, pad=2)
    assert student_input(texts("causal-lm"), {"m": llama}, given) == given.model_copy(
        update={"vocabulary": builders.VOCABULARY}
    )
