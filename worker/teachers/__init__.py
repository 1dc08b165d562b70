"""Sources of teacher outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.recipe.students.model import ModelConfig
from worker.data.text_limits import tokenizer_memory
from worker.errors import unusable_model
from worker.limits import Subject, reading
from worker.students.model import Model
from worker.students.weights import InvalidModel, load_model, read_config, reading_weights
from worker.teachers.signal import InProcessTeacher, TeacherSource, head_of

__all__ = ["InProcessTeacher", "TeacherSource", "head_of", "load_teacher", "read_teacher_config"]


def read_teacher_config(folder: Path, param: str) -> ModelConfig:
    """Description of the model in `folder`; raises UserError (`invalid_teacher` or `invalid_student`), blaming
    `param`."""
    with reading(_subject(param), tokenizer_memory(folder)), _errors_about(param):
        return read_config(folder)


def load_teacher(folder: Path, param: str, config: ModelConfig | None = None) -> Model:
    """Load the teacher stored in `folder` to the CPU, as `config` describes it, or else its own files; raises UserError
    naming the first tensor that does not fit."""
    with reading_weights(folder, *_subject(param)), _errors_about(param):
        return load_model(folder, config)


@contextmanager
def _errors_about(param: str) -> Iterator[None]:
    try:
        yield
    except InvalidModel as error:
        raise unusable_model(f"can't be loaded: {error}", param) from error


def _subject(param: str) -> Subject:
    return Subject(f"the model of {param}", unusable_model("", param).code, param)
