"""A small job for every kind of loss: what the tests that walk the contract run, in a process or over HTTP.

Images are 8 x 8 and grey; classes are told apart, or three points found. All teachers and students of images are a
`wide-resnet` or a `vit` of the smallest size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from app.recipe.losses import LOSSES, LossTerm
from app.recipe.model import ImageInput, ModelConfig, Preprocessing, TargetScaling
from app.recipe.students import Vit, WideResNet
from app.recipe.task import NUMBERS, Task
from worker.students.model import Model
from worker.students.weights import save_model

SIDE, CLASSES, POINTS, SAMPLES = 8, 10, 3, 30
DATA = {"image-classification": "classes", "keypoints": "points"}
"""Name of each task's file."""
EXAMPLES = Path(__file__).parents[1] / "examples"

Document = dict[str, Any]
CNN: Document = {"architecture": "wide-resnet", "depth": 10}
VIT: Document = {"architecture": "vit", "patch_size": 4, "width": 8, "depth": 1, "heads": 2}
LAST: Document = {"teacher": "stages.2", "student": "stages.2"}
NORMS: list[Document] = [{"teacher": path, "student": path} for path in ("stages.1.0.norm1", "stages.2.0.norm1")]
ATTENTION: Document = {"qkv": "blocks.0.attention.qkv"}
SETTINGS: dict[str, Document] = {
    "kd-rel": {"parents": [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]},
    "uskd": {"feature": "stages.1"},
    "hint": {"pairs": [{"teacher": "stages.1", "student": "stages.1"}, LAST]},
    "rkd": {"pair": LAST},
    "attention-relation": {"layer": {"teacher": ATTENTION, "student": ATTENTION}, "relation_heads": 2},
    "overhaul": {"pairs": NORMS},
    "activation-boundary": {"pairs": NORMS},
    "lipschitz": {"pairs": NORMS},
    "mi-alpha": {"pair": LAST, "hidden": 8, "embedding": 4},
    "feature-autoencoder": {"tap": "stages.2"},
    "inheritance-exploration": {"pair": LAST},
    "mse": {"target": "teacher"},
    "smooth-l1": {"target": "teacher", "beta": 0.1},
    "wing": {"target": "teacher"},
    "assistive": {"tolerant": "tolerant", "tough": "tough"},
}
"""What a kind must or should be told; all others do with their defaults."""
KINDS: list[str] = [term.model_fields["kind"].default for term in LOSSES]


def term(kind: str) -> Document:
    """A loss of this kind."""
    return {"kind": kind, **SETTINGS.get(kind, {})}


def job_of(kind: str) -> Document:
    """A job that learns by a loss of this kind, in a stage before the main training and beside the labels in it."""
    found: type[LossTerm] = next(one for one in LOSSES if one.model_fields["kind"].default == kind)
    task: Task = "keypoints" if all(task in NUMBERS for task in found.tasks) else "image-classification"
    labels = {"kind": "mse" if task == "keypoints" else "cross-entropy"}
    stage: Document = {"epochs": 1, "losses": [term(kind)]}
    if kind in ("feature-autoencoder", "inheritance-exploration"):
        stage = {"epochs": 1, "losses": [term("feature-autoencoder")], "trains": "terms"}
    recipe = {"stages": [stage], "losses": [labels, *([term(kind)] if term(kind) != labels else [])]}
    return small_job(recipe, VIT if kind == "attention-relation" else CNN, task)


def small_job(recipe: Document, student: Document = CNN, task: Task = "image-classification", **more: Any) -> Document:
    """A job of 6 steps after its stages, of 3 steps an epoch; its teachers are those that its losses want."""
    recipe = {"epochs": 2, "batch_size": 8, **recipe}
    data: Document = more.pop("data", None) or {"train": DATA[task]}
    if task == "image-classification":
        data = {"classes": CLASSES, **data}
    base = {"task": task, "data": data, "student": student, "export": ["safetensors"], "seed": 3}
    taught = {} if {"teacher", "teachers"} & more.keys() else _teachers(recipe, student, task)
    return base | {"recipe": recipe} | taught | more


def methods() -> dict[str, Document]:
    """The recipes of `examples/methods.yaml`."""
    return dict(yaml.safe_load((EXAMPLES / "methods.yaml").read_text(encoding="utf-8")))


def _teachers(recipe: Document, student: Document, task: Task) -> Document:
    losses = [loss for stage in [*recipe.get("stages", ()), recipe] for loss in stage["losses"]]
    if any(loss["kind"] == "assistive" for loss in losses):
        return {"teachers": [{"model": name, "name": name} for name in ("tough", "tolerant")]}
    kinds = {one.model_fields["kind"].default: one for one in LOSSES}
    terms = [kinds[loss["kind"]].model_validate(loss) for loss in losses]
    if not any(one.needs_teacher for one in terms):
        return {}
    return {"teacher": {"model": "vit" if student == VIT else "cnn" if task != "keypoints" else "tough"}}


def write_data(folder: Path) -> None:
    """The files of both tasks: patterns in noise, and points somewhere on black."""
    random = np.random.default_rng(0)
    labels = np.arange(SAMPLES) % CLASSES
    images = random.integers(60, 196, (CLASSES, SIDE, SIDE))[labels] + random.integers(-40, 40, (SAMPLES, SIDE, SIDE))
    np.savez(folder / f"{DATA['image-classification']}.npz", x=images.astype(np.uint8), y=labels)
    points = random.random((SAMPLES, POINTS, 2), dtype=np.float32)
    np.savez(folder / f"{DATA['keypoints']}.npz", x=images.astype(np.uint8), y=points)


def write_teachers(folder: Path) -> None:
    """Models with random weights: of classes `cnn`, `other` and `vit`, of points `tough` and `tolerant`."""
    classes: Document = {"classes": CLASSES}
    points: Document = {
        "task": "keypoints",
        "targets": 2 * POINTS,
        "target_scaling": TargetScaling(mean=[0.5] * 2 * POINTS, std=[0.3] * 2 * POINTS),
    }
    made = {
        "cnn": _described(WideResNet(depth=10), **classes),
        "other": _described(WideResNet(depth=10, widen=2), **classes),
        "vit": _described(Vit(patch_size=4, width=16, depth=2, heads=2), **classes),
        "tough": _described(WideResNet(depth=10), **points),
        "tolerant": _described(WideResNet(depth=10), **points),
    }
    for seed, (name, config) in enumerate(made.items()):
        torch.manual_seed(seed)
        (folder / name).mkdir()
        save_model(Model(config), folder / name)


def _described(student: Any, **answer: Any) -> ModelConfig:
    return ModelConfig(
        architecture=student,
        input=ImageInput(channels=1, height=SIDE, width=SIDE),
        preprocessing=Preprocessing(scale=1 / 255, mean=[0.5], std=[0.3]),
        **answer,
    )
