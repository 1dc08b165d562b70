"""Rules that span several fields of a job, or a job and the facts about its inputs.

One pure function, so that the HTTP door (which knows file headers) and the trainer (which has read everything) hold a
job against the same rules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from app.recipe.cost import least_weights
from app.recipe.data.class_rules import class_problems
from app.recipe.data.facts import Known, Problem, SampleFacts, data_problems, sample_facts
from app.recipe.data.sources import Table, Texts
from app.recipe.data.tokenizers import Trained
from app.recipe.job import JobSpec
from app.recipe.losses import Contrastive, Ferkd, KdRel, KdTopk, Loss, PairScore
from app.recipe.losses.features import FeatureTerm
from app.recipe.losses.module_rules import module_problems
from app.recipe.methods.base import method_problems
from app.recipe.optimizers import MultiStep, NormalizeAndProject, NormalizedGd, Optimizer
from app.recipe.processes import processes_problems
from app.recipe.students.architectures import Mlp, Network, Pretrained, Transformers, Vit
from app.recipe.students.exports import is_too_large
from app.recipe.students.hugging_face import DECODER_MODEL_TYPES, IMAGE_MODEL_TYPES, TEXT_MODEL_TYPES
from app.recipe.students.model import ImageInput, Input, ModelConfig, TableInput, TextInput
from app.recipe.students.shrink import Unshrinkable, network_of, student_input
from app.recipe.tasks.metrics import requirement_problems
from app.recipe.tasks.task import CAUSAL_LM, CLASSIFICATION, EMBEDDING, TEXT_TASKS, Task
from app.recipe.teachers.cache import NoCache, TopKCache
from app.recipe.teachers.other_tokens import other_tokens_problems

MODEL_TYPES_OF: dict[Task, tuple[str, ...]] = {
    "image-classification": IMAGE_MODEL_TYPES,
    "keypoints": IMAGE_MODEL_TYPES,
    **dict.fromkeys(TEXT_TASKS, TEXT_MODEL_TYPES),
    CAUSAL_LM: DECODER_MODEL_TYPES,
}
"""Networks of the Transformers library by task; a regression takes both that answer once."""


@dataclass(frozen=True)
class InputFacts:
    """What is known of a job's inputs; none means: not known yet, so not checked."""

    train: Known | None = None
    eval: Known | None = None
    teachers: Mapping[str, ModelConfig] = field(default_factory=dict)
    """Descriptions of teachers, and of a student that starts as a stored model, by their reference."""


@dataclass
class _Found:
    problems: list[Problem] = field(default_factory=list)

    def add(self, param: str, message: str, accepted: str | None = None) -> None:
        self.problems.append(Problem(param, message, accepted))


def find_problems(job: JobSpec, facts: InputFacts = InputFacts()) -> list[Problem]:
    """Everything wrong with `job` that its single fields could not show, in the order of the document."""
    found = _Found()
    train = _samples(job, facts.train, "data.train", found)
    evaluation = _samples(job, facts.eval, "data.eval", found)
    if train and evaluation and train.input != evaluation.input:
        found.add("data.eval", f"samples are {_size(evaluation.input)}", f"{_size(train.input)}, as in data.train")
    if train and job.data.holds_out and train.count < 2:
        found.add("data.train", "one sample can't be split into training and evaluation", "two or more, or data.eval")
    found.problems.extend(data_problems(job.data, job.task, train))
    found.problems.extend(_teaching_problems(job))
    for index, teacher in enumerate(job.all_teachers):
        if teacher.reference in facts.teachers:
            _check_teacher(job, facts.teachers[teacher.reference], train, job.teacher_param(index), found)
    found.problems.extend(class_problems(job, facts.teachers))
    found.problems.extend(_student_problems(job, facts.teachers, train.input if train else None))
    found.problems.extend(_start_problems(job, facts.teachers, train.input if train else None))
    found.problems.extend(_cache_problems(job, facts.teachers))
    found.problems.extend(_loss_problems(job, facts.teachers))
    found.problems.extend(module_problems(job, facts.teachers))
    found.problems.extend(_optimizer_problems(job))
    found.problems.extend(_recipe_problems(job))
    found.problems.extend(method_problems(job))
    found.problems.extend(processes_problems(job))
    return found.problems


def _samples(job: JobSpec, known: Known | None, param: str, found: _Found) -> SampleFacts | None:
    result = sample_facts(job.data, job.task, known, param)
    if isinstance(result, SampleFacts):
        return result
    found.problems.extend(result)
    return None


def _teaching_problems(job: JobSpec) -> Iterator[Problem]:
    """Teachers without losses that learn from them, and losses without teachers."""
    if job.teacher is not None and job.teachers:
        yield Problem("teachers", "is given beside teacher", "one of the two")
    names = Counter(teacher.name for teacher in job.all_teachers)
    for name, count in names.items():
        if count > 1:
            yield Problem("teachers", f"{count} teachers are called {name!r}", "a name of its own for each")
    if job.teacher_weighting == "entropy" and job.task not in CLASSIFICATION:
        yield Problem("teacher_weighting", f"is entropy, and answers of {job.task} are no distributions", "fixed")
    if job.task == EMBEDDING and len(names) > 1:
        yield Problem("teachers", "are several, whose vectors have no mean", "one teacher")
    learning = [term for terms in job.objectives.values() for term in terms if term.needs_teacher]
    if learning and not names:
        kinds = ", ".join(sorted({term.kind for term in learning}))
        yield Problem("teacher", f"is missing, and {kinds} needs one", "the id of a model")
    if names and not learning and not job.recipe.method.learns_from_teacher:
        yield Problem(
            "teachers" if job.teachers else "teacher",
            "is given, but no loss learns from it",
            "a loss such as kd or nkd, or no teacher",
        )


def _check_teacher(job: JobSpec, teacher: ModelConfig, train: SampleFacts | None, param: str, found: _Found) -> None:
    if teacher.task != job.task:
        found.add(param, f"was made for {teacher.task}", f"a model for {job.task}")
    if train and train.targets not in (None, teacher.targets):
        found.add(param, f"answers with {teacher.targets} numbers", f"{train.targets}, as in data.train")
    if job.task == CAUSAL_LM:
        found.problems.extend(_length_problems(job, teacher, param))
    elif train and not _reads(teacher.input, train.input):
        found.add(param, f"takes {_size(teacher.input)}", f"{_size(train.input)}, as in data.train; of images any size")


def _length_problems(job: JobSpec, teacher: ModelConfig, param: str) -> Iterator[Problem]:
    """Sequences longer than a teacher can read: nothing of a packed one can be cut off."""
    if not isinstance(teacher.input, TextInput) or not isinstance(job.data, Texts):
        return
    if job.data.max_length > (most := teacher.input.length):
        yield Problem(
            "data.max_length", f"is {job.data.max_length}, and {param} reads {most} tokens", f"at most {most}"
        )


def _student_problems(job: JobSpec, teachers: Mapping[str, ModelConfig], given: Input | None) -> Iterator[Problem]:
    try:
        network = network_of(job, teachers)
    except Unshrinkable as error:
        yield Problem(f"student.{error.field}", error.message, error.accepted)
    else:
        if network is not None:
            taken = student_input(job, teachers, given) if given else None
            unfit = list(_unfit_problems(job.task, network))
            unfit = unfit or list(architecture_problems(network, taken, "student"))
            own = f"student.{job.student.source}" if isinstance(job.student, Pretrained) else None
            yield from (problem._replace(param=own or problem.param) for problem in unfit)
            if not unfit:
                yield from _graph_problems(job, network, taken or _tokens_of(job, teachers))
                yield from _network_problems(job, taken)
    if job.student_image_size is not None and given is not None and not isinstance(given, ImageInput):
        yield Problem("student_image_size", "is given, but the samples are no images", "null")
    if job.embedding is not None and job.task != EMBEDDING:
        yield Problem("embedding", f"is given, the task is {job.task}", "none, or task: embedding")


def _network_problems(job: JobSpec, given: Input | None) -> Iterator[Problem]:
    """Networks that the method trains beside the student, on what the student takes."""
    for path, network in job.recipe.method.networks().items():
        unfit = list(_unfit_problems(job.task, network))
        unfit = [problem._replace(param=problem.param.replace("student", path, 1)) for problem in unfit]
        yield from unfit or architecture_problems(network, given, path)


def _graph_problems(job: JobSpec, network: Network, taken: Input | None) -> Iterator[Problem]:
    """Weights that no ONNX file can hold although one is asked for, as far as they can be counted; the trainer, who
    builds them, counts all."""
    least = least_weights(network, taken, 1)
    if "onnx" in (job.export or ()) and is_too_large(least):
        yield Problem("export", f"{least:,} weights or more are too many for one ONNX file", "safetensors")


def _tokens_of(job: JobSpec, stored: Mapping[str, ModelConfig]) -> Input | None:
    """What a student that starts as a stored model takes, if that is known."""
    start = stored.get(job.student.reference) if isinstance(job.student, Pretrained) else None
    return start.input if start else None


def _start_problems(job: JobSpec, stored: Mapping[str, ModelConfig], given: Input | None) -> Iterator[Problem]:
    """What a student that starts as a stored model can't read."""
    if not isinstance(job.student, Pretrained):
        return
    param = f"student.{job.student.source}"
    if isinstance(job.data, Texts) and job.data.tokenizer is not None:
        found = f"is {job.data.tokenizer.kind}, and a student that starts as a stored model reads by its own tokenizer"
        yield Problem("data.tokenizer", found, "null")
    start = stored.get(job.student.reference)
    if start is None:
        return
    yield from _length_problems(job, start, param) if isinstance(start.input, TextInput) else ()
    if given is not None and not _reads(start.input, given):
        yield Problem(param, f"takes {_size(start.input)}", f"{_size(given)}, as in data.train; of images any size")
    size = job.student_image_size
    if isinstance(start.input, ImageInput) and size not in (None, [start.input.height, start.input.width]):
        found = f"is {size}, and the student starts from weights for {_size(start.input)}"
        yield Problem("student_image_size", found, "null: as the stored model")


def _unfit_problems(task: Task, network: Network) -> Iterator[Problem]:
    """Networks that answer something else than the task asks for."""
    fitting = MODEL_TYPES_OF.get(task, (*IMAGE_MODEL_TYPES, *TEXT_MODEL_TYPES))
    if isinstance(network, Transformers):
        if network.model_type not in fitting:
            found = f"{network.model_type} is not for {task}"
            yield Problem("student.config.model_type", found, f"one of {', '.join(fitting)}")
    elif task in TEXT_TASKS:
        found = f"{network.architecture} reads no texts"
        yield Problem("student.architecture", found, "transformers, or shrink of a teacher that is one")


def architecture_problems(network: Network, given: Input | None, path: str) -> Iterator[Problem]:
    """What keeps a network from being built for this input; `path` is where the document describes it."""
    if isinstance(network, Transformers):
        yield from _transformers_problems(network, given, path)
    elif isinstance(given, TextInput):
        yield Problem(f"{path}.architecture", f"{network.architecture} reads no texts", "transformers")
    elif isinstance(given, TableInput) and not isinstance(network, Mlp):
        yield Problem(f"{path}.architecture", f"{network.architecture} takes images", "mlp")
    if isinstance(network, Vit):
        yield from _vit_problems(network, given, path)


def _transformers_problems(network: Transformers, given: Input | None, path: str) -> Iterator[Problem]:
    kind, reads = {ImageInput: "images", TextInput: "texts"}, network.reads
    if given is not None and kind.get(type(given)) != reads:
        found = f"{network.model_type} reads {reads}, the data holds {kind.get(type(given), 'tables')}"
        yield Problem(f"{path}.config.model_type", found, "a network for the data")
    elif isinstance(given, ImageInput):
        yield from _image_keys_problems(network, given, path)


def _image_keys_problems(network: Transformers, image: ImageInput, path: str) -> Iterator[Problem]:
    sides: JsonValue = [image.height, image.width]
    sizes: list[JsonValue] = [sides, image.height] if image.height == image.width else [sides]
    for key, accepted in (("num_channels", [image.channels]), ("image_size", sizes)):
        if (value := network.config.get(key)) is not None and value not in accepted:
            yield Problem(f"{path}.config.{key}", f"is {value}, the images have {accepted[-1]}", str(accepted[-1]))


def _vit_problems(network: Vit, given: Input | None, path: str) -> Iterator[Problem]:
    if isinstance(given, ImageInput) and (given.height % network.patch_size or given.width % network.patch_size):
        sides = f"{given.height} x {given.width}"
        yield Problem(f"{path}.patch_size", f"{network.patch_size} does not divide {sides}", f"a divisor of {sides}")
    if network.width % network.heads:
        yield Problem(f"{path}.heads", f"{network.heads} does not divide the width {network.width}", "a divisor of it")


def _cache_problems(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    """What can't be kept of teachers' answers, or would not be although the job says so."""
    kept = job.teacher_cache
    if isinstance(kept, NoCache) or kept.exact:
        return
    if job.task == CAUSAL_LM and not isinstance(kept, TopKCache):
        found = f"is {kept.dtype}, and nothing is kept of a language model's whole logits at every token"
        yield Problem("teacher_cache.dtype", found, "fp32, or store: top-k, or off")
        return
    if not job.all_teachers:
        yield Problem("teacher_cache", "is given, but there is no teacher", "a teacher, or no teacher_cache")
    if any(term.taps().teacher for terms in job.objectives.values() for term in terms):
        found = "loses something, but a loss looks at the teacher's activations, so that nothing is kept"
        yield Problem("teacher_cache", found, "dense in fp32, or off")
    if isinstance(kept, TopKCache):
        yield from _top_k_problems(job, kept.k, teachers)


def _top_k_problems(job: JobSpec, k: int, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    if job.task not in (*CLASSIFICATION, CAUSAL_LM):
        yield Problem("teacher_cache.store", f"is top-k, and {job.task} has no classes", "dense or off")
        return
    known = [teachers[teacher.reference].outputs for teacher in job.all_teachers if teacher.reference in teachers]
    classes = min([count for count in (job.data.told_classes, *known) if count is not None], default=k)
    if k > classes:
        yield Problem("teacher_cache.k", f"{k} is more than the {classes} classes", f"at most {classes}")


def _loss_problems(job: JobSpec, teachers: Mapping[str, ModelConfig]) -> Iterator[Problem]:
    known = [teachers[teacher.reference].classes for teacher in job.all_teachers if teacher.reference in teachers]
    classes = job.data.told_classes or next(iter(known), None)
    for path, terms in job.objectives.items():
        for index, term in enumerate(terms):
            yield from _term_problems(job, term, f"{path}[{index}]")
            if isinstance(term, KdRel):
                yield from _hierarchy_problems(job, term, classes, f"{path}[{index}].parents")
            yield from _kept_classes_problems(term, classes, f"{path}[{index}]")


def _term_problems(job: JobSpec, term: Loss, path: str) -> Iterator[Problem]:
    if job.task not in term.tasks:
        yield Problem(f"{path}.kind", f"{term.kind} is not for {job.task}", "a loss for this task")
    if isinstance(term, Contrastive | PairScore):
        yield from _pair_problems(job, term, path)
    names = [teacher.name for teacher in job.all_teachers]
    for field_name, name in term.named_teachers().items():
        if not term.needs_teacher:
            yield Problem(f"{path}.{field_name}", f"{term.kind} learns from no teacher", "no name")
        elif name not in names:
            yield Problem(f"{path}.{field_name}", f"there is no teacher {name!r}", f"one of {', '.join(names)}")
    if term.couples_rows and job.recipe.accumulate > 1:
        found = f"is {job.recipe.accumulate}, but {term.kind} compares all samples of a batch with each other"
        yield Problem("recipe.accumulate", f"{found}, so that a batch can't be computed in parts", "1")


def _pair_problems(job: JobSpec, term: Contrastive | PairScore, path: str) -> Iterator[Problem]:
    if not isinstance(job.data, Table) or job.task not in term.tasks:
        return
    if len(job.data.input_columns) < 2:
        yield Problem(f"{path}.kind", f"{term.kind} compares two texts, and data.input_columns names one", "pairs")
    elif term.needs_scores and not job.data.label_columns:
        yield Problem("data.label_columns", f"is missing, and {term.kind} learns from scores", "the column of scores")


def _hierarchy_problems(job: JobSpec, term: KdRel, classes: int | None, param: str) -> Iterator[Problem]:
    given = len(term.parents)
    if classes is None and not job.all_teachers:
        yield Problem("data.classes", f"is missing, and {term.kind} needs it", f"{given}, as in {param}")
    if classes not in (None, given):
        yield Problem(param, f"has {given} numbers for {classes} classes", "one number per class")


def _kept_classes_problems(term: Loss, classes: int | None, path: str) -> Iterator[Problem]:
    field, kept = ("top_k", term.top_k) if isinstance(term, Ferkd) else ("k", None)
    if isinstance(term, KdTopk):
        kept = term.k
    if kept is not None and classes is not None and kept > classes:
        yield Problem(f"{path}.{field}", f"{kept} is more than the {classes} classes", f"at most {classes}")


def _optimizer_problems(job: JobSpec) -> Iterator[Problem]:
    """Optimizers that can't do anything for what they are given to train."""
    for index, stage in enumerate(job.recipe.stages):
        inherited = "recipe.optimizer" if stage.optimizer is None else f"recipe.stages[{index}].optimizer"
        learns = stage.losses if stage.trains == "student" else []
        yield from _fit_problems(job, stage.optimizer or job.recipe.optimizer, learns, inherited)
    yield from _fit_problems(job, job.recipe.optimizer, job.recipe.losses, "recipe.optimizer")


def _fit_problems(job: JobSpec, optimizer: Optimizer, losses: list[Loss], path: str) -> Iterator[Problem]:
    """`losses` are those that the student is trained with, none where only terms are."""
    if isinstance(optimizer, NormalizeAndProject) and losses and isinstance(job.student, Mlp):
        yield Problem(f"{path}.kind", "nap needs normalisation layers, and mlp has none", "any other optimizer")
    if not isinstance(optimizer, NormalizedGd):
        return
    if job.task not in optimizer.tasks:
        yield Problem(f"{path}.kind", f"{optimizer.kind} is not for {job.task}", "an optimizer for this task")
    elif all(isinstance(term, FeatureTerm) for term in losses):
        found = f"{optimizer.kind} divides by the gradient at the student's outputs, and no loss gives them one"
        yield Problem(
            f"{path}.kind", found, "any other optimizer, or a loss on the outputs, where the student is trained"
        )


def _recipe_problems(job: JobSpec) -> Iterator[Problem]:
    if job.evaluation.nme_points is not None and job.task != "keypoints":
        yield Problem("evaluation.nme_points", f"is for keypoints, the task is {job.task}", "none, or task: keypoints")
    yield from requirement_problems(job)
    if job.task == CAUSAL_LM and not isinstance(job.student, Pretrained):
        yield from _tokenizer_problems(job)
    recipe = job.recipe
    if recipe.accumulate > recipe.batch_size:
        yield Problem(
            "recipe.accumulate", f"{recipe.accumulate} is more than the batch size", f"<= {recipe.batch_size}"
        )
    if isinstance(recipe.schedule, MultiStep) and recipe.schedule.milestones[-1] >= recipe.epochs:
        yield Problem(
            "recipe.schedule.milestones",
            f"{recipe.schedule.milestones[-1]} is not reached",
            f"epochs < {recipe.epochs}",
        )


def _tokenizer_problems(job: JobSpec) -> Iterator[Problem]:
    """Of a tokenizer that no teacher knows; whether the teachers have the same one, shows when they are read."""
    if isinstance(job.data, Texts) and isinstance(job.data.tokenizer, Trained):
        for teacher in job.all_teachers:
            yield from other_tokens_problems(job, teacher.name)


def _reads(taken: Input, given: Input) -> bool:
    """Whether a model may read these samples: texts are cut into the tokens of each model's own tokenizer, and images
    are resized."""
    if isinstance(taken, ImageInput) and isinstance(given, ImageInput):
        return taken.channels == given.channels
    return taken == given or (isinstance(taken, TextInput) and isinstance(given, TextInput))


def _size(given: Input) -> str:
    if isinstance(given, ImageInput):
        return f"{given.channels} x {given.height} x {given.width}"
    return f"{given.columns} columns" if isinstance(given, TableInput) else f"{given.length} tokens"
