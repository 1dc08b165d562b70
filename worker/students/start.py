"""Copies the weights of a stored model to a student that starts from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from app.recipe.data.class_rules import model_classes
from app.recipe.data.classes import ClassList, ClassMismatch, match_classes
from app.recipe.job import JobSpec
from app.recipe.students.architectures import DualEncoder, InpFormer, Pretrained, Timm, Transformers
from app.recipe.students.model import ModelConfig
from worker.errors import UserError, unusable_model
from worker.students import hugging_face_weights, timm_network
from worker.students.dual_encoder import ENCODER, DualEncoderNetwork, encoder_config
from worker.students.faults import Misfit
from worker.students.inp_former import InpFormerModule
from worker.students.leftovers import shown_names
from worker.students.model import Model, last_layer
from worker.students.shrink import take_over
from worker.students.weights import InvalidModel, load_model, read_config, reading_weights, stored_weights

EVERY_LAYER = range(1000)


def _start_of_the_library(student: Model, folder: Path, warn: Callable[[str], None]) -> None:
    encodes = student.config.pooling is not None
    state = _encoder_weights(folder, student.network) if encodes else stored_weights(folder)
    started = hugging_face_weights.start_from(student.network, student.config, state)
    student.ignored = started.ignored
    if started.fresh:
        warn(f"replaced layers are initialised, as nothing is stored for them: {shown_names(started.fresh)}")
    if started.dropped:
        warn(f"replaced layers have no place for stored weights: {shown_names(started.dropped)}")


@torch.no_grad()
def _start_timm(student: Model, stored: Model) -> None:
    same = (student.config.task, student.config.outputs) == (stored.config.task, stored.config.outputs)
    fresh = () if same else timm_network.last_layers(student.network)
    state = stored.network.state_dict()
    for name, tensor in student.network.state_dict().items():
        if not (fresh and name.startswith(fresh)):
            tensor.copy_(state[name])


def _start_encoder(network: DualEncoderNetwork, config: ModelConfig, folder: Path) -> list[str]:
    """Copy the weights of a stored encoder into that of `network`, which `config` describes; returns the names of
    ignored ones."""
    state = _encoder_weights(folder, network.encoder)
    return hugging_face_weights.start_from(network.encoder, encoder_config(config), state).ignored


def _encoder_weights(folder: Path, encoder: nn.Module) -> dict[str, Tensor]:
    """Weights of a stored encoder, or of that of a stored classifier or dual encoder, for a network like `encoder`."""
    state, stored = stored_weights(folder), read_config(folder)
    dual = isinstance(stored.architecture, DualEncoder)
    prefix = ENCODER if dual else f"{encoder.base_model_prefix}."
    if not dual and not stored.has_head:
        return state
    body = {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
    return body or state  # a folder of the library may have an encoder alone


def start(student: Model, job: JobSpec, folders: Mapping[str, Path], warn: Callable[[str], None]) -> Model:
    """Copy the stored weights in the folder of its reference into `student`, a fresh one, or into its encoder, in
    place; a student without a reference is not changed.

    If its outputs differ from the stored model's, or that has no classifier, it keeps its fresh last layers. Classes
    are matched by their names; if that fails, its last layer stays fresh, with a warning. Raises UserError
    (`invalid_student`) naming the first tensor that is missing or does not fit.
    """
    if isinstance(job.student, InpFormer):
        return _with_encoder(student, job.student, folders[job.student.reference])
    if job.start is None:
        return student
    folder = folders[job.start.reference]
    param, fresh = job.start_param, _copies(_last_weights(student))
    with reading_weights(folder, f"the model of {param}", "invalid_student", param):
        try:
            if isinstance(student.network, DualEncoderNetwork):
                student.ignored = _start_encoder(student.network, student.config, folder)
                return student
            if isinstance(student.config.architecture, Transformers):
                _start_of_the_library(student, folder, warn)
            elif isinstance(student.config.architecture, Timm):
                _start_timm(student, load_model(folder))
            else:
                take_over(student, load_model(folder), EVERY_LAYER)
            stored = read_config(folder).taken_for(student.config.task)
            places = _places(student, job, job.start, stored)
        except ClassMismatch as error:
            _fill(_last_weights(student), fresh)
            warn(f"the student's last layer is initialised: {error}; student.class_order can name the stored classes")
            return student
        except (InvalidModel, Misfit, UserError) as error:
            raise unusable_model(f"can't start from this model: {error}", param) from error
    if places is not None:
        _fill(_by_output(student), [rows[list(places)] for rows in _copies(_by_output(student))])
    elif student.config.has_head and not stored.task_spec.answers_alike(student.config.task_spec):  # another task's
        _fill(_last_weights(student), fresh)
    return student


def _with_encoder(student: Model, origin: InpFormer, folder: Path) -> Model:
    """`student` with the weights in `folder` in its encoder. Raises UserError (`invalid_student`)."""
    param, network = f"student.{origin.source}", student.network
    assert isinstance(network, InpFormerModule)  # as its description says
    with reading_weights(folder, f"the model of {param}", "invalid_student", param):
        try:
            network.encoder.load_state_dict(load_model(folder).network.state_dict())
        except (InvalidModel, UserError) as error:
            raise unusable_model(f"can't take this model as encoder: {error}", param) from error
    return student


def _places(student: Model, job: JobSpec, origin: Pretrained, stored: ModelConfig) -> Sequence[int] | None:
    """For each of the student's classes its number in the stored model, whose last layer was copied; none: it was not,
    or it is not for classes. Raises ClassMismatch."""
    config = student.config
    if config.classes is None or (config.task, config.classes) != (stored.task, stored.classes):
        return None
    wanted = ClassList("data.train", config.classes, config.class_names)
    return match_classes(wanted, model_classes(job, origin, "student", stored)).places


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _fill(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _last_weights(student: Model) -> list[Tensor]:
    """Tensors of the last layer; empty if there is none."""
    codebook = [] if student.codebook is None else [student.codebook.weight]
    return codebook + _by_output(student)


def _by_output(student: Model) -> list[Tensor]:
    """Tensors of the last layer with a row for each output: weight (outputs, D) and, if there is one, bias (outputs,),
    or the codes (outputs,) of a codebook."""
    if student.codebook is not None:
        return [student.codebook.codes]
    layer = last_layer(student)
    return [] if layer is None else [each for each in (layer.weight, layer.bias) if each is not None]
