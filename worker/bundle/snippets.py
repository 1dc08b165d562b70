"""Programs for a model card: each loads one file of the bundle in its folder, without this project, and prints outputs.

They run without changes, on samples that they create: raw pixels, rows of a table, or texts.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import NamedTuple

from app.recipe.job import JobSpec
from app.recipe.report import INT8, INTEGER, ONNX, PROGRAM, SPIKING
from app.recipe.students.architectures import Timm, opens_in_a_library
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing, TextInput
from worker.bundle import integer_reader, spiking_reader
from worker.students.weights import WEIGHTS
from worker.tasks.card import TaskCard

LABELS = "id2label"
"""Key of a graph's metadata, and stem of the name of a program's extra file, for the names of the classes as JSON."""
LABELS_FILE = f"{LABELS}.json"


TYPES = re.compile(r": (?:Any|Array|int|list\[Array\])(?=[,)])| -> .*(?=:$)", re.MULTILINE)
"""Annotations of the functions that read files with NumPy, which a program does without."""
Writer = Callable[[TaskCard, JobSpec, ModelConfig], str]


class Snippet(NamedTuple):
    """A program, and the file that it loads."""

    file: str
    code: str


def snippets(card: TaskCard, job: JobSpec, config: ModelConfig, files: list[str]) -> list[Snippet]:
    """A program for each of the bundle's `files` that can be loaded, in this order."""
    writers: dict[str, Writer] = {WEIGHTS: _weights, PROGRAM: _program}
    writers |= {name: _session(name) for name in (ONNX, INT8)}
    writers |= {INTEGER: _integers, SPIKING: _spikes}
    return [Snippet(name, writers[name](card, job, config)) for name in files if name in writers]


def _weights(card: TaskCard, job: JobSpec, config: ModelConfig) -> str:
    """A program that loads the folder with its library; for the zoo it lists the tensors by name."""
    if card.weights_program is not None:
        return card.weights_program
    if isinstance(config.architecture, Timm):
        return _timm(card, job, config)
    if not opens_in_a_library(config.architecture):
        return TENSORS
    kind = card.auto_class(config)
    head = f"from transformers import {kind}" + (", AutoTokenizer" if _reads_text(config) else "")
    arguments = "**samples" if _reads_text(config) else "samples"
    lines = [
        *("import torch", head, ""),
        f'model = {kind}.from_pretrained(".").eval()',
        *_samples(card, job, config, "torch"),
        *_prepared(config),
        "with torch.no_grad():",
        f"    {output_name(config)} = model({arguments}).logits",
        *_rescaled(config),
        *_printed(card, config, "torch", "model.config.id2label[int(number)]"),
    ]
    return "\n".join(lines)


def _timm(card: TaskCard, job: JobSpec, config: ModelConfig) -> str:
    lines = [
        *("import torch", "import timm", ""),
        'model = timm.create_model("local-dir:.", pretrained=True).eval()',
        *_samples(card, job, config, "torch"),
        *_prepared(config),
        "with torch.no_grad():",
        f"    {output_name(config)} = model(samples)",
        *_rescaled(config),
        *_printed(card, config, "torch", _NAMED if config.class_names else "str(int(number))"),
    ]
    return "\n".join(lines)


_NAMED = 'model.pretrained_cfg["label_names"][int(number)]'


def _session(file: str) -> Writer:
    def write(card: TaskCard, job: JobSpec, config: ModelConfig) -> str:
        named = config.classes is not None
        lines = [
            *(["import json", ""] if named else []),
            *("import numpy as np", "import onnxruntime", *_reader(config), ""),
            f'session = onnxruntime.InferenceSession("{file}")',
            *_samples(card, job, config, "np"),
            f'({output_name(config)},) = session.run(None, {{"{config.input.key}": samples}})',
            *([f'names = json.loads(session.get_modelmeta().custom_metadata_map["{LABELS}"])'] if named else []),
            *_printed(card, config, "np", "names[str(number)]"),
        ]
        return "\n".join(lines)

    return write


def _integers(card: TaskCard, job: JobSpec, config: ModelConfig) -> str:
    call = f"{output_name(config)} = predict(file, samples)"
    return _numpy_program(card, job, config, INTEGER, call, integer_reader.predict)


def _spikes(card: TaskCard, job: JobSpec, config: ModelConfig) -> str:
    call = f'{output_name(config)}, spikes = predict(file, samples, int(file["steps"]))'
    parts = (spiking_reader.simulate, spiking_reader.read_weights, spiking_reader.predict)
    return _numpy_program(card, job, config, SPIKING, call, *parts)


def _numpy_program(
    card: TaskCard, job: JobSpec, config: ModelConfig, file: str, call: str, *functions: Callable[..., object]
) -> str:
    """A program of the functions with which this project itself reads the file, which need nothing but NumPy."""
    sources = [TYPES.sub("", inspect.getsource(function)) for function in functions]
    lines = [
        "import numpy as np",
        *(f"\n\n{source}" for source in sources),
        f'\nfile = dict(np.load("{file}"))',
        *_samples(card, job, config, "np"),
        call,
        *_printed(card, config, "np", "str(number)"),
    ]
    return "\n".join(lines)


def _program(card: TaskCard, job: JobSpec, config: ModelConfig) -> str:
    named = config.classes is not None
    extra = ", extra_files=extra" if named else ""
    lines = [
        *(["import json", ""] if named else []),
        *("import torch", *_reader(config), ""),
        *([f'extra = {{"{LABELS_FILE}": ""}}'] if named else []),
        f'model = torch.export.load("{PROGRAM}"{extra}).module()',
        *_samples(card, job, config, "graph"),
        "with torch.no_grad():",
        f"    {output_name(config)} = model(samples)",
        *([f'names = json.loads(extra["{LABELS_FILE}"])'] if named else []),
        *_printed(card, config, "torch", "names[str(int(number))]"),
    ]
    return "\n".join(lines)


def _reads_text(config: ModelConfig) -> bool:
    return isinstance(config.input, TextInput)


def _reader(config: ModelConfig) -> list[str]:
    return ["from transformers import AutoTokenizer"] if _reads_text(config) else []


def output_name(config: ModelConfig) -> str:
    """Name of a graph's output."""
    if config.embedding is not None:
        return "embeddings"
    return "logits" if config.gives_logits else "outputs"


def _samples(card: TaskCard, job: JobSpec, config: ModelConfig, kind: str) -> list[str]:
    """Lines that create samples: `np` arrays, inputs of a library (`torch`), or tensors for a `graph`."""
    sample, arrays = config.input, kind == "np"
    if isinstance(sample, TextInput):
        return _texts(card, job, sample, kind)
    shape = ", ".join(map(str, (2, *sample.axes)))
    if isinstance(sample, ImageInput):
        comment = f"  # raw pixels, as in the file: {'0 to 255, ' if _bytes(config) else ''}N x C x H x W"
    else:
        comment = f"  # rows of raw numbers{_columns(job)}"
    code = f"np.zeros(({shape}), np.float32)" if arrays else f"torch.zeros({shape})"
    return [f"samples = {code}{comment}"]


def _bytes(config: ModelConfig) -> bool:
    return config.preprocessing is not None and config.preprocessing.scale < 0.01


def _columns(job: JobSpec) -> str:
    columns = getattr(job.data, "input_columns", None)
    return f": {', '.join(map(_on_a_line, columns))}" if columns and len(columns) <= 32 else ""


def _on_a_line(name: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in name)


def _texts(card: TaskCard, job: JobSpec, sample: TextInput, kind: str) -> list[str]:
    texts, options = card.example_texts(job, sample)
    tensors = "np" if kind == "np" else "pt"
    lines = ['tokenizer = AutoTokenizer.from_pretrained(".")']
    lines.append(f'samples = tokenizer({texts}, {options}, return_tensors="{tensors}")')
    if kind == "np":
        lines.append('samples = samples["input_ids"].astype(np.int64)')
    elif kind == "graph":
        lines.append('samples = samples["input_ids"]')
    return lines


def _prepared(config: ModelConfig) -> list[str]:
    """Lines of preprocessing, which is part of a graph and not of a library's network."""
    if _reads_text(config) or config.preprocessing is None:
        return []
    scaling: Preprocessing = config.preprocessing
    return [
        f"mean, std = torch.tensor({scaling.mean}), torch.tensor({scaling.std})",
        f"samples = (samples * {scaling.scale!r} - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)",
    ]


def _rescaled(config: ModelConfig) -> list[str]:
    """Lines of what follows a library's network, and is part of a graph."""
    if config.embedding is not None and config.embedding.normalise:
        return ["embeddings = torch.nn.functional.normalize(embeddings, dim=-1)"]
    if config.target_scaling is None:
        return []
    scaling = config.target_scaling
    line = f"outputs = outputs * torch.tensor({scaling.std}) + torch.tensor({scaling.mean})"
    return [f"{line}  # in the units of the data"]


def _printed(card: TaskCard, config: ModelConfig, kind: str, label: str) -> list[str]:
    """Lines that print the meaning of the outputs."""
    return [card.printed(output_name(config), "-1" if kind == "np" else "dim=-1", label)]


TENSORS = f"""from safetensors.torch import load_file

for name, tensor in load_file("{WEIGHTS}").items():
    print(name, tuple(tensor.shape))"""
