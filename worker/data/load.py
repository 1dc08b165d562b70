"""Loads the samples of a job: reads, checks and splits them, and fits the student's preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.augmentation import TextAugmentation
from app.recipe.data.facts import Archive, Known, SampleFacts
from app.recipe.data.sources import ImageData
from app.recipe.data.sources import Texts as TextOptions
from app.recipe.job import JobSpec
from app.recipe.plan import kept_back_count
from app.recipe.students.derived import network_of, start_of, student_input
from app.recipe.students.model import MAX_COLUMNS, ImageInput, Input, ModelConfig, Preprocessing, TableInput
from worker.data.archive import read_headers
from worker.data.batches import Batch, whole_split
from worker.data.formats import read_samples
from worker.data.formats.columns import Samples, TextSamples
from worker.data.formats.faults import data_memory, data_subject, invalid
from worker.data.label_notes import kept_back_notes
from worker.data.label_texts import LABEL_TEXTS, equal_labels, label_texts, read_label_texts
from worker.data.randomness import derive_seed
from worker.data.readers import WORDS, Readers, open_readers
from worker.data.soft_landmarks import soft_landmarks
from worker.data.statistics import fit_preprocessing
from worker.data.task_data import AlignedSplit, SampleReading, Targets, TaskData, references, refuse
from worker.data.tokenizer_checks import check_tokenizers, sampled
from worker.limits import reading

IMAGES, TABLE = "images", "table"


def load_samples(
    task: SampleReading, job: JobSpec, inputs: Mapping[str, Path], teachers: Mapping[str, ModelConfig], seed: int
) -> TaskData:
    """Read and check the data of `job`, whose task is `task`.

    `inputs` maps its references to files, and those of teachers to folders; `teachers` are their descriptions by
    reference; `seed` determines the held-out samples. Raises UserError naming the field, the row or index, and the
    value.
    """
    data, files = job.data, {param: inputs[name] for param, name in references(job.data).items()}
    if isinstance(data, ImageData):
        known: dict[str, Known] = {param: _headers(path, param) for param, path in files.items()}
        more: dict[str, Known] = {param: _headers(inputs[name], param) for param, name in job.diagnostic_files.items()}
        refuse(find_problems(job, InputFacts(known["data.train"], known.get("data.eval"), teachers, more)))
    else:
        refuse(find_problems(job, InputFacts(teachers=teachers)))
    texts = read_label_texts(files.pop(LABEL_TEXTS), data) if LABEL_TEXTS in files else None
    samples = task.gathered({param: _read(task, path, job, param) for param, path in files.items()})
    targets = task.targets(job, teachers, samples)
    labels = label_texts(job.student, targets.classes.names if targets.classes else None, texts)
    readers, warnings = _readers(job, inputs, teachers, samples["data.train"], labels)
    facts = {param: _facts(one, readers, targets, param) for param, one in samples.items()}
    further = {param: _further(task, job, inputs[name], param, readers) for param, name in job.diagnostic_files.items()}
    more = {param: of_file for param, (of_file, _) in further.items()}
    refuse(find_problems(job, InputFacts(facts["data.train"], facts.get("data.eval"), teachers, more)))
    aligned = {
        param: _aligned(task, job, one, targets.by_file[param], readers, param) for param, one in samples.items()
    }
    train, evaluation, numbers = _split(task, {param: split.samples for param, split in aligned.items()}, job, seed)
    train, evaluation, division = task.settle(train, evaluation, targets)
    if data.targets_transform is not None:
        train = replace(train, targets=soft_landmarks(train.targets, data.targets_transform))
    train, kept_back, chosen = keep_back(task, train, job, seed)
    if numbers is not None and chosen is not None:
        numbers = numbers[0][chosen], numbers[1]
    model = _describe(task, job, facts["data.train"].input, train, targets, teachers)
    notes = [note for one in samples.values() for note in one.notes]
    if kept_back is not None and targets.classes is not None:
        notes += kept_back_notes(train.targets, kept_back.targets, model)
    notes += [note for split in aligned.values() for note in split.notes]
    notes += [*targets.notes, *warnings, *task.label_notes(train.targets, evaluation.targets, model)]
    places = targets.classes.places if targets.classes else {}
    label_tokens = None
    if readers is not None and labels:
        label_tokens = readers.student.encode(TextSamples(labels), readers.input.length).ids
        notes += equal_labels(label_tokens, model.class_names or labels)
    return TaskData(
        train,
        evaluation,
        model,
        notes,
        readers,
        kept_back,
        numbers=numbers,
        places=places,
        split=division,
        label_tokens=label_tokens,
        further={param: batch for param, (_, batch) in further.items()},
    )


def _headers(path: Path, param: str) -> Archive:
    with reading(data_subject(param)):
        return read_headers(path, param)


def _read(task: SampleReading, path: Path, job: JobSpec, param: str) -> Samples:
    with reading(data_subject(param), data_memory(path)):
        samples = read_samples(path, job.data, task.columns, param)
    return task.arrange(samples, param)


def _further(
    task: SampleReading, job: JobSpec, path: Path, param: str, readers: Readers | None
) -> tuple[SampleFacts, Batch]:
    """Samples of a file of a diagnostic, whose labels are not read: all are 0."""
    with reading(data_subject(param), data_memory(path)):
        samples = read_samples(path, job.data, task.columns.without_labels(), param)
    targets = torch.zeros(len(samples.labels), dtype=torch.int64)
    facts = _facts(samples, readers, Targets({param: targets}), param)
    return facts, whole_split(_inputs_by_key(samples, readers, words=False), targets)


def _readers(
    job: JobSpec, inputs: Mapping[str, Path], teachers: Mapping[str, ModelConfig], train: Samples, labels: list[str]
) -> tuple[Readers | None, list[str]]:
    """The tokenizers, and warnings about them; one that is trained learns from the texts of `labels`, too."""
    if not isinstance(train.inputs, TextSamples) or not isinstance(job.data, TextOptions):
        return None, []
    texts = train.inputs._replace(first=[*train.inputs.first, *labels]) if labels else train.inputs
    readers = open_readers(job, job.data, inputs, teachers, texts)
    return readers, check_tokenizers(job, readers, teachers, sampled(train.inputs.first))


def _facts(samples: Samples, readers: Readers | None, targets: Targets, param: str) -> SampleFacts:
    """Facts about the samples that were read."""
    stored, count = samples.inputs, len(targets.by_file[param]) // samples.rows_per_sample
    numbers, classes = targets.numbers, targets.classes.count if targets.classes else None
    if isinstance(stored, TextSamples):
        if readers is None:
            raise invalid("data.eval has texts, data.train has none", "data.eval")
        size = 8 * readers.input.length * samples.rows_per_sample
        return SampleFacts(count, readers.input, size, targets=numbers, classes=classes)
    pixels = stored.ndim == 4 and stored.dtype == np.uint8
    size = stored[0].nbytes * samples.rows_per_sample
    return SampleFacts(count, _input(stored.shape[1:]), size, pixels, numbers, classes)


def _input(shape: tuple[int, ...]) -> Input:
    if len(shape) == 3:
        return ImageInput(channels=shape[0], height=shape[1], width=shape[2])
    if shape[0] > MAX_COLUMNS:
        raise invalid(f"a row has {shape[0]} numbers; accepted: {MAX_COLUMNS} at most", "data.input_columns")
    return TableInput(columns=shape[0])


def _aligned(
    task: SampleReading, job: JobSpec, samples: Samples, targets: Tensor, readers: Readers | None, param: str
) -> AlignedSplit:
    """All samples of a file; the word numbers of tokens are kept if augmentation needs them."""
    kept = any(isinstance(step, TextAugmentation) for step in job.data.augment)
    inputs = _inputs_by_key(samples, readers, words=kept or task.reads_words)
    found = task.align(whole_split(inputs, targets, samples.rows_per_sample), readers, param)
    if kept:
        return found
    inputs = {name: values for name, values in found.samples.inputs.items() if not name.startswith(WORDS)}
    return found._replace(samples=replace(found.samples, inputs=inputs))


def _inputs_by_key(samples: Samples, readers: Readers | None, *, words: bool) -> dict[str, Tensor]:
    if isinstance(samples.inputs, TextSamples):
        return readers.read(samples.inputs, words=words) if readers else {}
    return {IMAGES if samples.inputs.ndim == 4 else TABLE: torch.from_numpy(samples.inputs)}


def _split(
    task: SampleReading, splits: Mapping[str, Batch], job: JobSpec, seed: int
) -> tuple[Batch, Batch, tuple[Tensor, Tensor] | None]:
    train = splits["data.train"]
    if "data.eval" in splits:
        return train, splits["data.eval"], None
    kept, held = (train.take_samples(chosen) for chosen in task.split(train, job.data, seed))
    train_half, eval_half = (whole_split(half.inputs, half.targets, half.rows_per_sample) for half in (kept, held))
    return train_half, eval_half, (kept.index, held.index)


def keep_back(task: SampleReading, train: Batch, job: JobSpec, seed: int) -> tuple[Batch, Batch | None, Tensor | None]:
    """The training samples without those that the job's method keeps back, these, and the indices (N,) int64 of the
    former; none: it keeps none back. Raises UserError (`invalid_data`) for a single training sample."""
    count = kept_back_count(job.recipe, train.samples)
    if not job.recipe.method.kept_back:
        return train, None, None
    if not count:
        found = f"{job.recipe.method.kind} keeps back some of the training samples, and there is one"
        raise invalid(f"{found}; accepted: two or more", "data.train")
    remaining, chosen = task.hold_out(train, count, derive_seed(seed, "kept-back"))
    halves = (train.take_samples(part) for part in (remaining, chosen))
    rest, kept = (whole_split(half.inputs, half.targets, half.rows_per_sample) for half in halves)
    return rest, kept, remaining


def _describe(
    task: SampleReading,
    job: JobSpec,
    given: Input,
    train: Batch,
    targets: Targets,
    teachers: Mapping[str, ModelConfig],
) -> ModelConfig:
    samples = next((values for input_key, values in train.inputs.items() if input_key in (IMAGES, TABLE)), None)
    network, inherited = network_of(job, teachers), start_of(job, teachers)
    assert network is not None  # all teachers are known, and those that can't be shrunk were refused
    return ModelConfig(
        task=job.task,
        architecture=network,
        input=student_input(job, teachers, given),
        preprocessing=_preprocessing(samples, inherited),
        **task.answer(job, train, targets, teachers, inherited),
    )


def _preprocessing(samples: Tensor | None, inherited: ModelConfig | None) -> Preprocessing | None:
    """The teacher's preprocessing if the student starts from its weights, else fitted to the samples; none for
    texts."""
    if inherited is not None:
        return inherited.preprocessing
    return None if samples is None else fit_preprocessing(samples)
