"""Loads the Transformers library on first use, in offline mode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch

from app.recipe.students.architectures import Transformers
from worker.errors import UserError
from worker.limits import unbounded

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"


@cache
def library() -> ModuleType:
    """The library, without progress bars and warnings; it takes a second or two to load."""
    with unbounded():
        import transformers

    logging: Any = transformers.utils.logging  # untyped
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


@contextmanager
def blaming_the_config(student: Transformers) -> Iterator[None]:
    """Turn any error of the library into a UserError (`invalid_architecture`)."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, UserError):
        raise
    except Exception as error:  # the library's files raise many kinds
        if "can't allocate memory" in str(error):
            raise MemoryError from error
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        message = f"a {student.model_type} can't be built from this configuration: {reason[0]}"
        raise UserError("invalid_architecture", message, "student.config") from error


def width_of(student: Transformers) -> int:
    """Hidden size, which is also the number of dimensions of a text's embedding; raises UserError
    (`invalid_architecture`) for a configuration that the library rejects."""
    with blaming_the_config(student):
        return int(library().AutoConfig.for_model(**{"architectures": [], **student.config}).hidden_size)
