"""Outside the rooms of the tasks no code asks which task it is: it asks the task's object."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.recipe.tasks import TASKS

ROOT = Path(__file__).parents[1]
FOLDERS = ["app", "stillhouse", "worker"]
ROOMS = [ROOT / "app" / "recipe" / "tasks", ROOT / "worker" / "tasks"]


def is_task(node: ast.AST) -> bool:
    """The name of a task, as it stands in a job, a description of a model or an object of a task."""
    text = ast.unparse(node)
    return text in ("task", "task.name", "spec.task") or text.endswith((".task", ".task.name", "task_spec.name"))


def names_tasks(node: ast.AST) -> bool:
    """A constant that is the name of a task, or holds some."""
    return any(isinstance(each, ast.Constant) and each.value in TASKS for each in ast.walk(node))


def asks_by_name(node: ast.AST) -> bool:
    match node:
        case ast.Compare(left=left, comparators=others):
            sides = [left, *others]
            if any(ast.unparse(side).endswith("options") for side in sides):
                return False  # a field of the job that an object lists may be called as its task
            if any("problem_type" in ast.unparse(side) for side in sides):
                return False  # the Transformers library's word for a head, which may be called as a task
            return any(map(names_tasks, sides)) or (any(map(is_task, sides)) and not all(map(is_task, sides)))
        case ast.Dict(keys=keys):
            return sum(isinstance(key, ast.Constant) and key.value in TASKS for key in keys) > 1
        case ast.Subscript(slice=key):
            return is_task(key)
        case ast.Call(func=ast.Attribute(attr="get"), args=[key, *_]):
            return is_task(key)
        case ast.Match(subject=subject):
            return is_task(subject)
    return False


def offences(source: str) -> Iterator[int]:
    """Lines that ask which task it is."""
    return (getattr(node, "lineno", 0) for node in ast.walk(ast.parse(source)) if asks_by_name(node))


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_code_asks_which_task_it_is(folder: str) -> None:
    paths = [path for path in (ROOT / folder).rglob("*.py") if not any(path.is_relative_to(room) for room in ROOMS)]
    assert paths
    found = [f"{path.relative_to(ROOT)}:{line}" for path in paths for line in offences(path.read_text())]
    assert not found, "ask job.task_spec, or the object of the task"


@pytest.mark.parametrize(
    "source",
    [
        "job.task == CAUSAL_LM",
        "task not in CLASSIFICATION",
        "x if kind == 'keypoints' else y",
        "job.task_spec.name in ('regression', 'keypoints')",
        "METRICS[job.task]",
        "MAIN.get(task, 0)",
        "UNITS = {'regression': 1, 'keypoints': 2}",
        "match job.task:\n    case 'regression': pass",
    ],
)
def test_the_rule_finds_its_breach(source: str) -> None:
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    [
        "teacher.task != job.task",
        "job.task_spec.answers == 'classes'",
        "'embedding' in job.task_spec.options",
        "task_of(job.task).metrics[name]",
    ],
)
def test_the_rule_lets_objects_be_asked(source: str) -> None:
    assert not list(offences(source))
