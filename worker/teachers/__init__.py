"""Where the teacher's signal comes from."""

from __future__ import annotations

from pathlib import Path

from app.recipe.model import ModelConfig
from worker.errors import UserError
from worker.students.weights import InvalidModel, load_model, read_config
from worker.teachers.signal import Teacher, TeacherSignal

__all__ = ["Teacher", "TeacherSignal", "load_teacher", "read_teacher_config"]
PARAM = "teacher.model"


def read_teacher_config(folder: Path) -> ModelConfig:
    """Description of the model in `folder`; raises UserError (`invalid_teacher`)."""
    try:
        return read_config(folder)
    except InvalidModel as error:
        raise _invalid(error) from error


def load_teacher(folder: Path) -> Teacher:
    """The teacher stored in `folder`, on the CPU; raises UserError naming the first tensor that does not fit."""
    try:
        return Teacher(load_model(folder))
    except InvalidModel as error:
        raise _invalid(error) from error


def _invalid(error: InvalidModel) -> UserError:
    return UserError("invalid_teacher", f"the teacher can't be loaded: {error}", PARAM)
