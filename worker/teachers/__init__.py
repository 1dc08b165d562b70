"""Where the teachers' signals come from."""

from __future__ import annotations

from pathlib import Path

from app.recipe.model import ModelConfig
from worker.errors import unusable_model
from worker.students.model import Model
from worker.students.weights import InvalidModel, load_model, read_config
from worker.teachers.signal import Source, Teacher, TeacherSignal, head_of

__all__ = ["Source", "Teacher", "TeacherSignal", "head_of", "load_teacher", "read_teacher_config"]


def read_teacher_config(folder: Path, param: str) -> ModelConfig:
    """Description of the model in `folder`; raises UserError (`invalid_teacher` or `invalid_student`), blaming
    `param`."""
    try:
        return read_config(folder)
    except InvalidModel as error:
        raise unusable_model(f"can't be loaded: {error}", param) from error


def load_teacher(folder: Path, param: str) -> Model:
    """The teacher stored in `folder`, on the CPU; raises UserError naming the first tensor that does not fit."""
    try:
        return load_model(folder)
    except InvalidModel as error:
        raise unusable_model(f"can't be loaded: {error}", param) from error
