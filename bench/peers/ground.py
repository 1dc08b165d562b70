"""The common ground of all engines: texts, a teacher, a student's initial weights, and the order of the samples.

It lies in a folder that any engine can read: `train.jsonl` (pairs of texts, classes or numbers), and `teacher/` and
`student/` in the Hugging Face layout, with their tokenizer. Nothing is fetched, and all follows from one seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.recipe.data.tokenizers import WordPiece
from app.recipe.job import JobSpec
from app.recipe.students.architectures import Transformers
from app.recipe.students.inputs import TextInput
from app.recipe.students.model import ModelConfig
from worker.data.batches import Batches
from worker.data.formats.columns import TextSamples
from worker.data.tokens import TextTokenizer, load_tokenizer, train_tokenizer
from worker.students.hugging_face_folder import write_tokenizer
from worker.students.model import Model
from worker.students.weights import save_model
from worker.tasks import task_for
from worker.teachers import read_teacher_config
from worker.training.state import fresh_student

Objective = Literal["kd", "mse"]
"""`kd`: half cross-entropy with the labels, half KL at TEMPERATURE times its square; the teacher runs in every step.
`mse`: squared difference to the teacher's predictions, which are computed before."""
TEMPERATURE = 2.0
LR, EPS, CLIP = 3e-4, 1e-6, 1.0
"""Settings of AdamW without weight decay, at a constant rate. Some gradients are 0 up to rounding (a key's bias): the
larger `eps` keeps their steps small."""
CLASSES, WORDS, SEED = 4, 400, 7
TEACHER_LR = 1e-3


@dataclass(frozen=True)
class Size:
    """Sizes of the training."""

    samples: int
    batch: int
    steps: int
    words: int
    """Words of each text; a pair of texts has twice as many tokens, and three special ones."""
    teacher: tuple[int, int]
    """Width and layers."""
    student: tuple[int, int]
    teacher_steps: int = 40


TINY = Size(samples=512, batch=16, steps=150, words=6, teacher=(32, 2), student=(32, 1))
"""Size at which the loop's overhead dominates."""
SMALL = Size(samples=512, batch=32, steps=24, words=30, teacher=(256, 4), student=(192, 2), teacher_steps=10)
"""Size at which arithmetic dominates."""
SHORT = Size(samples=32, batch=8, steps=8, words=4, teacher=(16, 1), student=(16, 1))
"""Size for a smoke test."""


class Pairs(NamedTuple):
    """N pairs of texts and their labels: classes, or numbers."""

    first: list[str]
    second: list[str]
    labels: list[int] | list[float]

    def taken(self, order: list[int]) -> Pairs:
        """The samples at `order`, in that order."""
        return Pairs(*([column[index] for index in order] for column in self))


@dataclass(frozen=True)
class Ground:
    """Inputs of an engine; small enough to be sent to its process."""

    folder: Path
    objective: Objective
    size: Size

    @property
    def teacher(self) -> Path:
        """Folder of the teacher."""
        return self.folder / "teacher"

    @property
    def student(self) -> Path:
        """Folder of the student before its first step."""
        return self.folder / "student"

    @property
    def job(self) -> JobSpec:
        """The distillation as a job of this trainer."""
        return JobSpec.model_validate_json(json.dumps(_document(self.objective, self.size)))

    @property
    def inputs(self) -> dict[str, str]:
        """Paths of the job's references."""
        return {name: str(self.folder / name) for name in ("train.jsonl", "eval.jsonl", "teacher")}

    def samples(self) -> Pairs:
        """All training samples, in the order of their file."""
        rows = [json.loads(line) for line in (self.folder / "train.jsonl").read_text().splitlines()]
        return Pairs(*([row[name] for row in rows] for name in ("first", "second", "label")))

    def order(self) -> list[int]:
        """Indices of the samples in the order of the steps, one batch after the other."""
        batches = Batches(self._task().train, self.size.batch, SEED)
        return [int(number) for step in range(self.size.steps) for number in batches.at(step).index]

    def _task(self) -> Any:
        job, paths = self.job, {name: Path(path) for name, path in self.inputs.items()}
        return task_for(job.task).load(job, paths, {"teacher": read_teacher_config(self.teacher, "teacher")}, SEED)

    def lay_student(self) -> None:
        """Write the initial student of a job with this seed."""
        model = self._task().model
        _save(fresh_student(model, SEED), load_tokenizer(self.teacher, "teacher"), self.student)


def lay(folder: Path, objective: Objective, size: Size) -> Ground:
    """Create the ground in `folder`."""
    ground = Ground(folder, objective, size)
    folder.mkdir(parents=True, exist_ok=True)
    samples = invent(size, objective)
    for name, count in (("train", size.samples), ("eval", size.batch)):
        rows = zip(samples.first[:count], samples.second[:count], samples.labels[:count], strict=True)
        lines = (json.dumps({"first": first, "second": second, "label": label}) for first, second, label in rows)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    _lay_teacher(ground, samples)
    ground.lay_student()
    return ground


def invent(size: Size, objective: Objective) -> Pairs:
    """Pairs of synthetic sentences: half of each text is drawn from the words that its class prefers."""
    draw = np.random.default_rng(SEED)
    labels = np.arange(size.samples) % CLASSES
    own = WORDS // CLASSES

    def sentence(label: int) -> str:
        preferred = label * own + draw.integers(own, size=size.words // 2)
        any_word = draw.integers(WORDS, size=size.words - len(preferred))
        return " ".join(f"w{number}" for number in [*preferred, *any_word])

    first, second = ([sentence(label) for label in labels] for _ in range(2))
    numbers = labels.tolist() if objective == "kd" else [1.0 - 2.0 * (label % 2) for label in labels.tolist()]
    return Pairs(first, second, numbers)


def _lay_teacher(ground: Ground, samples: Pairs) -> None:
    """Train a teacher briefly, so that its outputs depend on the text."""
    size, texts = ground.size, TextSamples(samples.first, samples.second)
    tokenizer = train_tokenizer(WordPiece(vocabulary=WORDS + 64), texts)
    length = 2 * size.words + 3
    ids = tokenizer.encode(texts, length).ids
    sample = TextInput(length=length, vocabulary=tokenizer.vocabulary, pad=tokenizer.pad, separator=tokenizer.separator)
    answer: dict[str, Any] = {"classes": CLASSES} if ground.objective == "kd" else {"targets": 1}
    task: Any = "text-classification" if ground.objective == "kd" else "regression"
    network = Transformers(config=_bert(size.teacher, size))
    model = fresh_student(ModelConfig(task=task, architecture=network, input=sample, **answer), SEED + 1)
    targets = torch.tensor(samples.labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TEACHER_LR)
    for chosen in _rounds(size, size.teacher_steps):
        _distance(model(ids[chosen]), targets[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    _save(model, tokenizer, ground.teacher)


def _rounds(size: Size, steps: int) -> Iterator[Tensor]:
    """The first batches, in the order of the samples."""
    for step in range(steps):
        yield (step * size.batch + torch.arange(size.batch)) % size.samples


def _distance(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets) if targets.dtype == torch.int64 else F.mse_loss(outputs[:, 0], targets)


def _save(model: Model, tokenizer: TextTokenizer, folder: Path) -> None:
    folder.mkdir()
    save_model(model, folder)
    write_tokenizer(tokenizer, model.config, folder)


def _bert(shape: tuple[int, int], size: Size) -> dict[str, Any]:
    width, layers = shape
    return {
        "model_type": "bert",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 32),
        "intermediate_size": 4 * width,
        "max_position_embeddings": 2 * size.words + 8,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _document(objective: Objective, size: Size) -> dict[str, Any]:
    kd = [{"kind": "cross-entropy", "weight": 0.5}, {"kind": "kd", "temperature": TEMPERATURE, "weight": 0.5}]
    return {
        "task": "text-classification" if objective == "kd" else "regression",
        "data": {
            "format": "jsonl",
            "train": "train.jsonl",
            "eval": "eval.jsonl",
            "input_columns": ["first", "second"],
            "label_columns": ["label"],
            "max_length": 2 * size.words + 3,
        },
        "teacher": {"model": "teacher"},
        "student": {"architecture": "transformers", "config": _bert(size.student, size)},
        "recipe": {
            "losses": kd if objective == "kd" else [{"kind": "mse", "target": "teacher"}],
            "optimizer": {"kind": "adamw", "lr": LR, "eps": EPS, "weight_decay": 0.0},
            "epochs": -(-size.steps * size.batch // size.samples),
            "max_steps": size.steps,
            "batch_size": size.batch,
            "clip_norm": CLIP,
        },
        "evaluation": {"every_epochs": 100_000},
        "export": ["safetensors"],
        "seed": SEED,
    }
