"""The model card: its header, and programs that run in a process without our code."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Network
from app.recipe.students.exports import exports_of
from app.recipe.students.model import ImageInput, TableInput
from tests.kinds import small_job
from tests.worker.bundle.test_writer import CPU, card_in, report_in, trained_on_numbers
from tests.worker.tasks import language
from tests.worker.tasks import test_texts as texts
from tests.worker.training.builders import document, finished, play, stage
from worker.bundle import writer as bundle
from worker.bundle.card import model_card
from worker.bundle.provenance import licence_of
from worker.bundle.writer import require_exportable, write_bundle
from worker.errors import UserError
from worker.protocol import Assignment, Failed, Finished, InputSource, Log
from worker.students.model import Model
from worker.students.weights import load_model
from worker.tasks import task_for

ARCHITECTURE: TypeAdapter[Any] = TypeAdapter(Network)
LIBRARY = {"architecture": "transformers", "config": {"model_type": "resnet"}}
ALL_FORMATS = ["safetensors", "onnx", "onnx-int8", "torch-export"]
FILES = ["model.safetensors", "model.onnx", "model.int8.onnx", "model.pt2"]


def header(folder: Path) -> dict[str, Any]:
    """The YAML of a bundle's card."""
    begin, text, _ = card_in(folder).split("---\n", 2)
    assert begin == ""
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def programs(folder: Path) -> dict[str, str]:
    """The card's programs, by the file that each opens."""
    return dict(re.findall(r"^`([^`]+)`:\n\n```python\n(.*?)```", card_in(folder), re.MULTILINE | re.DOTALL))


RUN = """
import contextlib, io, json, sys
printed = {}
for file, code in json.load(sys.stdin).items():
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(code, file, "exec"), {"__name__": "__main__"})
    printed[file] = output.getvalue()
assert not {name.partition(".")[0] for name in sys.modules} & {"app", "worker"}
print(json.dumps(printed))
"""
"""Runs programs one after the other, each with names of its own: most of a process's time goes into its imports."""


def run_all(folder: Path, scratch: Path) -> dict[str, str]:
    """Output of each program, run in a copy of the bundle outside of the project."""
    shutil.copytree(folder / "bundle", scratch)
    environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command, code = [sys.executable, "-P", "-c", RUN], json.dumps(programs(folder))
    result = subprocess.run(command, cwd=scratch, env=environment, input=code, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    printed: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return printed


def bundle_of(folder: Path, **changes: Any) -> None:
    word = play(stage(folder, **changes), folder).word
    assert isinstance(word, Finished), word


def test_every_file_of_a_classifier_of_the_zoo_has_a_program_that_names_the_class(tmp_path: Path) -> None:
    bundle_of(tmp_path / "job", teacher=True, export=ALL_FORMATS)
    printed = run_all(tmp_path / "job", tmp_path / "away")
    assert list(printed) == FILES
    assert "weight" in printed["model.safetensors"]
    for file in FILES[1:]:
        assert re.fullmatch(r"\['[0-3]', '[0-3]'\]\n", printed[file]), printed
    assert printed["model.onnx"] == printed["model.pt2"]


def test_a_program_of_a_network_of_the_library_prepares_images_as_the_graphs_do(tmp_path: Path) -> None:
    student = {
        "architecture": "transformers",
        "config": {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]},
    }
    folder = tmp_path / "job"
    bundle_of(folder, student=student, export=ALL_FORMATS[:2])
    printed = run_all(folder, tmp_path / "away")
    assert list(printed) == FILES[:2]
    assert printed["model.safetensors"].replace("LABEL_", "") == printed["model.onnx"]  # names of unnamed classes
    assert "Class n is the label n of the training data, from 0 to 3." in card_in(folder)
    assert header(folder)["library_name"] == "transformers"


def test_texts_are_tokenised_and_padded_by_the_programs(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    formats = ALL_FORMATS
    bundle = finished(folder, texts.stage(folder, texts.STUDENT, export=formats))
    printed = run_all(folder, tmp_path / "away")
    assert list(printed) == FILES
    assert printed["model.safetensors"] == printed["model.onnx"] == printed["model.pt2"]
    assert set(re.findall(r"'(.*?)'", printed["model.onnx"])) <= {"poor", "fair"}
    assert "texts of more than 32 ids lose their end" in card_in(folder)
    assert bundle.is_dir()
    assert header(folder)["pipeline_tag"] == "text-classification"


@pytest.mark.long
def test_numbers_of_a_library_network_are_in_the_units_of_the_data(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    assignment = texts.stage(folder, texts.STUDENT, task="regression", losses=[{"kind": "mse"}])
    rows = [("text", "verdict"), *((text, 1000 + 10 * len(text)) for text, _ in texts.sentences())]
    with (folder / "texts").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    spec = assignment.spec.model_copy(update={"export": ["safetensors", "onnx"]})
    finished(folder, assignment.model_copy(update={"spec": spec}))
    printed = run_all(folder, tmp_path / "away")
    weights, graph = ([float(n) for n in re.findall(r"\d+\.\d+", printed[file])] for file in FILES[:2])
    assert len(weights) == 2
    assert weights == pytest.approx(graph, rel=1e-4)
    assert min(weights) > 900


@pytest.mark.long
def test_an_encoder_opens_in_sentence_transformers_by_its_program(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    pairs = [{"a": text, "b": f"once more: {text}"} for text, _ in texts.sentences()]
    (folder / "pairs").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    student = {"architecture": "transformers", "config": texts.STUDENT}
    job = small_job({"losses": [{"kind": "contrastive"}]}, student, "embedding")
    data = {"format": "jsonl", "train": "pairs", "input_columns": ["a", "b"], "max_length": 16}
    spec = JobSpec.model_validate(job | {"data": data, "export": ALL_FORMATS})
    finished(folder, Assignment(spec=spec, inputs={"pairs": "pairs"}))
    printed = run_all(folder, tmp_path / "away")
    assert list(printed) == FILES
    first = {file: [float(n) for n in re.findall(r"-?\d+\.\d+(?:e-\d+)?", printed[file])][:3] for file in FILES}
    assert first["model.safetensors"] == pytest.approx(first["model.onnx"], abs=1e-4)
    assert header(folder)["pipeline_tag"] == "sentence-similarity"


@pytest.mark.long
def test_a_language_model_generates_by_its_programs(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    finished(folder, language.stage(folder, language.LLAMA, export=ALL_FORMATS))
    printed = run_all(folder, tmp_path / "away")
    assert list(printed) == FILES
    assert "Once" in printed["model.safetensors"]
    assert printed["model.onnx"] == printed["model.pt2"]


def test_regressions_of_tables_and_images_have_programs(tmp_path: Path) -> None:
    for task, sample in (
        ("regression", TableInput(columns=5)),
        ("keypoints", ImageInput(channels=1, height=4, width=4)),
    ):
        folder = tmp_path / task
        folder.mkdir()
        write_bundle(trained_on_numbers(task, sample, folder), folder, CPU)  # type: ignore[arg-type]  # a task's name
        printed = run_all(folder, tmp_path / f"{task}-away")
        assert list(printed) == FILES
        assert len(re.findall(r"\d\.\d", printed["model.onnx"])) == 8
        assert (
            header(folder)["pipeline_tag"]
            == {"regression": "tabular-regression", "keypoints": "keypoint-detection"}[task]
        )


def test_the_header_has_task_terms_and_results(tmp_path: Path) -> None:
    bundle_of(tmp_path, teacher=True, name="small one", card={"license": "Apache-2.0", "datasets": ["me/digits"]})
    fields = header(tmp_path)
    assert (fields["license"], fields["pipeline_tag"], fields["tags"]) == (
        "apache-2.0",
        "image-classification",
        ["distillation"],
    )
    (index,) = fields["model-index"]
    (result,) = index["results"]
    assert (index["name"], result["metrics"][0]["type"]) == ("small one", "accuracy")
    assert result["metrics"][0]["value"] == report_in(tmp_path)["student"]["accuracy"]
    assert fields["metrics"] == [one["type"] for one in result["metrics"]]
    assert fields["metrics"] == ["accuracy", "nll", "ece", "adaptive_ece", "brier_score"]
    assert fields["datasets"] == ["me/digits"]
    assert "base_model" not in fields


def test_the_sources_are_listed_with_digests_and_licences(tmp_path: Path) -> None:
    assignment = stage(tmp_path, teacher=True)
    (tmp_path / "teacher" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# mine\n")
    sources = {"data": InputSource(name="digits.npz", sha256="ab" * 32), "teacher": InputSource(name="big | `one`")}
    word = play(assignment.model_copy(update={"sources": sources}), tmp_path).word
    assert isinstance(word, Finished), word
    digest = hashlib.sha256((tmp_path / "teacher" / "model.safetensors").read_bytes()).hexdigest()
    fields = report_in(tmp_path)["sources"]
    assert fields["data.train"] == {"reference": "data", "name": "digits.npz", "sha256": "ab" * 32}
    assert fields["teacher"] == {
        "reference": "teacher",
        "name": "big | `one`",
        "sha256": digest,
        "licence": "cc-by-nc-4.0",
    }
    card = card_in(tmp_path)
    assert f"| teacher | `big / 'one'` `teacher` | `{digest}` | cc-by-nc-4.0 |" in card
    assert "Known licences of the models that it was made from: teacher: cc-by-nc-4.0." in card
    assert "Not known: the job names none" in card
    assert header(tmp_path)["license"] == "unknown"


def test_warnings_of_the_report_and_names_of_classes_are_on_the_card(tmp_path: Path) -> None:
    bundle_of(tmp_path)
    spec = JobSpec.model_validate(document())
    report = report_in(tmp_path) | {"warnings": [{"code": "teacher_near_chance", "message": "it knows <b>nothing</b>"}]}
    config = load_model(tmp_path / "bundle").config
    config = config.model_copy(update={"class_names": ["ant", "bee", "cat | dog", "emu"]})
    card = model_card(task_for(spec.task), spec, config, report)
    assert "| 2 | cat / dog |\n" in card
    assert "## Warnings\n\n- **teacher_near_chance**: it knows (b)nothing(/b)\n" in model_card(
        task_for(spec.task), spec, config, report
    )
    assert "## Warnings" not in card_in(tmp_path)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\r\nlicense: [mit, apache-2.0]\r\n---\r\ntext", "mit apache-2.0"),
        ("---\nlicense: other\nlicense_name: mine\n---\n", "mine"),
        ("---\nlicense: 7\n---\n", None),
        ("---\nlicense: &a [*a]\n---\n", None),
        ("---\nlicense: {a: b}\n---\n", None),
        ("# no header\nlicense: mit\n", None),
        ("---\nlicense: " + "x" * 100 + "\n---\n", None),
    ],
)
def test_a_licence_is_read_from_a_models_card_or_not_known(tmp_path: Path, card: str, licence: str | None) -> None:
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence


def test_the_licence_of_an_earlier_jobs_student_is_that_of_its_job(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: unknown\n---\n")
    (tmp_path / "recipe.json").write_text(json.dumps({"card": {"license": "MIT"}}))
    assert licence_of(tmp_path) == "MIT"
    (tmp_path / "recipe.json").write_text(json.dumps({"card": {"license": None}}))
    assert licence_of(tmp_path) is None


@pytest.mark.parametrize(
    ("student", "formats"),
    [({"architecture": "mlp"}, ["safetensors", "onnx", "torch-export"]), (LIBRARY, ["safetensors", "onnx"])],
    ids=["zoo", "library"],
)
def test_by_default_a_student_is_exported_to_standard_formats(student: dict[str, Any], formats: list[str]) -> None:
    job = JobSpec.model_validate(document(student=student, export=None))
    network = ARCHITECTURE.validate_python(student)
    assert exports_of(job, network, 1000) == (formats, {})
    large = exports_of(job, network, 2**29)
    assert large.formats == [name for name in formats if name != "onnx"]
    assert large.left_out == {"onnx": "536,870,912 weights are more than one ONNX file can hold"}
    requested = JobSpec.model_validate(document(student=student, export=["safetensors", "onnx"]))
    with pytest.raises(UserError, match="more than one ONNX file"):
        require_exportable(requested, 2**29)


@pytest.mark.parametrize("requested", [True, False])
def test_a_network_without_a_graph_costs_the_graph_or_fails_the_job_that_requested_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requested: bool
) -> None:
    def untraceable(model: Model, folder: Path) -> Any:
        (folder / "model.onnx").write_bytes(b"half")
        raise RuntimeError("data-dependent control flow at /somewhere")

    monkeypatch.setitem(bundle.GRAPHS, "onnx", bundle.GRAPHS["onnx"]._replace(write=untraceable))
    played = play(stage(tmp_path, export=["safetensors", "onnx"] if requested else None), tmp_path)
    if requested:
        assert isinstance(played.word, Failed)
        assert (played.word.fault, played.word.code, played.word.param) == ("user", "not_exportable", "export")
        assert "somewhere" not in played.word.message
        return
    assert isinstance(played.word, Finished)
    assert {artifact.name for artifact in played.word.artifacts} >= {"model.safetensors", "model.pt2"}
    assert not (tmp_path / "bundle" / "model.onnx").exists()
    assert "onnx" in report_in(tmp_path)["left_out"]
    assert "There is no onnx: " in card_in(tmp_path)
    assert any(log.level == "warning" and "onnx" in log.message for log in played.of(Log))
