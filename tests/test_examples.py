"""Every job file in `examples/` is accepted by the service and runs to its end, and every program does what it says."""

from __future__ import annotations

import importlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from app.recipe.diagnostics import DIAGNOSTICS
from app.recipe.losses import LOSSES
from app.recipe.optimizers import OPTIMIZERS, SCHEDULES
from app.recipe.students.architectures import STUDENTS
from app.recipe.students.model import ModelConfig
from app.recipe.tasks import TASKS
from stillhouse import Client, Job, documents
from tests.example_texts import BAD, GOOD, OTHER, write_articles, write_lists, write_pairs, write_sentences
from tests.stillhouse.process import environment, running
from worker.errors import UserError
from worker.students import timm_network
from worker.students.model import Model

EXAMPLES = Path(__file__).parents[1] / "examples"
METHODS = EXAMPLES / "methods.yaml"
LANGUAGE_METHODS = EXAMPLES / "methods-language.yaml"
SECONDS = 900
"""Longest wait for a job, a program, or all that the first test waits for: two idle cores take three minutes."""
pytestmark = [pytest.mark.timeout(SECONDS), pytest.mark.long]
FILES = sorted(path.name for path in EXAMPLES.glob("*.yaml") if path not in (METHODS, LANGUAGE_METHODS))
BRIEFLY = ("export=[safetensors]", "evaluation.every_epochs=1000")
TWO_STEPS = ("recipe.max_steps=2",)
SHORTENED = {"rollback.yaml": ("recipe.epochs=1", "recipe.batch_size=1000", "recipe.schedule.milestones=[0.5]")}
SHORTENED["convert.yaml"] = ()
"""What shortens an example that takes no `max_steps`."""
PLAYED = (
    *("cifar10.yaml", "sst2-teacher.yaml", "sst2.yaml", "sst2-shrink.yaml"),
    *("embedding-teacher.yaml", "embedding.yaml"),
    *("shakespeare-teacher.yaml", "shakespeare.yaml", "shakespeare-on-policy.yaml"),
)
"""Examples that the programs send."""
MADE_FIRST = (
    *("teacher.yaml", "vit.yaml", "faces-tough.yaml", "faces-tolerant.yaml"),
    *("token-classification-teacher.yaml", "multi-label-teacher.yaml", "adversarial-teacher.yaml"),
    *("image-embedding-teacher.yaml", "self-supervised.yaml"),
)
"""Other examples whose models others learn from."""
TAUGHT_BY = {
    "sst2.yaml": ["sst2-teacher.yaml"],
    "sst2-shrink.yaml": ["sst2-teacher.yaml"],
    "sst2-meta.yaml": ["sst2-teacher.yaml"],
    "transformer.yaml": ["sst2-teacher.yaml"],
    "multi-label.yaml": ["multi-label-teacher.yaml"],
    "embedding.yaml": ["embedding-teacher.yaml"],
    "retrieval.yaml": ["embedding-teacher.yaml"],
    "supernet.yaml": ["embedding-teacher.yaml"],
    "image-embedding.yaml": ["image-embedding-teacher.yaml"],
    "self-supervised-classes.yaml": ["self-supervised.yaml"],
    "token-classification.yaml": ["token-classification-teacher.yaml"],
    "convert.yaml": ["vit.yaml"],
    "adversarial.yaml": ["teacher.yaml", "adversarial-teacher.yaml"],
    "cifar10.yaml": ["cifar10"],
    "shakespeare.yaml": ["shakespeare-teacher.yaml"],
    "shakespeare-on-policy.yaml": ["shakespeare-teacher.yaml"],
    "shakespeare-codebook.yaml": ["shakespeare-teacher.yaml"],
} | {"faces.yaml": ["faces-tough.yaml", "faces-tolerant.yaml"]}
"""The teachers of an example; of all others it is `teacher.yaml`."""


class Service(NamedTuple):
    """A running service, the environment of its clients, and a folder with the data of the examples."""

    client: Client
    env: dict[str, str]
    folder: Path

    def read(self, name: str, *assignments: str) -> dict[str, Any]:
        """A job file as the command line sends it."""
        return self.client.upload_data(documents.read(EXAMPLES / name, assignments), folder=self.folder)

    def finished(self, name: str, *assignments: str) -> Job:
        """A job of two steps, when it is done."""
        job = self.client.submit(self.read(name, *assignments, *BRIEFLY, *SHORTENED.get(name, TWO_STEPS)))
        ended = self.client.wait(job.id, timeout_seconds=SECONDS)
        assert ended.status == "succeeded", ended.error
        return ended

    def program(self, name: str, *words: str | Path) -> str:
        """Run one of the programs with this service; what it printed."""
        command = [sys.executable, EXAMPLES / name, "--running", "--output", self.folder / name, *words]
        result = subprocess.run(command, capture_output=True, text=True, env=self.env, timeout=SECONDS)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("examples")
    write_data(root)
    env = environment(root / "data")
    with running(env) as (_, hello), Client(hello["url"], hello["key"]) as client:
        yield Service(client, env, root)


def write_data(folder: Path) -> None:
    """Data files by the names that the examples use."""
    for name in ("digits", "faces", "tags"):
        getattr(example(name), f"write_{name}")(folder)
    example("digit_pages").write_pages(folder)
    persons = example("face_pairs")
    persons.write_face_pairs(folder, *persons.draw_faces())
    write_images(folder / "images.npz", write_checkpoint(folder / "resnet8.th"))
    example("archives").write_parts(folder / "images.npz", folder, "cifar10")
    for name, rows in (("sst2.tsv.gz", 200), ("sst2-dev.tsv.gz", 40)):
        write_sentences(folder / name, rows)
    for name, rows in (("sts.tsv.gz", 120), ("sts-dev.tsv.gz", 30)):
        write_pairs(folder / name, rows)
    write_lists(folder / "lists.jsonl", 120)
    write_articles(folder / "articles.jsonl", 120)
    words = random.Random(0).choices(f"{GOOD} {BAD} {OTHER}".split(), k=600)
    (folder / "book.txt").write_text(". ".join(" ".join(words[start : start + 6]) for start in range(0, 600, 6)))
    example("shakespeare").write_text(folder / "book.txt", folder)


def example(name: str) -> ModuleType:
    """One of the programs, as a module."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


def write_checkpoint(path: Path) -> Model:
    """Save a ResNet-8 with random weights as akamaster/pytorch_resnet_cifar10 does; the model that it is."""
    words = documents.read(EXAMPLES / "teachers" / "cifar-resnet56.yaml", ["config.architecture.depth=8"])
    torch.manual_seed(0)
    model = Model(ModelConfig.model_validate(words["config"])).eval()
    with torch.no_grad():
        for name, values in model.network.state_dict().items():
            if "norm" in name and values.is_floating_point():
                values.copy_(torch.rand_like(values) + 0.5)
    state = {theirs(name): values for name, values in model.network.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 93.4}, path)
    return model


def theirs(name: str) -> str:
    """What that repository calls one of our weights."""
    part, _, rest = name.partition(".")
    if part == "stages":
        stage, rest = rest.split(".", 1)
        return f"module.layer{int(stage) + 1}.{rest.replace('norm', 'bn')}"
    return f"module.{ {'conv': 'conv1', 'norm': 'bn1', 'head': 'linear'}[part] }.{rest}"


def write_images(path: Path, teacher: Model) -> None:
    """Images of which the teacher knows all classes: they are what it says."""
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (168, 4, 4, 3), np.uint8)
    images = np.kron(blocks, np.ones((1, 8, 8, 1), np.uint8))
    with torch.no_grad():
        labels = teacher(torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(-1).numpy()
    assert len(np.unique(labels[128:])) > 1
    np.savez(path, x_train=images[:128], y_train=labels[:128], x_test=images[128:], y_test=labels[128:])


@pytest.fixture(scope="module")
def made(service: Service) -> dict[str, Job]:
    """The examples of teachers, run, by their file."""
    return {name: service.finished(name) for name in MADE_FIRST}


@pytest.fixture(scope="module")
def sst2(service: Service) -> str:
    """What the program for texts printed."""
    train, test = service.folder / "sst2.tsv.gz", service.folder / "sst2-dev.tsv.gz"
    return service.program("sst2.py", "--train", train, "--eval", test, "--rows", "64", "--epochs", "1")


@pytest.fixture(scope="module")
def sts(service: Service) -> str:
    """What the program for sentence encoders printed."""
    train, test = service.folder / "sts.tsv.gz", service.folder / "sts-dev.tsv.gz"
    return service.program("embedding.py", "--train", train, "--eval", test, "--rows", "64", "--epochs", "1")


@pytest.fixture(scope="module")
def shakespeare(service: Service) -> str:
    """What the program for language models printed."""
    return service.program("shakespeare.py", "--text", service.folder / "book.txt", "--epochs", "1", "--on-policy")


@pytest.fixture(scope="module")
def teachers(service: Service, made: dict[str, Job], sst2: str, sts: str, shakespeare: str) -> dict[str, str]:
    """Ids of the models to learn from, by what made them."""
    assert sst2
    assert sts
    assert shakespeare
    programs = ("sst2", "embedding", "shakespeare")
    [reader], [encoder], [writer] = (service.client.jobs(name=f"{name} teacher") for name in programs)
    bought = example("cifar10").register(service.client, service.folder / "resnet8.th", 8)
    own = {"sst2-teacher.yaml": reader, "embedding-teacher.yaml": encoder, "shakespeare-teacher.yaml": writer}
    jobs = {**made, **own}
    return {"cifar10": bought.id} | {name: str(job.model_id) for name, job in jobs.items()}


def assignments(name: str, teachers: dict[str, str]) -> list[str]:
    """What a job file leaves open: its teachers, and what its student goes on from."""
    job = documents.read(EXAMPLES / name)
    places = (
        ["teacher"] if "teacher" in job else [f"teachers[{index}]" for index in range(len(job.get("teachers", ())))]
    )
    known = TAUGHT_BY.get(name, ["teacher.yaml"])
    places += ["student"] if "model" in job["student"] and job["student"]["architecture"] != "timm" else []
    known = [*known, *known] if name == "pretrained.yaml" else known
    return [f"{place}.model={teachers[teacher]}" for place, teacher in zip(places, known, strict=False)]


@pytest.mark.parametrize("name", FILES)
def test_it_is_valid_as_it_stands(service: Service, teachers: dict[str, str], name: str) -> None:
    answer = service.client.validate(service.read(name, *assignments(name, teachers)))
    assert answer.valid, answer.errors
    method = documents.read(EXAMPLES / name)["recipe"].get("method", {}).get("kind")
    if method == "export":
        assert answer.total_steps == 0
    elif answer.total_steps is not None:  # known at once of archives, whose header tells how many samples there are
        assert answer.total_steps > 100


@pytest.mark.parametrize("name", [name for name in FILES if name not in PLAYED])
def test_it_runs_to_its_end(service: Service, made: dict[str, Job], teachers: dict[str, str], name: str) -> None:
    if name == "timm.yaml" and (reason := without_timm()):
        refused = service.client.submit(service.read(name, *BRIEFLY, *TWO_STEPS))
        error = service.client.wait(refused.id, timeout_seconds=SECONDS).error
        assert error is not None
        assert error.code == "missing_library"
        pytest.skip(reason)
    ended = made.get(name) or service.finished(name, *assignments(name, teachers))
    names = {artifact.name for artifact in service.client.artifacts(ended.id)}
    assert {"model.safetensors", "config.json", "report.json"} <= names
    reads_texts = ended.spec["student"]["architecture"] == "dual-encoder"
    assert ("tokenizer.json" in names) == (reads_texts or TASKS[ended.spec["task"]].reads == ("texts",))


def test_a_network_that_was_trained_elsewhere_teaches(service: Service) -> None:
    folder = service.folder
    short = ("--teacher-depth", "8", "--depth", "8", "--epochs", "1", "--images", "64")
    said = service.program("cifar10.py", "--data", folder / "images.npz", "--checkpoint", folder / "resnet8.th", *short)
    assert "64 images to learn from, 40 to be measured on" in said
    report = json.loads((folder / "cifar10.py" / "models" / "cifar10" / "report.json").read_text())
    assert report["teacher"]["accuracy"] == 1.0
    assert row(said, "teacher")[2:] == [f"{report['teacher'][name] * 100:.2f}" for name in ("accuracy", "ece")]
    shares = [f"{report['student'][name] * 100:.2f}" for name in ("accuracy", "ece", "agreement")]
    assert row(said, "distilled")[2:] == shares
    assert len(row(said, "alone")) == 4


def without_timm() -> str | None:
    """Why networks of timm can't be built here; none: they can."""
    try:
        timm_network.library()
    except UserError as error:
        return error.message
    return None


def row(printed: str, name: str) -> list[str]:
    """Parameters, weights and shares of one line of the table; not the time that it took."""
    line = next(line for line in printed.splitlines() if line.split()[:1] == [name] and "%" not in line)
    cells = [cell for cell in line.removeprefix(f" {name}").split("  ") if cell.strip()]
    return [cell.strip() for cell in cells][:-1]


def test_students_of_texts_learn_from_a_teacher_that_is_made_first(service: Service, sst2: str) -> None:
    assert "64 sentences to learn from, 40 to be measured on" in sst2
    folder = service.folder / "sst2.py" / "models"
    for name in ("sst2", "sst2, alone", "sst2 shrink"):
        read, network = (
            kind.from_pretrained(folder / name) for kind in (AutoTokenizer, AutoModelForSequenceClassification)
        )
        assert network(**read("a lovely film", return_tensors="pt")).logits.shape == (1, 2)
    depths = [
        json.loads((folder / name / "config.json").read_text())["num_hidden_layers"] for name in ("sst2", "sst2 shrink")
    ]
    assert depths == [1, 2]


def test_a_language_model_learns_from_one_that_is_made_first(service: Service, shakespeare: str) -> None:
    folder = service.folder / "shakespeare.py" / "models"
    report = json.loads((folder / "shakespeare" / "report.json").read_text())
    assert row(shakespeare, "distilled")[2] == f"{report['student']['perplexity']:.2f}"
    assert row(shakespeare, "teacher")[2] == f"{report['teacher']['perplexity']:.2f}"
    assert "continuations" in report
    assert row(shakespeare, "on-policy")
    for name in ("shakespeare", "shakespeare, alone", "shakespeare, on-policy"):
        read, network = (kind.from_pretrained(folder / name) for kind in (AutoTokenizer, AutoModelForCausalLM))
        tokens = read("a lovely", return_tensors="pt")
        assert network.generate(**tokens, max_new_tokens=3).shape[1] > tokens["input_ids"].shape[1]


def test_a_teacher_of_texts_may_come_as_a_folder(service: Service, teachers: dict[str, str]) -> None:
    folder, program = service.folder / "my-bert", example("sst2")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        service.client.download_model(teachers["sst2-teacher.yaml"], name, folder)
    assert program.depth_of(folder) == program.MADE_HERE
    teacher = program.register(service.client, folder)
    assignments = [f"teacher.model={teacher}", *program.places_in(program.MADE_HERE)]
    assert service.finished("sst2.yaml", *assignments).status == "succeeded"


def test_an_encoder_learns_from_one_that_is_made_first(service: Service, sts: str) -> None:
    assert "64 pairs to learn from, 30 to be measured on" in sts
    models = service.folder / "embedding.py" / "models"
    reports = [json.loads((models / name / "report.json").read_text()) for name in ("embedding", "embedding, alone")]
    assert f"{reports[0]['teacher']['spearman']:.3f}" in sts
    assert all(f"{report['student']['spearman']:.3f}" in sts for report in reports)
    assert [report["teacher"] is None for report in reports] == [False, True]
    encoder = SentenceTransformer(str(models / "embedding"), device="cpu")
    assert encoder.encode(["a lovely film"]).shape == (1, 64)


def test_an_encoder_that_sentence_transformers_reads_teaches(service: Service, sts: str) -> None:
    """Its folder, without what this service says of it."""
    assert sts
    folder = service.folder / "embedding.py" / "models" / "embedding"
    mine = service.folder / "my-encoder"
    shutil.copytree(folder, mine, ignore=shutil.ignore_patterns("stillhouse.json", "*.onnx"))
    teacher = example("embedding").register(service.client, mine)
    assert service.client.model(teacher).config is None
    assert service.finished("embedding.yaml", f"teacher.model={teacher}").status == "succeeded"


def test_photographs_take_the_place_of_drawn_faces(tmp_path: Path) -> None:
    arrays = {
        f"{key}_{part}": np.zeros((3, *shape))
        for part in ("train", "test")
        for key, shape in (("x", (8, 8)), ("y", (5, 2)))
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    command = [sys.executable, EXAMPLES / "faces.py", tmp_path, "--photographs", tmp_path / "mine.npz"]
    subprocess.run(command, check=True, capture_output=True)
    assert np.load(tmp_path / "faces.npz")["y"].shape == (3, 5, 2)


def test_photographs_of_persons_take_the_place_of_drawn_ones(tmp_path: Path) -> None:
    pictures = np.arange(8 * 16, dtype=np.uint8).reshape(8, 4, 4)
    persons = np.array([3, 3, 5, 5, 5, 9, 9, 7])
    arrays = {f"x_{part}": pictures for part in ("train", "test")} | {
        f"person_{part}": persons for part in ("train", "test")
    }
    np.savez(tmp_path / "mine.npz", **arrays)
    command = [sys.executable, EXAMPLES / "face_pairs.py", tmp_path, "--photographs", tmp_path / "mine.npz"]
    subprocess.run(command, check=True, capture_output=True)
    pairs = np.load(tmp_path / "face-pairs-test.npz")
    one, other = (pairs[name][:, 0, 0] // 16 for name in ("x", "other"))
    assert (one != other).all()
    assert np.array_equal(persons[one] == persons[other], pairs["y"] == 1)
    assert pairs["y"].mean() == 0.5
    assert np.array_equal(np.load(tmp_path / "face-persons.npz")["y"], persons)


def test_together_they_show_everything_that_a_job_can_choose() -> None:
    jobs = [documents.read(EXAMPLES / name) for name in FILES]
    recipes = [job["recipe"] for job in jobs]
    methods = list(yaml.safe_load(METHODS.read_text()).values())
    methods += [job["recipe"] for job in yaml.safe_load(LANGUAGE_METHODS.read_text()).values()]
    stages = [stage for method in methods for stage in method.get("stages", ())]
    shown = {
        *(loss["kind"] for recipe in (*recipes, *methods, *stages) for loss in recipe.get("losses", ())),
        *(recipe[part]["kind"] for recipe in recipes for part in ("optimizer", "schedule") if part in recipe),
        *(job["student"]["architecture"] for job in jobs),
        *(one["kind"] for job in jobs for one in job.get("evaluation", {}).get("diagnostics", ())),
    }
    kinds = {option.model_fields["kind"].default for option in (*LOSSES, *OPTIMIZERS, *SCHEDULES, *DIAGNOSTICS)}
    assert shown == kinds | {student.model_fields["architecture"].default for student in STUDENTS}
