"""A small job for every kind of loss: what the tests that walk the contract run, in a process or over HTTP.

Images are 8 x 8 and grey; classes are told apart, labels given, or three points found. All teachers and students of
images are a `wide-resnet` or a `vit` of the smallest size; those of pairs of texts are a `bert` with half the teacher's
width, those of continued texts a `gpt2` whose teacher reads other tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import TypeAdapter

from app.recipe.data.tokenizers import BytePairs, WordPiece
from app.recipe.losses import LOSSES, BinaryLoss, LossSpec
from app.recipe.losses.embeddings import PairTerm
from app.recipe.methods import Method
from app.recipe.students.architectures import Transformers, Vit, WideResNet
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing, TargetScaling, TextInput
from app.recipe.students.pooling import Embedding
from app.recipe.tasks import TASKS, TaskName, tasks_for
from worker.data.formats.columns import TextSamples
from worker.data.tokens import train_tokenizer, train_writer
from worker.students.hugging_face_folder import write_tokenizer
from worker.students.model import Model
from worker.students.weights import save_model

SIDE, CLASSES, LABELS, POINTS, SAMPLES, IDENTITIES = 8, 10, 5, 3, 30, 5
WORDS = ["red", "blue", "old", "new", "big", "cat", "dog", "tree", "house", "runs", "sleeps"]
DATA = {
    "image-classification": "classes",
    "multi-label-classification": "labels",
    "keypoints": "points",
    "embedding": "pairs",
    "image-embedding": "many",
    "self-supervised": "many",
    "anomaly-detection": "anomalies",
    "causal-lm": "lines",
}
"""Name of each task's file."""
METHOD_OF: TypeAdapter[Any] = TypeAdapter(Method)
EXAMPLES = Path(__file__).parents[1] / "examples"

Document = dict[str, Any]
CNN: Document = {"architecture": "wide-resnet", "depth": 10}
VIT: Document = {"architecture": "vit", "patch_size": 4, "width": 8, "depth": 1, "heads": 2}
INP_FORMER: Document = {
    **{"architecture": "inp-former", "model": "vit", "layers": [["blocks.0"], ["blocks.1"]]},
    **{"prototypes": 2, "heads": 2, "map_size": 4},
}
BERT: Document = {
    **{"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 8, "max_position_embeddings": 16},
}
VIEWS: Document = {
    "train": DATA["self-supervised"],
    "augment": [{"kind": kind} for kind in ("resized-crop", "flip", "color-jitter", "grayscale", "blur")],
}
"""Images whose two views differ."""
MASKED: Document = {"train": DATA["anomaly-detection"], "mask_key": "mask"}
"""Normal images, and anomalous ones with their masks."""
DIAGNOSED: dict[str, Document] = {
    "calibration": {"bins": 3},
    "decision-boundary": {"alpha": 30.0},
    "mahalanobis": {"data": "classes"},
    "hessian": {"samples": 20, "lanczos_steps": 5, "steps": 5},
    "loss-landscape": {"samples": 20, "points": 3},
}
"""What kinds of diagnostic are told, of which a small job has few samples for; all others do with their defaults."""
BINARY: Document = {"train": "two-classes", "classes": 2}
"""Images of two classes."""
TWO_IMAGES: Document = {"train": "two-images", "second_key": "other"}
"""Pairs of images of one class or of two."""
QUANTISED: dict[str, Document] = {
    "qat": {"architecture": "cifar-resnet", "depth": 8, "width": 2},
    "shift-quant": {"architecture": "mlp", "hidden": [8]},
    "binary": {"architecture": "mlp", "hidden": [8, 8]},
}
"""Students by their quantisation."""
QUANTISED = {kind: {**student, "quantise": {"kind": kind}} for kind, student in QUANTISED.items()}
SVM: Document = {**CNN, "head": {"kind": "svm"}}
ENCODER: Document = {"architecture": "transformers", "config": BERT}
GPT2: Document = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 32}
DECODER: Document = {"architecture": "transformers", "config": GPT2}
LINES: Document = {
    **{"train": DATA["causal-lm"], "format": "csv", "input_columns": ["line"], "max_length": 8},
    "tokenizer": {"kind": "bpe", "vocabulary": 512, "lowercase": False},
}
"""Texts whose student reads them in tokens of its own."""
PAIRS: Document = {
    **{"train": DATA["embedding"], "format": "csv", "input_columns": ["one", "other"], "label_columns": ["score"]},
    "max_length": 8,
}
LISTS: Document = {
    **{
        "train": "lists",
        "format": "jsonl",
        "input_columns": ["query"],
        "candidate_columns": ["positives", "negatives"],
    },
    **{"label_columns": ["scores"], "max_length": 8},
}
"""Queries with candidates, in lists of several lengths."""
LAST: Document = {"teacher": "stages.2", "student": "stages.2"}
NORMS: list[Document] = [{"teacher": path, "student": path} for path in ("stages.1.0.norm1", "stages.2.0.norm1")]
ATTENTION: Document = {"qkv": "blocks.0.attention.qkv"}
QKV: Document = {
    name: f"encoder.layer.1.attention.self.{part}"
    for name, part in (("queries", "query"), ("keys", "key"), ("values", "value"))
}
RELATION: Document = {"kind": "attention-relation", "relation_heads": 2, "layer": {"teacher": QKV, "student": QKV}}
"""Relations in the second layer of two encoders of texts."""
SETTINGS: dict[str, Document] = {
    "kd-rel": {"parents": [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]},
    "uskd": {"feature": "stages.1"},
    "hint": {"pairs": [{"teacher": "stages.1", "student": "stages.1"}, LAST]},
    "rkd": {"pair": LAST},
    "pkd": {"pairs": [LAST]},
    "attention-relation": {"layer": {"teacher": ATTENTION, "student": ATTENTION}, "relation_heads": 2},
    "overhaul": {"pairs": NORMS},
    "activation-boundary": {"pairs": NORMS},
    "lipschitz": {"pairs": NORMS},
    "mi-alpha": {"pair": LAST, "hidden": 8, "embedding": 4},
    "feature-autoencoder": {"tap": "stages.2"},
    "inheritance-exploration": {"pair": LAST},
    "inp-former": {"pairs": [LAST]},
    "cfcd-local": {"feature": "stages.1"},
    "mse": {"target": "teacher"},
    "smooth-l1": {"target": "teacher", "beta": 0.1},
    "wing": {"target": "teacher"},
    "assistive": {"tolerant": "tolerant", "tough": "tough"},
    "pair-score": {"highest": 4.0},
    "l2-svm": {"c": 10.0},
    "aldr": {"kl_weight": 2.0},
    "anyloss": {"metric": "balanced-accuracy", "amplification": 10.0},
    "ensloss": {"period": 1},
}
"""What a kind must or should be told; all others do with their defaults."""
KINDS: list[str] = [term.model_fields["kind"].default for term in LOSSES]


def term(kind: str) -> Document:
    """A loss of this kind."""
    return {"kind": kind, **SETTINGS.get(kind, {})}


def job_of(kind: str) -> Document:
    """A job that learns by a loss of this kind, in a stage before the main training and beside the labels in it."""
    found: type[LossSpec] = next(one for one in LOSSES if one.model_fields["kind"].default == kind)
    task = task_of(found)
    own = {
        "multi-label-classification": {"kind": "binary-cross-entropy"},
        "keypoints": {"kind": "mse"},
        "embedding": term("unime" if needs_lists(found) else "pair-score"),
        "image-embedding": {"kind": "normface"},
        "self-supervised": {"kind": "ntxent"},
        "anomaly-detection": term(kind),  # alone, since the other one compares whole batches
    }
    labels = own.get(task, {"kind": "cross-entropy"})
    stage: Document = {"epochs": 1, "losses": [term(kind)]}
    if kind in ("feature-autoencoder", "inheritance-exploration"):
        stage = {"epochs": 1, "losses": [term("feature-autoencoder")], "trains": "terms"}
    recipe = {"stages": [stage], "losses": [labels, *([term(kind)] if term(kind) != labels else [])]}
    usual = {"embedding": ENCODER, "causal-lm": DECODER, "anomaly-detection": INP_FORMER}.get(task, CNN)
    more: Document = {}
    if issubclass(found, BinaryLoss):
        more["data"] = BINARY
    elif needs_lists(found):
        more["data"] = LISTS
    return small_job(recipe, {"attention-relation": VIT, "l2-svm": SVM}.get(kind, usual), task, **more)


def needs_lists(kind: type[LossSpec]) -> bool:
    """Whether a kind of loss is for queries with candidates."""
    return issubclass(kind, PairTerm) and kind.needs_lists


def task_of(kind: type[LossSpec]) -> TaskName:
    """A task that a kind of loss is for."""
    fitting = tasks_for(kind)
    usual: tuple[TaskName, ...] = ("image-classification", "multi-label-classification", "keypoints", "embedding")
    others: tuple[TaskName, ...] = ("image-embedding", "self-supervised", "anomaly-detection", "causal-lm")
    return next(task for task in (*usual, *others) if task in fitting)


def couples(kind: type[LossSpec]) -> bool:
    """Whether a kind of loss couples the rows of a batch in its job."""
    return kind.couples(TASKS[task_of(kind)].answers)


def small_job(
    recipe: Document, student: Document = CNN, task: TaskName = "image-classification", **more: Any
) -> Document:
    """A job of 6 steps after its stages, of 3 steps an epoch; its teachers are those that its losses or method want."""
    recipe = {"epochs": 2, "batch_size": 8, **recipe}
    data: Document = (
        more.pop("data", None)
        or {"embedding": PAIRS, "self-supervised": VIEWS, "anomaly-detection": MASKED, "causal-lm": LINES}.get(task)
        or {"train": DATA[task]}
    )
    if task == "image-classification":
        data = {"classes": CLASSES, **data}
    base = {"task": task, "data": data, "student": student, "export": ["safetensors"], "seed": 3}
    taught = {} if {"teacher", "teachers"} & more.keys() else _teachers(recipe, student, task)
    return base | {"recipe": recipe} | taught | more


def methods() -> dict[str, Document]:
    """The recipes of `examples/methods.yaml`."""
    return dict(yaml.safe_load((EXAMPLES / "methods.yaml").read_text(encoding="utf-8")))


def _teachers(recipe: Document, student: Document, task: TaskName) -> Document:
    losses = [loss for stage in [*recipe.get("stages", ()), recipe] for loss in stage.get("losses", ())]
    if any(loss["kind"] == "assistive" for loss in losses):
        return {"teachers": [{"model": name, "name": name} for name in ("tough", "tolerant")]}
    kinds = {one.model_fields["kind"].default: one for one in LOSSES}
    terms = [kinds[loss["kind"]].model_validate(loss) for loss in losses]
    method = METHOD_OF.validate_python(recipe.get("method", {"kind": "supervised"}))
    if not any(one.needs_teacher for one in terms) and not method.learns_from_teacher:
        return {}
    named = {
        "multi-label-classification": "tagger",
        "keypoints": "tough",
        "embedding": "encoder",
        "image-embedding": "eye",
        "self-supervised": "eye",
        "causal-lm": "writer",
    }
    return {"teacher": {"model": "vit" if student == VIT else named.get(task, "cnn")}}


def write_data(folder: Path) -> None:
    """The files of all tasks: patterns in noise, points in it, and pairs of texts that share some of their words."""
    random = np.random.default_rng(0)
    labels = np.arange(SAMPLES) % CLASSES
    images = random.integers(60, 196, (CLASSES, SIDE, SIDE))[labels] + random.integers(-40, 40, (SAMPLES, SIDE, SIDE))
    np.savez(folder / f"{DATA['image-classification']}.npz", x=images.astype(np.uint8), y=labels)
    np.savez(folder / f"{BINARY['train']}.npz", x=images.astype(np.uint8), y=labels % 2)
    given = (np.arange(SAMPLES)[:, None] % np.arange(2, 2 + LABELS) == 0).astype(np.uint8)
    np.savez(folder / f"{DATA['multi-label-classification']}.npz", x=images.astype(np.uint8), y=given)
    points = random.random((SAMPLES, POINTS, 2), dtype=np.float32)
    np.savez(folder / f"{DATA['keypoints']}.npz", x=images.astype(np.uint8), y=points)
    several = np.arange(SAMPLES) % IDENTITIES
    np.savez(folder / f"{DATA['image-embedding']}.npz", x=images.astype(np.uint8), y=several)
    one = np.arange(SAMPLES)
    other = (one + CLASSES + one % 2) % SAMPLES
    same = (labels[one] == labels[other]).astype(int)
    np.savez(
        folder / f"{TWO_IMAGES['train']}.npz", x=images.astype(np.uint8), other=images[other].astype(np.uint8), y=same
    )
    marked = np.zeros((SAMPLES, SIDE, SIDE), np.uint8)
    marked[::6, 2:5, 2:5] = 1
    plain = np.where(marked, 255, random.integers(60, 100, (SAMPLES, SIDE, SIDE))).astype(np.uint8)
    np.savez(folder / f"{DATA['anomaly-detection']}.npz", x=plain, y=marked.any((1, 2)).astype(int), mask=marked)
    lines = ["one,other,score", *(f"{one},{other},{score}" for one, other, score in pairs())]
    (folder / DATA["embedding"]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "lists").write_text("".join(f"{json.dumps(row)}\n" for row in lists()), encoding="utf-8")
    (folder / DATA["causal-lm"]).write_text(
        "\n".join(["line", *(one for one, _, _ in pairs())]) + "\n", encoding="utf-8"
    )


def lists() -> list[Document]:
    """Queries of four words, with one or two texts that share most of them, up to three others, and scores of all."""
    random, made = np.random.default_rng(1), []
    for index, (query, other, _) in enumerate(pairs()):
        words = query.split()
        positives = [" ".join([*words[:3], str(random.choice(WORDS))]) for _ in range(1 + index % 2)]
        negatives = [" ".join(map(str, random.permutation(other.split()))) for _ in range(index % 4)]
        scores = [0.9 - 0.1 * place for place in range(len(positives))] + [0.2] * len(negatives)
        made.append({"query": query, "positives": positives, "negatives": negatives, "scores": scores})
    return made


def pairs() -> list[tuple[str, str, int]]:
    """Two texts of four words, and how many of them they share in the same places."""
    random, made = np.random.default_rng(0), []
    for index in range(SAMPLES):
        one, other = ([str(word) for word in random.choice(WORDS, 4, replace=False)] for _ in range(2))
        shared = one[: index % 5] + other[index % 5 :]
        made.append((" ".join(one), " ".join(shared), sum(a == b for a, b in zip(one, shared, strict=True))))
    return made


def write_teachers(folder: Path) -> None:
    """Models with random weights: of classes `cnn`, `other` and `vit`, of labels `tagger`, of points `tough` and
    `tolerant`, of vectors `encoder` and, of images, `eye`, of continued texts `writer`."""
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
        "tagger": _described(WideResNet(depth=10), task="multi-label-classification", classes=LABELS),
        "tough": _described(WideResNet(depth=10), **points),
        "tolerant": _described(WideResNet(depth=10), **points),
        "eye": _described(WideResNet(depth=10), task="image-embedding", targets=4, embedding=Embedding()),
    }
    for seed, (name, config) in enumerate(made.items()):
        torch.manual_seed(seed)
        (folder / name).mkdir()
        save_model(Model(config), folder / name)
    write_encoder(folder / "encoder")
    write_writer(folder / "writer")


def write_encoder(folder: Path, embedding: Embedding = Embedding(normalise=True), **settings: Any) -> None:
    """A sentence encoder with random weights and its tokenizer; `settings` are further ones of the network."""
    tokenizer = train_tokenizer(WordPiece(vocabulary=100), TextSamples(WORDS))
    sizes = {**BERT, "hidden_size": 16, "num_hidden_layers": 2, **settings}
    config = ModelConfig(
        task="embedding",
        architecture=Transformers(config=sizes),
        input=TextInput(length=16, vocabulary=tokenizer.vocabulary, pad=tokenizer.pad, separator=tokenizer.separator),
        targets=sizes["hidden_size"],
        embedding=embedding,
    )
    folder.mkdir()
    torch.manual_seed(0)
    save_model(Model(config), folder)
    write_tokenizer(tokenizer, config, folder)


def write_writer(folder: Path) -> None:
    """A language model with random weights, whose tokenizer knows half of the words."""
    tokenizer = train_writer(BytePairs(vocabulary=512, lowercase=False), WORDS[::2])
    config = ModelConfig(
        task="causal-lm",
        architecture=Transformers(config={**GPT2, "n_embd": 16}),
        input=TextInput(length=32, vocabulary=tokenizer.vocabulary, pad=tokenizer.end or 0),
    )
    folder.mkdir()
    torch.manual_seed(0)
    save_model(Model(config), folder)
    write_tokenizer(tokenizer, config, folder)


def _described(student: Any, **answer: Any) -> ModelConfig:
    return ModelConfig(
        architecture=student,
        input=ImageInput(channels=1, height=SIDE, width=SIDE),
        preprocessing=Preprocessing(scale=1 / 255, mean=[0.5], std=[0.3]),
        **answer,
    )
