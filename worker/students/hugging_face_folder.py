"""The files of a model in the layout of the Transformers library and its hub, without the weights.

`config.json` has the network and the names of the classes, `preprocessor_config.json` the preprocessing of images,
`tokenizer.json` (or a plain vocabulary) and `tokenizer_config.json` the tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from app.recipe.students.architectures import DualEncoder, Transformers
from app.recipe.students.hugging_face import DOCUMENTS, SET_FROM_THE_JOB, parse_object, refuse_code
from app.recipe.students.model import DESCRIPTIONS, MAX_LENGTH, ImageInput, Input, ModelConfig, Preprocessing, TextInput
from app.recipe.tasks import TASKS, TaskName, task_of
from worker.data.formats.columns import CLASS_NAME, is_class_name
from worker.data.formats.faults import shown
from worker.data.library_tokenizers import SETTINGS
from worker.data.tokens import TextTokenizer, load_tokenizer
from worker.students.faults import InvalidModel
from worker.students.hugging_face import counts_from_padding, first_position, has_segments
from worker.students.sentence_folder import is_encoder, longest_text, read_embedding
from worker.transformers_library import library, width_of

PREPROCESSOR = "preprocessor_config.json"
ONE_CLASS = "single_label_classification"
"""The library's default for a head whose configuration has no problem type."""
LONGEST = 512
"""Tokens of a text if the model would take more, or has no limit."""
_ONE_SIZE = frozenset(
    {"beit", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "hiera", "pvt", "vit", "vit_msn"}
)
"""Networks with an embedding for each position in the image."""
BILINEAR = 2
"""Number of the resampling in the Pillow library."""


def describe(config: dict[str, Any], folder: Path) -> ModelConfig:
    """The description of the model in `folder`, from its `config.json` and the files beside it.

    Raises InvalidModel, or ValueError for an invalid configuration.
    """
    network = Transformers(config={key: value for key, value in config.items() if key not in SET_FROM_THE_JOB})
    defaults = library().AutoConfig.for_model(network.model_type).to_dict()
    settings = {**defaults, **config}
    if counts_from_padding(network.model_type):
        network = Transformers(config={**network.config, "pad_token_id": settings["pad_token_id"]})
    if is_encoder(folder):
        return _encoder(network, settings, folder)
    if network.decodes:
        return ModelConfig(task="causal-lm", architecture=network, input=_running_text(settings, folder))
    classes, names = _classes(config)
    task, silent = _task(config, network, classes), not (config.get("problem_type") or _classifies_tokens(config))
    outputs: dict[str, Any] = {"classes": classes, "class_names": names, "task_assumed": silent}
    if task_of(task).sized_by == "targets":
        outputs = {"targets": classes}
    sample, preprocessing = _images(settings, folder) if network.reads == "images" else (_texts(settings, folder), None)
    return ModelConfig(task=task, architecture=network, input=sample, preprocessing=preprocessing, **outputs)


def _classifies_tokens(config: dict[str, Any]) -> bool:
    """Whether the stored network classifies tokens, by the name of its class."""
    kinds = config.get("architectures")
    return isinstance(kinds, list) and any(str(kind).endswith("ForTokenClassification") for kind in kinds)


def _task(config: dict[str, Any], network: Transformers, classes: int) -> TaskName:
    """The first task with the configuration's problem type; without one, classification for several classes and
    regression for a single one."""
    if _classifies_tokens(config):
        return next(name for name in get_args(TaskName) if task_of(name).per_token)
    problem = config.get("problem_type") or ONE_CLASS
    problem = "regression" if classes == 1 and problem == ONE_CLASS else problem
    for name in get_args(TaskName):
        if task_of(name).problem_type == problem and network.reads in task_of(name).reads:
            return name  # type: ignore[no-any-return]
    known = ", ".join(sorted({str(task.problem_type) for task in TASKS.values() if task.problem_type}))
    raise InvalidModel(f"config.json: problem_type is {shown(problem)}; accepted: {known}")


def _encoder(network: Transformers, settings: dict[str, Any], folder: Path) -> ModelConfig:
    """A folder of the library sentence-transformers."""
    if network.reads != "texts":
        raise InvalidModel(f"config.json: {network.model_type} reads {network.reads}; accepted: an encoder of texts")
    texts, longest = _texts(settings, folder), longest_text(folder)
    return ModelConfig(
        task="embedding",
        architecture=network,
        input=texts if longest is None else texts.model_copy(update={"length": min(longest, texts.length)}),
        targets=width_of(network),
        embedding=read_embedding(folder),
    )


def write_preprocessing(config: ModelConfig, folder: Path) -> None:
    """Write `preprocessor_config.json` for a model of images; the preprocessing of texts is in the tokenizer's
    files."""
    if not isinstance(config.input, ImageInput) or config.preprocessing is None:
        return
    document = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": config.input.height, "width": config.input.width},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": config.preprocessing.scale,
        "do_normalize": True,
        "image_mean": config.preprocessing.mean,
        "image_std": config.preprocessing.std,
    }
    (folder / PREPROCESSOR).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _classes(config: dict[str, Any]) -> tuple[int, list[str] | None]:
    """Number and names of the classes; the library's default is two, with generated names."""
    labels = config.get("id2label")
    if not isinstance(labels, dict):
        return int(config.get("num_labels") or 2), None
    try:
        names = [str(labels[str(number)]) for number in range(len(labels))]
    except KeyError as error:
        raise InvalidModel(f"config.json: id2label has no entry {error}") from error
    if refused := [name for name in names if not is_class_name(name)]:
        raise InvalidModel(f"config.json: id2label names a class {shown(refused[0])}; accepted: {CLASS_NAME}")
    return len(names), None if names == [f"LABEL_{number}" for number in range(len(names))] else names


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    """A JSON object beside the weights that names no code; none if there is no such file."""
    if not (folder / name).is_file():
        return None
    try:
        return refuse_code(parse_object((folder / name).read_bytes(), DOCUMENTS[name]))
    except ValueError as error:
        raise InvalidModel(f"{name}: {error}") from error


def _images(settings: dict[str, Any], folder: Path) -> tuple[Input, Preprocessing]:
    processor = _read(folder, PREPROCESSOR)
    if processor is None:
        raise InvalidModel(f"{PREPROCESSOR} is missing, so that the scale of its pixels is unknown")
    if processor.get("do_flip_channel_order"):
        raise InvalidModel(f"{PREPROCESSOR}: do_flip_channel_order is true; accepted: false (red, green, blue)")
    channels = int(settings.get("num_channels") or 3)
    scale = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    mean, std = [0.0] * channels, [1.0] * channels
    if processor.get("do_normalize", True):
        mean, std = _numbers(processor, "image_mean", channels), _numbers(processor, "image_std", channels)
    if processor.get("do_rescale", True) and processor.get("rescale_offset"):  # EfficientNet's: pixels from -1 on
        mean = [value + 1.0 for value in mean]
    if processor.get("include_top"):  # EfficientNet's, which is divided by the deviation twice
        std = [
            value * deviation for value, deviation in zip(std, _numbers(processor, "image_std", channels), strict=True)
        ]
    height, width = _sides(_size(settings, processor))
    try:
        image = ImageInput(channels=channels, height=height, width=width)
        return image, Preprocessing(scale=scale, mean=mean, std=std)
    except ValidationError as error:
        raise InvalidModel(f"{PREPROCESSOR}: {error.errors()[0]['msg']}") from error


def _numbers(processor: dict[str, Any], key: str, channels: int) -> list[float]:
    values = processor.get(key)
    if not isinstance(values, list) or len(values) != channels:
        raise InvalidModel(f"{PREPROCESSOR}: {key} is invalid; accepted: {channels} values, one per channel")
    return [float(value) for value in values]


def _size(settings: dict[str, Any], processor: dict[str, Any]) -> Any:
    """The size that images are resized to: the preprocessor's, unless the network takes one size alone."""
    fixed, processed = settings.get("image_size"), _processed_size(processor)
    return (fixed or processed) if settings["model_type"] in _ONE_SIZE else (processed or fixed)


def oddities(folder: Path) -> list[str]:
    """Warnings about preprocessing of a folder's images that is done differently here."""
    processor = _read(folder, PREPROCESSOR) or {}
    cut = processor.get("do_center_crop") or processor.get("crop_pct")
    difference = "crops the centre of larger images; here the whole image is resized to the same size"
    return [f"{PREPROCESSOR} {difference}"] if cut and not (folder / DESCRIPTIONS[0]).is_file() else []


def _processed_size(processor: dict[str, Any]) -> Any:
    """The size that images are cropped to, or else resized to."""
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    return size or processor.get("size")


def _sides(size: Any) -> tuple[int, int]:
    """Height and width of one number, of a pair, or of an object with `height` and `width` or `shortest_edge`."""
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if "height" in size else size.get("shortest_edge")
    pair = size if isinstance(size, list | tuple) and len(size) == 2 else [size, size]
    if not all(isinstance(side, int) for side in pair):
        raise InvalidModel("the size of its images is neither in config.json nor in preprocessor_config.json")
    return pair[0], pair[1]


def _running_text(settings: dict[str, Any], folder: Path) -> TextInput:
    """A decoder's input: as many tokens as it has positions."""
    tokenizer, limits = load_tokenizer(folder, "the model"), _read(folder, SETTINGS) or {}
    positions = settings.get("max_position_embeddings") or settings.get("n_positions")  # as GPT-2 calls them
    length = min(int(bound) for bound in (MAX_LENGTH, limits.get("model_max_length"), positions) if bound)
    if tokenizer.end is None:
        raise InvalidModel(f"{SETTINGS}: the tokenizer has no token that ends a text")
    return TextInput(length=length, vocabulary=_vocabulary(settings, tokenizer), pad=tokenizer.end)


def _texts(settings: dict[str, Any], folder: Path) -> TextInput:
    tokenizer, limits = load_tokenizer(folder, "the model"), _read(folder, SETTINGS) or {}
    if not tokenizer.pads:
        raise InvalidModel(f"{SETTINGS}: neither the tokenizer nor config.json names a token for padding")
    bounds = [LONGEST, limits.get("model_max_length")]
    if (positions := settings.get("max_position_embeddings")) and positions > 0:
        bounds.append(positions - first_position(settings["model_type"], int(settings.get("pad_token_id") or 0)))
    length = min(int(bound) for bound in bounds if bound)
    vocabulary = _vocabulary(settings, tokenizer)
    return TextInput(length=length, vocabulary=vocabulary, pad=tokenizer.pad, separator=tokenizer.separator)


def _vocabulary(settings: dict[str, Any], tokenizer: TextTokenizer) -> int:
    """Size of the network's vocabulary, which may be larger than the tokenizer's."""
    vocabulary = int(settings["vocab_size"])
    if tokenizer.vocabulary > vocabulary:
        found = f"the tokenizer has {tokenizer.vocabulary} tokens, the network {vocabulary}"
        raise InvalidModel(f"config.json: {found}")
    return vocabulary


def write_tokenizer(tokenizer: TextTokenizer, config: ModelConfig, folder: Path) -> None:
    """Write the tokenizer of a model of texts with the model's limits, in the layout of the Transformers library."""
    sample, network = config.input, config.architecture
    assert isinstance(sample, TextInput)
    tokenizer.save(folder)
    encoder = network.encoder if isinstance(network, DualEncoder) else network
    parts = isinstance(encoder, Transformers) and has_segments(encoder)
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if parts else [])]
    document = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    document |= {"model_max_length": sample.length, "model_input_names": inputs}
    (folder / SETTINGS).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
