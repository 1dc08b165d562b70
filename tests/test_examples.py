"""Every job file in `examples/` is accepted by the service and runs to its end, on a few steps of real data."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.cli.client import Client
from app.cli.objects import Job
from app.recipe import documents
from app.recipe.losses import LOSSES
from app.recipe.optimizers import OPTIMIZERS, SCHEDULES
from app.recipe.students import STUDENTS
from tests.app.cli.process import STILLHOUSE, environment, running

EXAMPLES = Path(__file__).parents[1] / "examples"
FILES = sorted(path.name for path in EXAMPLES.glob("*.yaml"))
FEW_STEPS = ("--set", "recipe.max_steps=2")


class Service(NamedTuple):
    """A running service, the command line's environment, and a copy of the examples with their data."""

    client: Client
    env: dict[str, str]
    folder: Path

    def run(self, *words: str) -> dict[str, Any]:
        """Run a command that must succeed; its JSON."""
        result = subprocess.run((*STILLHOUSE, *words, "--json"), capture_output=True, text=True, env=self.env)
        assert result.returncode == 0, result.stdout + result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("examples")
    folder = root / "examples"
    shutil.copytree(EXAMPLES, folder)
    write_digits(folder)
    env = environment(root / "data")
    with running(env) as (_, hello), Client(hello["url"], hello["key"]) as client:
        yield Service(client, env, folder)


def write_digits(folder: Path) -> None:
    """What `python examples/digits.py` writes."""
    spec = importlib.util.spec_from_file_location("digits", EXAMPLES / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write_digits(folder)


@pytest.fixture(scope="module")
def teacher_job(service: Service) -> Job:
    """The example of a teacher, run."""
    return finished(service, "teacher.yaml")


@pytest.fixture(scope="module")
def teacher(teacher_job: Job) -> str:
    """The model that it made."""
    assert teacher_job.model_id is not None
    return teacher_job.model_id


def finished(service: Service, name: str, *words: str) -> Job:
    job = service.run("submit", str(service.folder / name), *words, *FEW_STEPS)
    ended = service.client.wait(job["id"], timeout_seconds=200)
    assert ended.status == "succeeded", ended.error
    return ended


def with_teacher(service: Service, name: str, teacher: str) -> tuple[str, ...]:
    needs = documents.parse((service.folder / name).read_text()).get("teacher")
    return ("--set", f"teacher.model={teacher}") if needs else ()


@pytest.mark.parametrize("name", FILES)
def test_it_is_valid_as_it_stands(service: Service, teacher: str, name: str) -> None:
    answer = service.run("validate", str(service.folder / name), *with_teacher(service, name, teacher))
    assert answer["valid"]
    assert answer["total_steps"] > 100


@pytest.mark.parametrize("name", FILES)
def test_it_runs_to_its_end(service: Service, teacher_job: Job, teacher: str, name: str) -> None:
    is_run = name == "teacher.yaml"
    ended = teacher_job if is_run else finished(service, name, *with_teacher(service, name, teacher))
    names = {artifact.name for artifact in service.client.artifacts(ended.id)}
    assert {"model.safetensors", "config.json", "report.json"} <= names
    assert ("model.onnx" in names) == ("onnx" in ended.spec["export"])


def test_together_they_show_everything_that_a_job_can_choose() -> None:
    jobs = [documents.parse((EXAMPLES / name).read_text()) for name in FILES]
    recipes = [job["recipe"] for job in jobs]
    shown = {
        *(loss["kind"] for recipe in recipes for loss in recipe["losses"]),
        *(recipe[part]["kind"] for recipe in recipes for part in ("optimizer", "schedule")),
        *(job["student"]["architecture"] for job in jobs),
    }
    kinds = {option.model_fields["kind"].default for option in (*LOSSES, *OPTIMIZERS, *SCHEDULES)}
    assert shown == kinds | {student.model_fields["architecture"].default for student in STUDENTS}
