"""Training defaults by student: optimizer, schedule and epochs for a recipe without them, with reasons.

Defaults differ for fine-tuning of pretrained networks and training from scratch. Values in the document are never
replaced, so a resolved job, which has all of them, resolves to itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from app.recipe.data.sources import Texts
from app.recipe.job import JobSpec, Recipe
from app.recipe.optimizers import AdamP, AdamW, Constant, Cosine, Linear, MultiStep
from app.recipe.students.architectures import (
    DualEncoder,
    InpFormerNetwork,
    Network,
    Shrink,
    Student,
    TextTransformer,
    Timm,
    Transformers,
    Vit,
    reads_texts,
)
from app.recipe.students.conversion import Convert
from app.recipe.students.derived import network_of
from app.recipe.students.model import ModelConfig
from app.recipe.students.shrink import Unshrinkable
from app.recipe.tasks.base import TrainingDefaults

CONVOLUTIONAL_MODEL_TYPES = ("bit", "efficientnet", "mobilenet_v1", "mobilenet_v2", "regnet", "resnet")
"""Networks of the Transformers library that get the defaults of convolutional ones; the others get a transformer's."""

TRANSFORMERS_OF_TIMM = ("beit", "cait", "crossvit", "deit", "eva", "flexivit", "mixer", "pit_", "swin", "vit", "xcit")
"""Prefixes of the names of vision transformers in timm, whose other networks get the defaults of convolutional ones."""


class Default(NamedTuple):
    """A value that was chosen for a field that is not in the document."""

    param: str
    value: Any
    """The value in the resolved document: plain data."""
    reason: str


_WARM_COSINE, _WARM_LINEAR = Cosine(warmup_ratio=0.1), Linear(warmup_ratio=0.1)
_FRESH = TrainingDefaults(
    "a convolutional network or perceptron that starts from random weights: AdamW at its own defaults (1711.05101)",
    AdamW(),
    Constant(),
)
_FRESH_VISION = TrainingDefaults(
    "a vision transformer that starts from random weights: warm-up, cosine and weight decay of DeiT (2012.12877), peak"
    " rate of ViT on ImageNet alone (2010.11929, table 3)",
    AdamW(lr=3e-3, weight_decay=0.05),
    _WARM_COSINE,
)
_FRESH_SMALL_VISION = TrainingDefaults(
    "a small vision transformer of the zoo that starts from random weights: AdamW at its own defaults (1711.05101); the"
    " rates and warm-up of large ones did worse in short trainings on small images",
    AdamW(),
    Constant(),
)
_FRESH_ENCODER = TrainingDefaults(
    "an encoder of texts that starts from random weights: rate and weight decay as DistilBERT's training (1910.01108)",
    AdamW(lr=5e-4, weight_decay=0.01),
    _WARM_COSINE,
)
_TUNED = TrainingDefaults(
    "a convolutional network or perceptron that goes on from trained weights: a tenth of the rate for random ones, as"
    " is usual in fine-tuning (2002.11770)",
    AdamW(lr=1e-4),
    _WARM_COSINE,
)
_SHRUNK = TrainingDefaults(
    "a convolutional network or perceptron made of parts of its teacher: the rate for random weights, behind a warm-up",
    AdamW(),
    _WARM_COSINE,
)
_TUNED_VISION = TrainingDefaults(
    "a vision transformer that goes on from trained weights: rate and decay of the Transformers library's Trainer",
    AdamW(lr=5e-5, weight_decay=0.01),
    _WARM_LINEAR,
)
_TUNED_ENCODER = TrainingDefaults(
    "an encoder of texts that goes on from trained weights: largest of BERT's fine-tuning rates, its weight decay and"
    " its linear decay (1810.04805, A.2 and A.3)",
    AdamW(lr=5e-5, weight_decay=0.01),
    _WARM_LINEAR,
)
PRETRAINED_EPOCHS = 3
"""Epochs for a pretrained transformer: BERT's fine-tuning has 2 to 4, Alpaca's 3. A shrunken one lacks layers, and
needs more."""


def resolve(job: JobSpec, models: Mapping[str, ModelConfig]) -> tuple[JobSpec, list[Default]]:
    """Fill in missing fields of the recipe; returns the resolved job, and each value that was chosen.

    `models` are descriptions of stored models by reference; for an unknown one the family follows from the task.
    """
    given = job.recipe
    values, chosen = _missing(given, training_defaults(job, models))
    return job.model_copy(update={"recipe": given.model_copy(update=values)}), chosen


def _missing(recipe: Recipe, wanted: TrainingDefaults) -> tuple[dict[str, Any], list[Default]]:
    values: dict[str, Any] = {}
    chosen: list[Default] = []
    if isinstance(recipe.schedule, MultiStep):
        wanted = wanted._replace(epochs=recipe.epochs)  # its milestones are epochs, and mean those of the contract
    for field in ("optimizer", "schedule", "epochs"):
        if field not in recipe.model_fields_set:
            values[field] = value = getattr(wanted, field)
            plain = value if isinstance(value, int) else value.model_dump(mode="json", exclude_none=True)
            chosen.append(Default(f"recipe.{field}", plain, wanted.reason))
    optimizer = recipe.optimizer
    if "optimizer" not in values and isinstance(optimizer, AdamW | AdamP) and "lr" not in optimizer.model_fields_set:
        values["optimizer"] = optimizer.model_copy(update={"lr": wanted.optimizer.lr})
        chosen.insert(0, Default("recipe.optimizer.lr", wanted.optimizer.lr, wanted.reason))
    return values, chosen


def training_defaults(job: JobSpec, models: Mapping[str, ModelConfig]) -> TrainingDefaults:
    """The defaults for a job's student, by its family and the source of its weights."""
    student, network = job.student, _network(job, models)
    if network is not None and not _is_transformer(network):
        return _TUNED if job.start is not None else _SHRUNK if _starts_as_teacher(student) else _FRESH
    own, of_texts = job.task_spec, _reads_texts(job, network)
    tuned = _TUNED_ENCODER if of_texts else _TUNED_VISION
    if job.start is not None:
        return (own.tuned or tuned)._replace(epochs=PRETRAINED_EPOCHS)
    if _starts_as_teacher(student):
        return own.shrunk or tuned
    fresh_vision = _FRESH_SMALL_VISION if isinstance(network, Vit) else _FRESH_VISION
    return own.fresh or (_FRESH_ENCODER if of_texts else fresh_vision)


def _starts_as_teacher(student: Student) -> bool:
    return isinstance(student, Convert) or (isinstance(student, Shrink) and student.init == "teacher")


def _reads_texts(job: JobSpec, network: Network | None) -> bool:
    if network is None:
        return "texts" in job.task_spec.reads and isinstance(job.data, Texts)
    return reads_texts(network)


def _network(job: JobSpec, models: Mapping[str, ModelConfig]) -> Network | None:
    """The student's network; none for a folder that was not read yet: it has a hub's layout, so it is of the
    Transformers library."""
    try:
        return network_of(job, models)
    except Unshrinkable:
        return None  # the job is refused for it


def _is_transformer(network: Network) -> bool:
    if isinstance(network, Transformers):
        return network.model_type not in CONVOLUTIONAL_MODEL_TYPES
    if isinstance(network, Timm):
        return network.model.startswith(TRANSFORMERS_OF_TIMM)
    return isinstance(network, Vit | TextTransformer | DualEncoder | InpFormerNetwork)
