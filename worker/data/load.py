"""The samples of a job: read, checked, split, and measured for the model that will learn from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.augmentation import TextAugmentation
from app.recipe.data.facts import Archive, Known, Problem, SampleFacts
from app.recipe.data.sources import Data, HfData, ImageData, Table
from app.recipe.data.sources import Texts as TextOptions
from app.recipe.job import JobSpec
from app.recipe.methods.text_generation import TextGeneration
from app.recipe.plan import split_counts
from app.recipe.students.architectures import Transformers
from app.recipe.students.model import (
    MAX_COLUMNS,
    ImageInput,
    Input,
    ModelConfig,
    Preprocessing,
    TableInput,
    TargetScaling,
    TextInput,
)
from app.recipe.students.shrink import embedding_of, network_of, start_of, student_input
from app.recipe.tasks.task import CAUSAL_LM, CLASSIFICATION, EMBEDDING, Task
from worker.data.archive import NDArray, read_headers
from worker.data.batches import Batch, whole_split
from worker.data.documents import end_of, read_documents
from worker.data.formats import read_samples
from worker.data.formats.columns import Samples, TextSamples
from worker.data.formats.faults import data_room, data_subject, invalid
from worker.data.holdout import hold_out, hold_out_any
from worker.data.label_notes import label_notes
from worker.data.labels import Classes, class_targets, find_classes
from worker.data.pairs import as_rows
from worker.data.prompts import Prompts, beginnings, questions
from worker.data.readers import Readers, open_reader, open_readers
from worker.data.running_text import PackingDir, TextFile, align_file, halves_of, map_files, pack_file
from worker.data.soft_landmarks import soft_landmarks
from worker.data.statistics import fit_preprocessing, fit_targets
from worker.data.tokenizer_checks import check_tokenizers, sampled
from worker.data.tokens import TextTokenizer
from worker.errors import UserError
from worker.limits import reading
from worker.students.hugging_face import width_of

IMAGES, TABLE = "images", "table"
MOST_PROBLEMS = 20
"""Of those that are found, told in one message."""


@dataclass(frozen=True)
class TaskData:
    """Samples to train and to evaluate on, and the description that a student of them will have."""

    train: Batch
    eval: Batch
    model: ModelConfig
    notes: list[str]
    """Oddities worth a warning."""
    readers: Readers | None = None
    """How texts become tokens for the student and its teachers; none: there are none."""
    prompts: Prompts | None = None
    """What models write on in training, on the CPU; none: nothing is written."""
    numbers: tuple[Tensor, Tensor] | None = None
    """Of the samples to train and to evaluate on within `data.train`, when both were taken from there: int64, CPU."""
    bytes: int = 0
    """Of text, in UTF-8, that a language model is to predict of the samples to evaluate on."""
    places: Mapping[str, list[int]] = field(default_factory=dict)
    """By the name of a classifier's teacher: for each class of the job its number among the teacher's outputs."""
    alignment: Mapping[str, dict[str, float]] = field(default_factory=dict)
    """By the input key of a teacher with another tokenizer: the shares of the student's tokens, by split, that it
    has something to say about."""

    @property
    def input_key(self) -> str | None:
        """Which of the inputs the student reads; none: its kind's usual one."""
        return self.readers.student.input_key if self.readers else None

    def input_key_of(self, teacher: str) -> str | None:
        """Which of the inputs the teacher of this reference reads; none: its kind's usual one."""
        return self.readers.by_teacher[teacher].input_key if self.readers else None


def load_task(
    job: JobSpec,
    inputs: Mapping[str, Path],
    teachers: Mapping[str, ModelConfig],
    seed: int,
    workplace: PackingDir | None = None,
) -> TaskData:
    """Read and check the data of `job`.

    `inputs` maps its references to files, and those of teachers to folders; `teachers` holds their descriptions by
    reference; `seed` decides what is held out; a language model's texts are packed in a `workplace`. Raises UserError
    naming the field, the row or index, and the value.
    """
    data, files = job.data, {param: inputs[name] for param, name in _references(job.data).items()}
    if isinstance(data, ImageData):
        known: dict[str, Known] = {param: _headers(path, param) for param, path in files.items()}
        _refuse(find_problems(job, InputFacts(known["data.train"], known.get("data.eval"), teachers)))
    else:
        _refuse(find_problems(job, InputFacts(teachers=teachers)))
    if workplace is not None and job.task == CAUSAL_LM:
        texts = {param: TextFile(path, job.data, param, workplace) for param, path in files.items()}
        with workplace.opened():
            return _running_text(job, inputs, teachers, texts, seed, workplace)
    samples = {param: _read(path, job, param) for param, path in files.items()}
    targets, classes, notes = _targets(job, teachers, samples)
    readers, told = _readers(job, inputs, teachers, samples["data.train"])
    facts = {param: _facts(one, readers, targets[param], job.task) for param, one in samples.items()}
    _refuse(find_problems(job, InputFacts(facts["data.train"], facts.get("data.eval"), teachers)))
    words = any(isinstance(step, TextAugmentation) for step in data.augment)
    splits = {
        param: whole_split(_inputs_by_key(one, readers, words=words), targets[param], one.rows_per_sample)
        for param, one in samples.items()
    }
    train, evaluation, numbers = _split(splits, job, seed)
    if data.targets_transform is not None:
        train = replace(train, targets=soft_landmarks(train.targets, data.targets_transform))
    model = _describe(job, facts["data.train"].input, train, classes, teachers)
    notes += told + label_notes(train.targets, evaluation.targets, model)
    places = classes.places if classes else {}
    return TaskData(train, evaluation, model, notes, readers, numbers=numbers, places=places)


def _running_text(
    job: JobSpec,
    inputs: Mapping[str, Path],
    teachers: Mapping[str, ModelConfig],
    files: Mapping[str, TextFile],
    seed: int,
    workplace: PackingDir,
) -> TaskData:
    """The same for a language model: whole texts are held out, and each split is packed into sequences."""
    assert isinstance(job.data, TextOptions)  # the contract refuses other formats
    length, train = job.data.max_length, files["data.train"]
    counts = {param: file.count() for param, file in files.items()} if workplace.packs else {}
    readers = open_reader(job, job.data, inputs, teachers, train.texts())
    told = check_tokenizers(job, readers, teachers, train.texts())
    reader, end = readers.student, end_of(readers.student)
    taken = TextInput(length=length, vocabulary=reader.vocabulary, pad=end)
    facts = {param: SampleFacts(count, taken, 16 * length) for param, count in counts.items()}
    _refuse(find_problems(job, InputFacts(facts.get("data.train"), facts.get("data.eval"), teachers)))
    paths = [workplace.folder / name for name in ("train", "eval")]
    portions = _portions(job, files, counts, seed, paths) if workplace.packs else []
    sizes = [size for part in portions for size in pack_file(part.file, reader, length, part.halves, part.paths)]
    shares = (
        {input_key: _aligned(job, readers, input_key, portions) for input_key in readers.others} if portions else {}
    )
    packed = map_files(paths, workplace, reader, length, list(readers.others.values()))
    network = network_of(job, teachers)
    assert network is not None  # all teachers are known, and what keeps one from being shrunk is told
    model = ModelConfig(task=job.task, architecture=network, input=student_input(job, teachers, taken))
    method = job.recipe.method
    prompts = _prompts(job, method, portions[0], packed[0], reader) if isinstance(method, TextGeneration) else None
    notes = [*told, *_notes(prompts)]
    return TaskData(packed[0], packed[1], model, notes, readers, prompts, bytes=sum(sizes[1:]), alignment=shares)


class _Portion(NamedTuple):
    """Where the texts of a file go: text number i into the file at `paths[halves[i]]`."""

    file: TextFile
    halves: NDArray
    paths: Sequence[Path]


def _portions(
    job: JobSpec, files: Mapping[str, TextFile], counts: Mapping[str, int], seed: int, paths: Sequence[Path]
) -> list[_Portion]:
    """Of all files, those to train on first."""
    if len(files) > 1:
        wholes = zip(files.items(), paths, strict=True)
        return [_Portion(file, halves_of(counts[param], 0, seed), [path]) for (param, file), path in wholes]
    _, held_out = split_counts(job.data, counts["data.train"])
    return [_Portion(files["data.train"], halves_of(counts["data.train"], held_out, seed), paths)]


def _aligned(job: JobSpec, readers: Readers, input_key: str, portions: Sequence[_Portion]) -> dict[str, float]:
    """Write the texts in the tokens of a teacher's own; returns the share of the student's tokens, by split, that it
    has something to say about. Raises UserError blaming the teacher, or sequences that are too long for it."""
    teacher, length = readers.others[input_key], readers.lengths[readers.student.input_key]
    index = next(
        i for i, each in enumerate(job.all_teachers) if readers.by_teacher[each.reference].input_key == input_key
    )
    param, name = job.teacher_param(index), job.all_teachers[index].name
    try:
        train, evaluation = (
            aligner
            for part in portions
            for aligner in align_file(part.file, (readers.student, teacher), length, part.halves, part.paths)
        )
    except UserError as error:
        if error.param != "data.tokenizer":
            raise
        raise UserError("invalid_teacher", f"{param}: {error.message}", param) from error
    longest, most = max(train.longest, evaluation.longest), readers.lengths[input_key]
    if longest > most:
        found = f"is {length}, and what is read in so many tokens is up to {longest} of {name!r}, which reads {most}"
        accepted = f"about {length * most // longest} at most"
        raise UserError("invalid_job", f"data.max_length {found} (accepted: {accepted})", "data.max_length")
    if not train.share:
        found = f"{param} has a tokenizer none of whose tokens ends where one of the student's does in data.train"
        accepted = "one that leaves texts as they are, beside a student's that does"
        raise UserError("invalid_teacher", f"{found} (accepted: {accepted})", param)
    return {"train": train.share, "eval": evaluation.share}


def _prompts(job: JobSpec, wanted: TextGeneration, train: _Portion, packed: Batch, reader: TextTokenizer) -> Prompts:
    """Raises UserError (`invalid_data`) where there is no prompt to generate after."""
    assert isinstance(job.data, TextOptions)  # the contract refuses other formats
    file, end, room = train.file, end_of(reader), job.data.max_length - wanted.new_tokens
    if not file.talks():
        return beginnings(packed, reader.input_key, wanted.prompt_tokens, end)
    read = read_documents(file.pieces("finding prompts to generate after in"), reader, file.param, file.day)
    documents = (document for half, document in zip(train.halves, read, strict=True) if not half)
    found = questions(documents, reader.input_key, room, end, [*reader.special, end])
    if not len(found.samples):
        told = f"no answer of data.train has at most {room} tokens before it, which recipe.method.new_tokens leaves"
        raise invalid(f"{told} of data.max_length", "recipe.method.new_tokens")
    return found


def _notes(prompts: Prompts | None) -> Iterator[str]:
    if prompts and prompts.left_out:
        told = f"{prompts.left_out} of {prompts.left_out + len(prompts.samples)} answers are not generated anew"
        yield f"{told}: what precedes them and recipe.method.new_tokens are more than data.max_length"


def _references(data: Data) -> dict[str, str]:
    """The files to read, by the field that names them."""
    named = {"data.train": data.train}
    if data.eval is not None:
        named["data.eval"] = data.eval
    elif isinstance(data, HfData) and data.eval_split is not None:
        named["data.eval"] = data.train
    return named


def _headers(path: Path, param: str) -> Archive:
    with reading(data_subject(param)):
        return read_headers(path, param)


def _read(path: Path, job: JobSpec, param: str) -> Samples:
    with reading(data_subject(param), data_room(path)):
        samples = read_samples(path, job.data, job.task, param)
    return as_rows(samples, param) if job.task == EMBEDDING else samples


def _refuse(problems: list[Problem]) -> None:
    if problems:
        some = problems[:MOST_PROBLEMS]
        lines = [f"{p.param}: {p.message}" + (f" (accepted: {p.accepted})" if p.accepted else "") for p in some]
        lines += [f"… and {len(problems) - len(some)} more"] if problems[MOST_PROBLEMS:] else []
        room = problems[0].param.split(".")[0]
        code = {"data": "invalid_data", "teacher": "invalid_teacher"}.get(room, "invalid_job")
        raise UserError(code, "; ".join(lines), problems[0].param)


def _targets(
    job: JobSpec, teachers: Mapping[str, ModelConfig], samples: Mapping[str, Samples]
) -> tuple[dict[str, Tensor], Classes | None, list[str]]:
    """What to answer, by file; the classes, where there are any; and oddities of the labels."""
    notes = [note for one in samples.values() for note in one.notes]
    if job.task in CLASSIFICATION:
        classes = find_classes(job, teachers, samples)
        read = {param: class_targets(one, classes, job.data, param) for param, one in samples.items()}
        notes += [*classes.notes, *(note for _, own in read.values() for note in own)]
        return {param: targets for param, (targets, _) in read.items()}, classes, notes
    found = {param: torch.from_numpy(np.asarray(one.labels, np.float32)) for param, one in samples.items()}
    width = found["data.train"].shape[1]
    for param, targets in found.items():
        if targets.shape[1] != width:
            raise invalid(f"{param} has {targets.shape[1]} numbers to answer with, data.train has {width}", param)
    if job.task == "keypoints" and width % 2:
        raise invalid(f"{width} numbers are no points; accepted: x and y of each", "data.label_columns")
    return found, None, notes


def _readers(
    job: JobSpec, inputs: Mapping[str, Path], teachers: Mapping[str, ModelConfig], train: Samples
) -> tuple[Readers | None, list[str]]:
    """The tokenizers, and oddities of them."""
    if not isinstance(train.inputs, TextSamples) or not isinstance(job.data, TextOptions):
        return None, []
    readers = open_readers(job, job.data, inputs, teachers, train.inputs)
    return readers, check_tokenizers(job, readers, teachers, sampled(train.inputs.first))


def _facts(samples: Samples, readers: Readers | None, targets: Tensor, task: Task) -> SampleFacts:
    """What the samples amount to, now that they are read."""
    numbers = targets.shape[1] if targets.ndim == 2 and task != EMBEDDING else None
    stored = samples.inputs
    if isinstance(stored, TextSamples):
        if readers is None:
            raise invalid("data.eval has texts, data.train has none", "data.eval")
        count, size = len(targets) // samples.rows_per_sample, 8 * readers.input.length * samples.rows_per_sample
        return SampleFacts(count, readers.input, size, targets=numbers)
    pixels = stored.ndim == 4 and stored.dtype == np.uint8
    return SampleFacts(len(targets), _input(stored.shape[1:]), stored[0].nbytes, pixels, numbers)


def _input(shape: tuple[int, ...]) -> Input:
    if len(shape) == 3:
        return ImageInput(channels=shape[0], height=shape[1], width=shape[2])
    if shape[0] > MAX_COLUMNS:
        raise invalid(f"a row has {shape[0]} numbers; accepted: {MAX_COLUMNS} at most", "data.input_columns")
    return TableInput(columns=shape[0])


def _inputs_by_key(samples: Samples, readers: Readers | None, *, words: bool) -> dict[str, Tensor]:
    if isinstance(samples.inputs, TextSamples):
        return readers.read(samples.inputs, words=words) if readers else {}
    return {IMAGES if samples.inputs.ndim == 4 else TABLE: torch.from_numpy(samples.inputs)}


def _split(splits: Mapping[str, Batch], job: JobSpec, seed: int) -> tuple[Batch, Batch, tuple[Tensor, Tensor] | None]:
    train = splits["data.train"]
    if "data.eval" in splits:
        return train, splits["data.eval"], None
    _, count = split_counts(job.data, train.samples)
    classes = job.task in CLASSIFICATION
    halves = hold_out(train.targets, count, seed) if classes else hold_out_any(train.samples, count, seed)
    kept, held = (train.take_samples(chosen) for chosen in halves)
    own, others = (whole_split(half.inputs, half.targets, half.rows_per_sample) for half in (kept, held))
    return own, others, (kept.index, held.index)


def _describe(
    job: JobSpec, given: Input, train: Batch, classes: Classes | None, teachers: Mapping[str, ModelConfig]
) -> ModelConfig:
    raw = next((samples for input_key, samples in train.inputs.items() if input_key in (IMAGES, TABLE)), None)
    network, inherited = network_of(job, teachers), start_of(job, teachers)
    assert network is not None  # all teachers are known, and what keeps one from being shrunk is told
    embedding = embedding_of(job, teachers)
    if embedding is not None and isinstance(network, Transformers):
        width = width_of(network)
        taken = student_input(job, teachers, given)
        return ModelConfig(task=job.task, architecture=network, input=taken, targets=width, embedding=embedding)
    return ModelConfig(
        task=job.task,
        architecture=network,
        input=student_input(job, teachers, given),
        preprocessing=_preprocessing(raw, inherited),
        classes=classes.count if classes else None,
        class_names=classes.names if classes else None,
        targets=None if classes else train.targets.shape[1],
        target_names=None if classes else _target_names(job.data, train.targets.shape[1]),
        target_scaling=None if classes else _target_scaling(train.targets, inherited),
    )


def _target_names(data: Data, width: int) -> list[str] | None:
    """The columns of the numbers to learn; none where they come as lists, or from a format without columns."""
    columns = data.label_columns if isinstance(data, Table) else []
    return list(columns) if len(columns) == width else None


def _preprocessing(raw: Tensor | None, inherited: ModelConfig | None) -> Preprocessing | None:
    """The teacher's where the student starts from its weights, else fitted to the samples; none for texts."""
    if inherited is not None:
        return inherited.preprocessing
    return None if raw is None else fit_preprocessing(raw)


def _target_scaling(targets: Tensor, inherited: ModelConfig | None) -> TargetScaling | None:
    """The one that the weights of the last layer were trained with, where they stay; else fitted to the targets."""
    stays = inherited is not None and inherited.targets == targets.shape[1]
    return inherited.target_scaling if inherited and stays else fit_targets(targets)
