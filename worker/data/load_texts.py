"""The texts of a language model: read in pieces, packed into sequences, and aligned with other tokenizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from app.recipe.checks import InputFacts, find_problems
from app.recipe.data.facts import SampleFacts
from app.recipe.data.sources import Texts as TextOptions
from app.recipe.job import JobSpec
from app.recipe.methods.text_generation import TextGeneration
from app.recipe.plan import split_counts
from app.recipe.students.derived import network_of, student_input
from app.recipe.students.model import ModelConfig, TextInput
from worker.data.archive import NDArray
from worker.data.batches import Batch
from worker.data.documents import end_of, read_documents
from worker.data.formats.faults import invalid
from worker.data.prompts import Prompts, beginnings, questions
from worker.data.readers import Readers, open_reader
from worker.data.running_text import PackingDir, TextFile, align_file, halves_of, map_files, pack_file
from worker.data.task_data import TaskData, references, refuse
from worker.data.tokenizer_checks import check_tokenizers
from worker.data.tokens import TextTokenizer
from worker.errors import UserError


def load_running_text(
    job: JobSpec, inputs: Mapping[str, Path], teachers: Mapping[str, ModelConfig], seed: int, packing: PackingDir
) -> TaskData:
    """Read and check the texts of a language model's `job`: whole texts are held out, and each split is packed into
    sequences in the folder of `packing`. Other arguments and errors are those of `load_samples`."""
    refuse(find_problems(job, InputFacts(teachers=teachers)))
    files = {param: TextFile(inputs[name], job.data, param, packing) for param, name in references(job.data).items()}
    with packing.opened():
        return _running_text(job, inputs, teachers, files, seed, packing)


def _running_text(
    job: JobSpec,
    inputs: Mapping[str, Path],
    teachers: Mapping[str, ModelConfig],
    files: Mapping[str, TextFile],
    seed: int,
    packing: PackingDir,
) -> TaskData:
    assert isinstance(job.data, TextOptions)  # the contract refuses other formats
    length, train = job.data.max_length, files["data.train"]
    counts = {param: file.count() for param, file in files.items()} if packing.packs else {}
    readers = open_reader(job, job.data, inputs, teachers, train.texts())
    warnings = check_tokenizers(job, readers, teachers, train.texts())
    reader, end = readers.student, end_of(readers.student)
    taken = TextInput(length=length, vocabulary=reader.vocabulary, pad=end)
    facts = {param: SampleFacts(count, taken, 16 * length) for param, count in counts.items()}
    refuse(find_problems(job, InputFacts(facts.get("data.train"), facts.get("data.eval"), teachers)))
    paths = [packing.folder / name for name in ("train", "eval")]
    portions = _portions(job, files, counts, seed, paths) if packing.packs else []
    sizes = [size for part in portions for size in pack_file(part.file, reader, length, part.halves, part.paths)]
    shares = (
        {input_key: _aligned(job, readers, input_key, portions) for input_key in readers.others} if portions else {}
    )
    packed = map_files(paths, packing, reader, length, list(readers.others.values()))
    network = network_of(job, teachers)
    assert network is not None  # all teachers are known, and those that can't be shrunk were refused
    model = ModelConfig(task=job.task, architecture=network, input=student_input(job, teachers, taken))
    method = job.recipe.method
    prompts = _prompts(job, method, portions[0], packed[0], reader) if isinstance(method, TextGeneration) else None
    notes = [*warnings, *_notes(prompts)]
    return TaskData(
        packed[0], packed[1], model, notes, readers, prompts=prompts, bytes=sum(sizes[1:]), alignment=shares
    )


class _Portion(NamedTuple):
    """A file and its splits: text number i goes into the file at `paths[halves[i]]`."""

    file: TextFile
    halves: NDArray
    paths: Sequence[Path]


def _portions(
    job: JobSpec, files: Mapping[str, TextFile], counts: Mapping[str, int], seed: int, paths: Sequence[Path]
) -> list[_Portion]:
    """Portions of all files, the training texts first."""
    if len(files) > 1:
        wholes = zip(files.items(), paths, strict=True)
        return [_Portion(file, halves_of(counts[param], 0, seed), [path]) for (param, file), path in wholes]
    _, held_out = split_counts(job.data, counts["data.train"])
    return [_Portion(files["data.train"], halves_of(counts["data.train"], held_out, seed), paths)]


def _aligned(job: JobSpec, readers: Readers, input_key: str, portions: Sequence[_Portion]) -> dict[str, float]:
    """Write the texts in the tokens of a teacher with another tokenizer; returns the share of the student's tokens, by
    split, for which there is a teacher prediction. Raises UserError for the teacher, or for sequences that are too long
    for it."""
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
        found = (
            f"is {length}, and the text of so many tokens has up to {longest} tokens of {name!r}, which takes {most}"
        )
        accepted = f"about {length * most // longest} at most"
        raise UserError("invalid_job", f"data.max_length {found}; accepted: {accepted}", "data.max_length")
    if not train.share:
        found = f"{param} has a tokenizer none of whose tokens ends where one of the student's does in data.train"
        accepted = "tokenizers of teacher and student that do not change texts"
        raise UserError("invalid_teacher", f"{found}; accepted: {accepted}", param)
    return {"train": train.share, "eval": evaluation.share}


def _prompts(job: JobSpec, wanted: TextGeneration, train: _Portion, packed: Batch, reader: TextTokenizer) -> Prompts:
    """Prompts for generation. Raises UserError (`invalid_data`) if there are none."""
    assert isinstance(job.data, TextOptions)  # the contract refuses other formats
    file, end, most = train.file, end_of(reader), job.data.max_length - wanted.new_tokens
    if not file.talks():
        return beginnings(packed, reader.input_key, wanted.prompt_tokens, end)
    read = read_documents(file.pieces("finding prompts in"), reader, file.param, file.day)
    documents = (document for half, document in zip(train.halves, read, strict=True) if not half)
    prompts = questions(documents, reader.input_key, most, end, [*reader.special, end])
    if not len(prompts.samples):
        found = f"no answer of data.train has at most {most} tokens before it, which recipe.method.new_tokens leaves"
        raise invalid(f"{found} of data.max_length", "recipe.method.new_tokens")
    return prompts


def _notes(prompts: Prompts | None) -> Iterator[str]:
    if prompts and prompts.left_out:
        found = f"{prompts.left_out} of {prompts.left_out + len(prompts.samples)} answers are not generated"
        yield f"{found}: their prompts and recipe.method.new_tokens are more than data.max_length"
