"""Rules of the student: its network, and the model that it starts from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from app.recipe.cost import least_weights, normalised_channels
from app.recipe.data.sources import Texts
from app.recipe.job import JobSpec
from app.recipe.losses import Dexml
from app.recipe.optimizers import NormalizedGd
from app.recipe.problem import Problem
from app.recipe.students.architectures import (
    ZOO,
    CifarResNet,
    DualEncoder,
    InpFormer,
    InpFormerNetwork,
    Mlp,
    MobileNetV2,
    Network,
    Pretrained,
    Shrink,
    Student,
    TextTransformer,
    Transformers,
    Vit,
    codebook_of,
)
from app.recipe.students.derived import network_of, student_input
from app.recipe.students.exports import is_too_large
from app.recipe.students.heads import HEADS, LIBRARY_HEADS, HeadSpec, NbDiagHead
from app.recipe.students.inputs import ImageInput, Input, TextInput
from app.recipe.students.layers import NORMS, GroupNorm, NoNorm, PowerNorm
from app.recipe.students.layers.attentions import attentions_with
from app.recipe.students.model import ModelConfig
from app.recipe.students.quantisation_rules import quantisation_problems
from app.recipe.students.reconstruction import encoder_problems
from app.recipe.students.replacements import mask_problems
from app.recipe.students.shapes import vit_attention
from app.recipe.students.shrink import Unshrinkable
from app.recipe.tasks import tasks_for, tasks_with
from app.recipe.tasks.base import TaskSpec

DEEPEST_WITHOUT_NORMS = 56
"""Largest depth of a `cifar-resnet` that trained without norms: on digits (8 x 8 pixels, width 8, 410 steps of `adamw`
at 1e-3, two seeds) 20 layers reached an accuracy of 0.97, 56 layers 0.90 and 0.92, 110 layers 0.18 and 0.21. With the
same training a `mobilenet-v2` stayed at chance (0.10, one seed), because its depthwise convolutions are initialised
with too small weights."""


def student_problems(job: JobSpec, teachers: Mapping[str, ModelConfig], given: Input | None) -> Iterator[Problem]:
    if isinstance(job.student, Shrink) and not job.student.sizes and not job.recipe.method.sub_spaces:
        yield Problem("student", "is shrink in the teacher's sizes", "at least one of layers, width, heads and hidden")
        return
    try:
        network = network_of(job, teachers)
    except Unshrinkable as error:
        yield Problem(f"student.{error.field}", error.message, error.accepted)
    else:
        if network is not None:
            taken = student_input(job, teachers, given) if given else None
            unfit = list(_unfit_problems(job.task_spec, network))
            unfit = unfit or list(architecture_problems(network, taken, "student"))
            unfit = unfit or list(_untrainable_problems(job.student, "student"))
            own = f"student.{job.student.source}" if isinstance(job.student, Pretrained) else None
            unfit = unfit or list(_gradient_problems(job, network))
            yield from (problem._replace(param=own or problem.param) for problem in unfit)
            if not unfit:
                yield from _graph_problems(job, network, taken or _tokens_of(job, teachers))
                known = (teachers[each.reference].classes for each in job.all_teachers if each.reference in teachers)
                yield from _head_problems(job, network, job.data.declared_classes or next(known, None))
                yield from _closed_form_problems(job, network)
                yield from _dual_encoder_problems(job, network)
                yield from _replacement_problems(job, network)
                yield from _network_problems(job, taken)
                yield from quantisation_problems(job, network, teachers, taken)
    if job.student_image_size is not None and given is not None and given.kind != "images":
        yield Problem("student_image_size", "is given, but the samples are no images", "null")
    yield from _embedding_problems(job)
    if getattr(job.data, "label_texts", None) is not None and not isinstance(job.student, DualEncoder):
        found = f"is given, and a {job.student.architecture} encodes no labels"
        yield Problem("data.label_texts", found, "none, or student.architecture: dual-encoder")


def _embedding_problems(job: JobSpec) -> Iterator[Problem]:
    """Problems of a description of vectors, for a task without them or with those of other samples."""
    if job.embedding is None:
        return
    path, dimensions = "embedding", "embedding.dimensions"
    if path not in job.task_spec.options:
        yield Problem(path, f"is given, the task is {job.task}", f"none, or task: {tasks_with(path)}")
    elif job.embedding.dimensions is not None and dimensions not in job.task_spec.options:
        yield Problem(dimensions, "is given, and a vector of a text is as wide as its encoder", "null")
    elif job.embedding.pooling != "mean" and not job.task_spec.pools_tokens:
        yield Problem("embedding.pooling", f"is {job.embedding.pooling}, and an image has no tokens to pool", "mean")


def _head_problems(job: JobSpec, network: Network, outputs: int | None) -> Iterator[Problem]:
    """Problems of a codebook: losses on its outputs, its size, and a fresh one that needs a teacher."""
    if (head := codebook_of(network)) is None:
        return
    for path, terms in job.objectives.items():
        for index, term in enumerate(terms):
            yield from head.loss_problems(term, f"{path}[{index}]")
    if not job.all_teachers and job.start is None:
        found = f"is {head.kind}, which clusters a teacher's output embeddings, and there is no teacher"
        yield Problem("student.head.kind", found, "linear, or a teacher")
    if job.task_spec.answers == "classes":
        if job.recipe.method.kind != "supervised":
            found = f"is {job.recipe.method.kind}, and its steps compute the logits of all classes"
            yield Problem("recipe.method.kind", found, f"supervised, or another student.head than {head.kind}")
        for path, optimizer in job.recipe.optimizers.items():
            if isinstance(optimizer.stepping, NormalizedGd):
                found = f"is {optimizer.stepping.kind}, which needs the gradient at the logits of all classes"
                yield Problem(f"{path}.kind", found, f"any other, or another student.head than {head.kind}")
        if outputs is not None and head.codes >= outputs:
            found = f"is {head.codes}, and there are {outputs} classes"
            yield Problem("student.head.codes", found, f"at most {outputs - 1}")


def _replacement_problems(job: JobSpec, network: Network) -> Iterator[Problem]:
    """Problems of replaced layers: an encoder is stored for a library which builds its layers itself, and masks."""
    if not isinstance(network, Transformers):
        return
    yield from mask_problems(network.replace, reads_texts=network.reads == "texts", decodes=network.decodes)
    if network.replace and job.task_spec.pools_tokens:
        found = f"is given, and a model for {job.task} is stored for a library that builds its layers itself"
        yield Problem("student.replace", found, "none")


def _closed_form_problems(job: JobSpec, network: Network) -> Iterator[Problem]:
    """Problems of a head that is computed after the last step."""
    if not isinstance(network, ZOO) or not isinstance(network.head, NbDiagHead):
        return
    if job.evaluation.keep == "best":
        found = f"is best, and a head {network.head.kind} is computed once, after the last step"
        yield Problem("evaluation.keep", found, "last")
    if job.resources.sharding == "fsdp":
        found = f"is fsdp, and a head {network.head.kind} is computed by a student whose weights are all there"
        yield Problem("resources.sharding", found, "none")


def _dual_encoder_problems(job: JobSpec, network: Network) -> Iterator[Problem]:
    """Problems of a student that encodes all labels in every step."""
    if not isinstance(network, DualEncoder):
        return
    unfit = {
        "recipe.method.kind": (job.recipe.method.kind, "supervised"),
        "recipe.compile": (str(job.recipe.compile).lower(), "false"),
        "resources.sharding": (job.resources.sharding, "none"),
    }
    for param, (given, accepted) in unfit.items():
        if given != accepted:
            found = f"is {given}, and a {network.architecture} encodes the texts of all labels in every step"
            yield Problem(param, found, accepted)
    assert isinstance(job.student, DualEncoder)  # no other student has such a network
    yield from _label_sample_problems(job, job.student)
    if job.start is not None and job.start.class_order is not None:
        yield Problem("student.encoder.class_order", "is given, and an encoder has no classes", "null")
    names, known = job.student.label_texts, job.data.class_order
    if isinstance(known, list) and (wrong := next((name for name in names if name not in known), None)) is not None:
        yield Problem("student.label_texts", f"names {wrong!r}, which is no class of data.class_order", "its classes")


def _label_sample_problems(job: JobSpec, student: DualEncoder) -> Iterator[Problem]:
    """Problems of a step with some of the labels, which are drawn for the samples of a batch together."""
    if (count := student.labels_per_step) is None:
        return
    for param, parts in (("recipe.accumulate", job.recipe.accumulate), ("resources.processes", job.resources.size)):
        if parts > 1:
            found = f"is {parts}, and student.labels_per_step draws the labels for the samples of a whole batch"
            yield Problem(param, found, "1, or student.labels_per_step: null")
    for path, terms in job.objectives.items():
        for index, term in enumerate(terms):
            if isinstance(term, Dexml) and term.criterion == "top-k" and term.k >= count:
                found = f"is {term.k}, and student.labels_per_step is {count}"
                yield Problem(f"{path}[{index}].k", found, f"at most {count - 1}")


def _network_problems(job: JobSpec, given: Input | None) -> Iterator[Problem]:
    """Problems of networks that the method trains beside the student, on the student's inputs."""
    for path, network in job.recipe.method.networks().items():
        unfit = list(_unfit_problems(job.task_spec, network))
        if isinstance(network, DualEncoder):
            found = f"is {network.architecture}, and only the student encodes the texts of labels"
            unfit = [Problem("student.architecture", found, "another network")]
        if (head := codebook_of(network)) is not None:
            found = f"is {head.kind}, and only the student's codes are clustered"
            unfit.append(Problem("student.head.kind", found, "linear"))
        if isinstance(network, ZOO) and isinstance(network.head, NbDiagHead):
            found = f"is {network.head.kind}, and only the student's head is computed after the last step"
            unfit.append(Problem("student.head.kind", found, "linear"))
        unfit = [problem._replace(param=problem.param.replace("student", path, 1)) for problem in unfit]
        yield from unfit or [*architecture_problems(network, given, path), *_untrainable_problems(network, path)]


def _graph_problems(job: JobSpec, network: Network, taken: Input | None) -> Iterator[Problem]:
    """Problem of too many weights for a requested ONNX file, by a lower bound; the trainer, which builds the network,
    counts all."""
    least = least_weights(network, taken, 1)
    if "onnx" in (job.export or ()) and is_too_large(least):
        yield Problem("export", f"{least:,} weights or more are too many for one ONNX file", "safetensors")


def _tokens_of(job: JobSpec, stored: Mapping[str, ModelConfig]) -> Input | None:
    """Input of a student that starts from a stored model, if known."""
    start = stored.get(job.start.reference) if job.start is not None else None
    return start.input if start else None


def start_problems(job: JobSpec, stored: Mapping[str, ModelConfig], given: Input | None) -> Iterator[Problem]:
    """Problems of inputs that do not fit a student that starts from a stored model."""
    if job.student_origin is None:
        return
    param = job.start_param
    if isinstance(job.data, Texts) and job.data.tokenizer is not None:
        found = f"is {job.data.tokenizer.kind}, and a student that starts as a stored model reads by its own tokenizer"
        yield Problem("data.tokenizer", found, "null")
    start = stored.get(job.student_origin.reference)
    if start is None:
        return
    if isinstance(job.student, InpFormer):
        yield from encoder_problems(job.student, start)
    yield from length_problems(job, start, param)
    if given is not None and not start.input.accepts(given):
        yield Problem(param, f"takes {start.input.size}", f"{given.size}, as in data.train; of images any size")
    size = job.student_image_size
    if isinstance(start.input, ImageInput) and size not in (None, [start.input.height, start.input.width]):
        found = f"is {size}, and the student starts from weights for {start.input.size}"
        yield Problem("student_image_size", found, "null: as the stored model")


def length_problems(job: JobSpec, teacher: ModelConfig, param: str) -> Iterator[Problem]:
    """Problem of sequences longer than a teacher accepts: packed ones can't be truncated."""
    if not isinstance(teacher.input, TextInput) or not isinstance(job.data, Texts):
        return
    if job.data.max_length > (most := teacher.input.length):
        yield Problem(
            "data.max_length", f"is {job.data.max_length}, and {param} reads {most} tokens", f"at most {most}"
        )


def _unfit_problems(task: TaskSpec, network: Network) -> Iterator[Problem]:
    """Problems of networks whose outputs are not for the task."""
    if isinstance(network, DualEncoder):
        if not task.fits(DualEncoder):
            found = f"is {network.architecture}, which is not for {task.name}"
            yield Problem("student.architecture", found, f"task: {', '.join(tasks_for(DualEncoder))}")
    elif task.reconstructs != isinstance(network, InpFormerNetwork):
        accepted = "inp-former" if task.reconstructs else "another one"
        yield Problem("student.architecture", f"{network.architecture} is not for {task.name}", accepted)
    elif isinstance(network, Transformers):
        if network.model_type not in task.model_types:
            found = f"{network.model_type} is not for {task.name}"
            yield Problem("student.config.model_type", found, f"one of {', '.join(task.model_types)}")
        else:
            yield from head_problems(task, network, "student")
    elif isinstance(network, TextTransformer):
        yield from [*_text_transformer_problems(task, network)] or head_problems(task, network, "student")
    elif set(task.reads) == {"texts"}:
        found = f"{network.architecture} reads no texts"
        yield Problem("student.architecture", found, "transformer, transformers, or shrink of a teacher that is one")
    else:
        yield from head_problems(task, network, "student")


def _text_transformer_problems(task: TaskSpec, network: TextTransformer) -> Iterator[Problem]:
    """Problems of a task that needs more than a vector of a text, and of attention that does not leave out padding."""
    if "texts" not in task.reads or task.per_token or task.sized_by is None or task.pools_tokens:
        yield Problem("student.architecture", f"{network.architecture} is not for {task.name}", "transformers")
    elif "padding" not in network.attention.masks:
        found = f"is {network.attention.kind}, which can't leave out the padding of texts"
        yield Problem("student.attention.kind", found, attentions_with("padding"))
    else:
        yield from head_problems(task, network, "student")


def head_problems(task: TaskSpec, network: Network, path: str) -> Iterator[Problem]:
    """Problems of the head of a network for `task`; `path` is the path of the network's field."""
    if isinstance(network, (*ZOO, Transformers)) and not _fits(task, type(network.head)):
        heads = LIBRARY_HEADS if isinstance(network, Transformers) else HEADS
        fitting = ", ".join(head.model_fields["kind"].default for head in heads if _fits(task, head))
        yield Problem(f"{path}.head.kind", f"is {network.head.kind}, which is not for {task.name}", fitting)


def _fits(task: TaskSpec, head: type[HeadSpec]) -> bool:
    return task.fits(head) and (head.by_token or not task.per_token)


def architecture_problems(network: Network, given: Input | None, path: str) -> Iterator[Problem]:
    """Problems of building a network for this input; `path` is the path of its field."""
    if isinstance(network, DualEncoder):
        if isinstance(network.encoder, Transformers):
            yield from _transformers_problems(network.encoder, given, f"{path}.encoder")
    elif isinstance(network, InpFormerNetwork):
        yield from architecture_problems(network.encoder, given, f"{path}.encoder")
    elif isinstance(network, Transformers):
        yield from _transformers_problems(network, given, path)
    elif isinstance(network, TextTransformer):
        yield from _text_input_problems(network, given, path)
    elif given is not None and given.kind == "texts":
        yield Problem(f"{path}.architecture", f"{network.architecture} reads no texts", "transformer, transformers")
    elif given is not None and given.kind == "table" and not isinstance(network, Mlp):
        yield Problem(f"{path}.architecture", f"{network.architecture} takes images", "mlp")
    if isinstance(network, Vit):
        yield from _vit_problems(network, given, path)
    yield from _norm_problems(network, path)


def _untrainable_problems(student: Student | Network, path: str) -> Iterator[Problem]:
    """Problems of networks that can't be trained from random weights."""
    if not isinstance(getattr(student, "norm", None), NoNorm):
        return
    if isinstance(student, MobileNetV2):
        yield Problem(f"{path}.norm.kind", "is none, and mobilenet-v2 did not train without norms", "another norm")
    if isinstance(student, CifarResNet) and student.depth > DEEPEST_WITHOUT_NORMS:
        found = f"is none, and without norms every block adds to the variance: a depth of {student.depth} did not train"
        yield Problem(f"{path}.norm.kind", found, f"another norm, or a depth of at most {DEEPEST_WITHOUT_NORMS}")


def _gradient_problems(job: JobSpec, network: Network) -> Iterator[Problem]:
    """Problem of a gradient that a method can't differentiate."""
    norm, method = getattr(network, "norm", None), job.recipe.method
    if norm is not None and method.differentiates_twice and not norm.twice_differentiable:
        found = f"is {norm.kind}, whose gradient is an approximation that {method.kind} can't differentiate"
        accepted = ", ".join(kind.model_fields["kind"].default for kind in NORMS if kind.twice_differentiable)
        yield Problem("student.norm.kind", found, accepted)


def _norm_problems(network: Network, path: str) -> Iterator[Problem]:
    norm = getattr(network, "norm", None)
    if isinstance(norm, GroupNorm | PowerNorm):
        channels = sorted(normalised_channels(network))
        if not all(map(norm.divides, channels)):
            found = f"{norm.groups} does not divide {', '.join(map(str, channels))}, the channels of the layers"
            yield Problem(f"{path}.norm.groups", found, f"a divisor of {math.gcd(*channels)}")


def _transformers_problems(network: Transformers, given: Input | None, path: str) -> Iterator[Problem]:
    if given is not None and given.kind != network.reads:
        held = {"table": "tables"}.get(given.kind, given.kind)
        found = f"{network.model_type} reads {network.reads}, the data holds {held}"
        yield Problem(f"{path}.config.model_type", found, "a network for the data")
    elif isinstance(given, ImageInput):
        yield from _image_keys_problems(network, given, path)


def _image_keys_problems(network: Transformers, image: ImageInput, path: str) -> Iterator[Problem]:
    sides: JsonValue = [image.height, image.width]
    sizes: list[JsonValue] = [sides, image.height] if image.height == image.width else [sides]
    for key, accepted in (("num_channels", [image.channels]), ("image_size", sizes)):
        if (value := network.config.get(key)) is not None and value not in accepted:
            yield Problem(f"{path}.config.{key}", f"is {value}, the images have {accepted[-1]}", str(accepted[-1]))


def _text_input_problems(network: TextTransformer, given: Input | None, path: str) -> Iterator[Problem]:
    if given is not None and given.kind != "texts":
        yield Problem(f"{path}.architecture", f"{network.architecture} reads texts", "a network for the data")
    if network.width % network.heads:
        yield Problem(f"{path}.heads", f"{network.heads} does not divide the width {network.width}", "a divisor of it")


def _vit_problems(network: Vit, given: Input | None, path: str) -> Iterator[Problem]:
    wrong = list(_uneven_problems(network, given, path))
    yield from wrong
    if isinstance(given, ImageInput) and not wrong:
        yield from network.attention.problems(vit_attention(network, given), f"{path}.attention")


def _uneven_problems(network: Vit, given: Input | None, path: str) -> Iterator[Problem]:
    if isinstance(given, ImageInput) and (given.height % network.patch_size or given.width % network.patch_size):
        sides = f"{given.height} x {given.width}"
        yield Problem(f"{path}.patch_size", f"{network.patch_size} does not divide {sides}", f"a divisor of {sides}")
    if network.head_size is None and network.width % network.heads:
        yield Problem(f"{path}.heads", f"{network.heads} does not divide the width {network.width}", "a divisor of it")
