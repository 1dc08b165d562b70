"""Every job file in `examples/` is accepted by the service and runs to its end, on a few steps of real data."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
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
MADE_FIRST = {"teacher": "teacher.yaml", "tough": "faces-tough.yaml", "tolerant": "faces-tolerant.yaml"}
"""Examples whose models others learn from, by what those call them."""


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
    write_data(folder)
    env = environment(root / "data")
    with running(env) as (_, hello), Client(hello["url"], hello["key"]) as client:
        yield Service(client, env, folder)


def write_data(folder: Path) -> None:
    """What `python examples/digits.py` and `python examples/faces.py` write."""
    for name in ("digits", "faces"):
        getattr(load_script(name), f"write_{name}")(folder)


def load_script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(service: Service) -> dict[str, Job]:
    """The examples of teachers, run, by the name of the teacher."""
    return {teacher: finished(service, name) for teacher, name in MADE_FIRST.items()}


def finished(service: Service, name: str, *words: str) -> Job:
    job = service.run("submit", str(service.folder / name), *words, *FEW_STEPS)
    ended = service.client.wait(job["id"], timeout_seconds=200)
    assert ended.status == "succeeded", ended.error
    return ended


def with_teachers(service: Service, name: str, made: dict[str, Job]) -> tuple[str, ...]:
    document = documents.parse((service.folder / name).read_text())
    paths = {f"teachers[{index}].model": one["name"] for index, one in enumerate(document.get("teachers", ()))}
    if "teacher" in document:
        paths["teacher.model"] = "teacher"
    return tuple(word for path, teacher in paths.items() for word in ("--set", f"{path}={made[teacher].model_id}"))


@pytest.mark.parametrize("name", FILES)
def test_it_is_valid_as_it_stands(service: Service, made: dict[str, Job], name: str) -> None:
    answer = service.run("validate", str(service.folder / name), *with_teachers(service, name, made))
    assert answer["valid"]
    assert answer["total_steps"] > 100


@pytest.mark.parametrize("name", FILES)
def test_it_runs_to_its_end(service: Service, made: dict[str, Job], name: str) -> None:
    done = {MADE_FIRST[teacher]: job for teacher, job in made.items()}
    ended = done.get(name) or finished(service, name, *with_teachers(service, name, made))
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
