"""Networks of students, also of those that are derived from another model: pure arithmetic on descriptions."""

from __future__ import annotations

from collections.abc import Mapping

from app.recipe.job import JobSpec
from app.recipe.students.architectures import DualEncoder, InpFormer, Network, Pretrained, Shrink
from app.recipe.students.conversion import Convert
from app.recipe.students.converted import converted
from app.recipe.students.inputs import ImageInput, Input, TextInput
from app.recipe.students.model import ModelConfig
from app.recipe.students.reconstruction import with_encoder
from app.recipe.students.shrink import shrunk, sized
from app.recipe.students.started import Unshrinkable, described, started


def derived_teacher(job: JobSpec) -> str | None:
    """Name of the teacher that the student is a smaller copy or another form of; none for other students. Raises
    `Unshrinkable`."""
    if not isinstance(job.student, Shrink | Convert):
        return None
    names = [teacher.name for teacher in job.all_teachers]
    if not names:
        found = f"is {job.student.architecture}, and there is no teacher to take"
        raise Unshrinkable("architecture", found, "a teacher")
    wanted = job.student.teacher or names[0]
    if wanted not in names:
        raise Unshrinkable("teacher", f"there is no teacher {wanted!r}", f"one of {', '.join(names)}")
    return wanted


def network_of(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> Network | None:
    """The student's network; none if the model that it is derived from is unknown. Raises `Unshrinkable`.

    `teachers` are descriptions of stored models by reference.
    """
    if job.start is not None:
        start = teachers.get(job.start.reference)
        return None if start is None else started(job, start)
    if isinstance(job.student, DualEncoder):
        return described(job.student)
    if isinstance(job.student, InpFormer):
        encoder = teachers.get(job.student.reference)
        return None if encoder is None else with_encoder(job.student, encoder)
    if not isinstance(job.student, Shrink | Convert):
        assert not isinstance(job.student, Pretrained)  # which starts from a model
        return job.student
    teacher = described_start(job, teachers)
    if isinstance(job.student, Convert):
        return None if teacher is None else converted(job.student, teacher)
    return None if teacher is None else shrunk(sized(job.student, job, teacher.architecture), teacher.architecture)


def start_of(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> ModelConfig | None:
    """The model whose weights the student starts from, so that both have the same scaling of samples and outputs; or
    none."""
    if job.student_origin is not None:
        return teachers.get(job.student_origin.reference)
    starts = isinstance(job.student, Convert) or (isinstance(job.student, Shrink) and job.student.init == "teacher")
    return described_start(job, teachers) if starts else None


def student_input(job: JobSpec, teachers: Mapping[str, ModelConfig], given: Input) -> Input:
    """The student's input for samples of the shape `given`: images of its size, and a vocabulary larger than its
    tokenizer's if the network that it starts from has one. Raises `Unshrinkable`."""
    own = start_of(job, teachers) if job.start is not None else None
    if own is not None and isinstance(given, TextInput) and isinstance(own.input, TextInput):
        return given.model_copy(update={"vocabulary": own.input.vocabulary})
    if not isinstance(given, ImageInput):
        return given
    start = start_of(job, teachers)
    if job.student_image_size is not None:
        height, width = job.student_image_size
        return ImageInput(channels=given.channels, height=height, width=width)
    return start.input if start else given


def described_start(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> ModelConfig | None:
    """Description of the teacher that the student is derived from; none: it is unknown. Raises
    `Unshrinkable`."""
    name = derived_teacher(job)
    return teachers.get(next(teacher.reference for teacher in job.all_teachers if teacher.name == name))
