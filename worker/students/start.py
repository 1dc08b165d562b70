"""Gives a student that goes on from a stored model that model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from app.recipe.job import JobSpec
from app.recipe.students import Pretrained, Timm, Transformers
from worker.errors import UserError, unusable_model
from worker.students import hugging_face, timm_network
from worker.students.model import Model
from worker.students.shrink import take_over
from worker.students.weights import InvalidModel, load_model, reading_weights, stored_weights

EVERY_LAYER = range(1000)


@torch.no_grad()
def _start_timm(student: Model, stored: Model) -> None:
    same = (student.config.task, student.config.outputs) == (stored.config.task, stored.config.outputs)
    fresh = () if same else timm_network.last_layers(student.network)
    theirs = stored.network.state_dict()
    for name, tensor in student.network.state_dict().items():
        if not (fresh and name.startswith(fresh)):
            tensor.copy_(theirs[name])


def start(student: Model, job: JobSpec, folders: Mapping[str, Path]) -> Model:
    """Copy into `student`, a fresh one, what is stored in the folder of its reference, in place; a student of its own
    stays as it is.

    Where it answers with other outputs, or the stored network with none of a classifier's, it keeps its fresh last
    layers. Raises UserError (`invalid_student`) naming the first tensor that is missing or does not fit.
    """
    if not isinstance(job.student, Pretrained):
        return student
    folder = folders[job.student.reference]
    param = f"student.{job.student.source}"
    with reading_weights(folder, f"the model of {param}", "invalid_student", param):
        try:
            if isinstance(student.config.architecture, Transformers):
                student.ignored = hugging_face.start_from(student.network, student.config, stored_weights(folder))
            elif isinstance(student.config.architecture, Timm):
                _start_timm(student, load_model(folder))
            else:
                take_over(student, load_model(folder), EVERY_LAYER)
        except (InvalidModel, hugging_face.Misfit, UserError) as error:
            raise unusable_model(f"can't start from this model: {error}", param) from error
    return student
