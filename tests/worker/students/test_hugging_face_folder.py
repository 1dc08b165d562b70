"""Folders in the Hugging Face layout: ours opened by the library, the library's opened by us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from app.recipe.students.model import ImageInput, TextInput
from tests.worker.students import builders
from worker.data.formats.columns import TextSamples
from worker.data.tokens import TextTokenizer, load_tokenizer
from worker.students import hugging_face_folder
from worker.students.hugging_face_folder import write_tokenizer
from worker.students.model import Model, Normalize
from worker.students.weights import InvalidModel, load_model, read_config, save_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "mat", ",", "un", "##like", "东"]
TEXTS = [("The cat sats, unlike 东!", "Mat"), ("cat", "the mat sat")]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def stored(folder: Path, model_type: str = "vit", **changes: Any) -> Model:
    """A model as we store it."""
    model = builders.model(model_type, **changes)
    save_model(model, folder)
    return model


def uploaded(folder: Path, model_type: str = "vit", **config: Any) -> Model:
    """The same as the library would have stored it, with changes to its `config.json`."""
    model = stored(folder, model_type)
    (folder / "stillhouse.json").unlink()
    change(folder / "config.json", **config)
    return model


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def vocabulary(folder: Path) -> TextTokenizer:
    """A folder with a plain WordPiece vocabulary, read."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return load_tokenizer(folder, "teacher.model")


def text_model(tokenizer: TextTokenizer, model_type: str) -> Model:
    sample = TextInput(length=12, vocabulary=tokenizer.vocabulary, pad=0, separator=tokenizer.separator)
    torch.manual_seed(0)
    return Model(builders.described(builders.network(model_type), input=sample)).eval()


@pytest.mark.parametrize("model_type", ["resnet", "vit", "deit", "convnext", "bert", "distilbert", "roberta"])
def test_a_stored_model_gives_the_same_logits(tmp_path: Path, model_type: str) -> None:
    model = stored(tmp_path, model_type)
    loaded = load_model(tmp_path)
    samples = builders.samples(model.config)
    torch.testing.assert_close(loaded(samples), model(samples))
    assert loaded.config == model.config
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_library_opens_a_model_of_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = builders.described(builders.network("vit"), 3, class_names=["cat", "dog/wolf", "7"])
    save_model(model := Model(config).eval(), tmp_path)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path)
    images = builders.samples(config)
    torch.testing.assert_close(theirs(pixel_values=model.preprocess(images)).logits, model(images))
    assert theirs.config.id2label == {0: "cat", 1: "dog/wolf", 2: "7"}
    pixels = AutoImageProcessor.from_pretrained(tmp_path)([image.numpy() for image in images], return_tensors="pt")
    torch.testing.assert_close(pixels["pixel_values"], model.preprocess(images))


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "electra", "roberta"])
def test_the_library_opens_a_model_of_texts_with_its_tokenizer(tmp_path: Path, model_type: str) -> None:
    tokenizer = vocabulary(tmp_path / "words")
    model = text_model(tokenizer, model_type)
    save_model(model, tmp_path)
    write_tokenizer(tokenizer, model.config, tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    left, right = ([pair[side] for pair in TEXTS] for side in (0, 1))
    encoded = read(left, right, padding="max_length", truncation=True, return_tensors="pt")
    tokens = tokenizer.encode(TextSamples(left, right), 12).ids
    assert torch.equal(encoded["input_ids"], tokens)
    torch.testing.assert_close(theirs(**encoded).logits, model(tokens))


def test_a_folder_of_the_library_is_described_from_its_files(tmp_path: Path) -> None:
    labels = {"0": "cat", "1": "dog", "2": "eel", "3": "fox", "4": "gnu"}
    model = uploaded(tmp_path, id2label=labels, _name_or_path="/somewhere/else", torch_dtype="float16")
    config = read_config(tmp_path)
    assert (config.task, config.classes, config.input) == ("image-classification", 5, model.config.input)
    assert config.class_names == ["cat", "dog", "eel", "fox", "gnu"]
    assert config.preprocessing == model.config.preprocessing
    images = builders.samples(config)
    torch.testing.assert_close(load_model(tmp_path)(images), model(images))


def test_a_text_model_of_the_library_is_described_from_its_files(tmp_path: Path) -> None:
    model = text_model(vocabulary(tmp_path), "bert")
    save_model(model, tmp_path)
    (tmp_path / "stillhouse.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    config = read_config(tmp_path)
    assert config.input == TextInput(length=20, vocabulary=len(WORDS), pad=0, separator=3)
    tokens = torch.tensor([[2, 5, 6, 3, 0, 0]])
    torch.testing.assert_close(load_model(tmp_path)(tokens), model(tokens))


def test_a_regression_has_no_classes(tmp_path: Path) -> None:
    model = builders.model("vit")
    config = builders.described(builders.network("vit"), task="regression", classes=None, targets=2)
    save_model(Model(config).eval(), tmp_path)
    (tmp_path / "stillhouse.json").unlink()
    found = read_config(tmp_path)
    assert (found.task, found.targets, found.classes) == ("regression", 2, None)
    assert found.input == model.config.input


@pytest.mark.parametrize("size", [224, {"height": 224, "width": 224}, {"shortest_edge": 224}])
def test_sides_that_the_network_does_not_name_are_the_preprocessor_s(tmp_path: Path, size: object) -> None:
    uploaded(tmp_path, "resnet")
    change(tmp_path / "preprocessor_config.json", size=size)
    sample = read_config(tmp_path).input
    assert sample.model_dump() == {"channels": 3, "height": 224, "width": 224}


def test_a_cut_comes_after_the_resizing(tmp_path: Path) -> None:
    uploaded(tmp_path, "resnet")
    crop = {"height": 24, "width": 28}
    change(tmp_path / "preprocessor_config.json", size={"shortest_edge": 40}, crop_size=crop, do_center_crop=True)
    assert read_config(tmp_path).input.model_dump() == {"channels": 3, **crop}


def test_weights_in_shards_are_read_together(tmp_path: Path) -> None:
    model = uploaded(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    halves = {
        "model-00001-of-00002.safetensors": list(tensors)[::2],
        "model-00002-of-00002.safetensors": list(tensors)[1::2],
    }
    for name, members in halves.items():
        save_file({member: tensors[member] for member in members}, tmp_path / name, metadata={"format": "pt"})
    places = {member: name for name, members in halves.items() for member in members}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (tmp_path / "model.safetensors").unlink()
    images = builders.samples(model.config)
    torch.testing.assert_close(load_model(tmp_path)(images), model(images))


@pytest.mark.parametrize("place", ["../a.safetensors", "/etc/passwd", "", 3])
def test_shards_lie_in_the_folder(tmp_path: Path, place: object) -> None:
    uploaded(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": place}}))
    with pytest.raises(InvalidModel, match="index"):
        load_model(tmp_path)


@pytest.mark.parametrize("model_type", ["vit", "bert"])
def test_a_head_that_the_library_calls_multi_label_is_described_as_one(tmp_path: Path, model_type: str) -> None:
    names = {"0": "cat", "1": "dog", "2": "eel", "3": "fox", "4": "gnu"}
    model = uploaded(tmp_path, model_type, problem_type="multi_label_classification", id2label=names)
    (tmp_path / "vocab.txt").write_text("\n".join([WORDS[1], WORDS[0], *WORDS[2:]]))
    config = read_config(tmp_path)
    assert (config.task, config.classes, config.targets) == ("multi-label-classification", 5, None)
    assert config.class_names == list(names.values())
    samples = builders.samples(model.config)
    torch.testing.assert_close(load_model(tmp_path)(samples), Model(model.config, model.network)(samples))


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ("image-classification", "single_label_classification"),
        ("multi-label-classification", "multi_label_classification"),
        ("regression", "regression"),
        ("keypoints", "regression"),
    ],
)
def test_the_problem_type_of_a_head_is_written(tmp_path: Path, task: str, problem: str) -> None:
    answer: dict[str, Any] = {"classes": 4} if "classification" in task else {"targets": 4, "classes": None}
    save_model(Model(builders.described(builders.network("vit"), task=task, **answer)), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == problem
    (tmp_path / "stillhouse.json").unlink()
    assert read_config(tmp_path).task == ("regression" if task == "keypoints" else task)


@pytest.mark.parametrize("problem", [None, "single_label_classification"])
def test_a_head_whose_problem_is_not_said_may_be_taken_for_one_of_labels(tmp_path: Path, problem: str | None) -> None:
    uploaded(tmp_path, problem_type=problem)
    config = read_config(tmp_path)
    assert (config.task, config.task_assumed) == ("image-classification", problem is None)
    taken = "image-classification" if problem else "multi-label-classification"
    assert config.taken_for("multi-label-classification").task == taken
    for other in ("text-classification", "token-classification", "regression", "causal-lm"):
        assert config.taken_for(other).task == "image-classification"  # type: ignore[arg-type]


def test_former_names_of_weights_are_understood(tmp_path: Path) -> None:
    model = uploaded(tmp_path, "bert")
    (tmp_path / "vocab.txt").write_text("\n".join([WORDS[1], WORDS[0], *WORDS[2:]]))  # padding as in the model
    path = tmp_path / "model.safetensors"
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in load_file(path).items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in old.items()}
    assert any("gamma" in name for name in old)
    save_file(old, path, metadata={"format": "pt"})
    tokens = builders.samples(model.config)
    torch.testing.assert_close(load_model(tmp_path)(tokens), Model(model.config, model.network)(tokens))


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda tensors: tensors.pop("classifier.bias"), "lacks the tensor 'classifier.bias'"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "'extra'"),
        (lambda tensors: tensors.update({"classifier.bias": torch.zeros(4)}), r"'classifier\.bias' has shape \(4,\)"),
        (lambda tensors: tensors.update({"classifier.bias": torch.full((5,), torch.nan)}), "NaN"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, edit: Any, word: str) -> None:
    uploaded(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    edit(tensors)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidModel, match=word):
        load_model(tmp_path)


def test_a_configuration_of_far_more_weights_costs_no_memory(tmp_path: Path) -> None:
    uploaded(tmp_path, hidden_size=16_384, num_hidden_layers=48, intermediate_size=65_536)  # 150 billion weights
    with pytest.raises(InvalidModel, match="the configuration describes"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("config.json", {"auto_map": {"AutoModel": "x--m.M"}}, "auto_map"),
        ("config.json", {"model_type": "mystery"}, "model_type"),
        ("config.json", {"problem_type": "guessing"}, "multi_label_classification, regression, single_label_classif"),
        ("config.json", {"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "x--m.M"}}, "auto_map"),
        ("preprocessor_config.json", {"image_mean": [0.5]}, "image_mean"),
        ("preprocessor_config.json", {"image_std": [0.0, 1.0, 1.0]}, "greater than 0"),
    ],
)
def test_what_can_t_be_taken_is_named(tmp_path: Path, name: str, values: dict[str, Any], word: str) -> None:
    uploaded(tmp_path)
    change(tmp_path / name, **values)
    with pytest.raises(InvalidModel, match=word):
        read_config(tmp_path)


@pytest.mark.parametrize(("model_type", "name"), [("vit", "preprocessor_config.json"), ("bert", "tokenizer.json")])
def test_a_missing_file_is_named(tmp_path: Path, model_type: str, name: str) -> None:
    uploaded(tmp_path, model_type)
    (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(InvalidModel, match=name):
        read_config(tmp_path)


def ids(tokenizer: TextTokenizer, left: str, right: str | None) -> list[int]:
    """Without padding."""
    (row,) = tokenizer.encode(TextSamples([left], None if right is None else [right]), 50).ids.tolist()
    return [number for number in row if number != tokenizer.pad]


def test_a_plain_vocabulary_reads_as_berts_tokenizer_does(tmp_path: Path) -> None:
    tokenizer = vocabulary(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for left, right in TEXTS:
        assert ids(tokenizer, left, right) == theirs(left, right)["input_ids"]
        assert ids(tokenizer, left, None) == theirs(left)["input_ids"]


def test_a_plain_vocabulary_of_byte_pairs_reads_as_robertas_tokenizer_does(tmp_path: Path) -> None:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "at", "Ġt"]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na t\nĠ t\n")
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    tokenizer, theirs = load_tokenizer(tmp_path, "teacher.model"), AutoTokenizer.from_pretrained(tmp_path)
    for left, right in TEXTS:
        assert ids(tokenizer, left, right) == theirs(left, right)["input_ids"]
    assert tokenizer.separator == 2


@pytest.mark.parametrize("told", [0, 3, None])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "camembert", "mpnet"])
def test_the_tokenizer_defines_the_padding(tmp_path: Path, model_type: str, told: int | None) -> None:
    """Also where `config.json` names another one; what numbers positions by it goes on doing so."""
    tokenizer = vocabulary(tmp_path / "words")
    padded = TextTokenizer(tokenizer._tokenizer, {**tokenizer.roles, "pad_token": "mat"})
    model = text_model(tokenizer, model_type)
    save_model(model, tmp_path)
    write_tokenizer(padded, model.config, tmp_path)
    (tmp_path / "stillhouse.json").unlink()
    document = json.loads((tmp_path / "config.json").read_text())
    document |= {"pad_token_id": told}
    if told is None:
        del document["pad_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(document))
    read = AutoTokenizer.from_pretrained(tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    encoded = read(["the cat sat", "cat"], padding="max_length", max_length=8, truncation=True, return_tensors="pt")
    loaded = load_model(tmp_path)
    assert loaded.config.input.model_dump()["pad"] == WORDS.index("mat")
    torch.testing.assert_close(loaded(encoded["input_ids"]), theirs(**encoded).logits)


def test_an_encoder_of_texts_needs_a_token_for_padding(tmp_path: Path) -> None:
    uploaded(tmp_path, "bert", pad_token_id=None)
    pieces = {piece: number for number, piece in enumerate(["[UNK]", "cat", "sat"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(pieces, unk_token="[UNK]"))
    raw.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InvalidModel, match="padding"):
        read_config(tmp_path)


PROCESSORS = [
    ("beit", "BeitImageProcessor", {}),
    ("bit", "BitImageProcessor", {}),
    ("convnext", "ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("deit", "DeiTImageProcessor", {"do_center_crop": False, "size": {"height": 224, "width": 224}}),
    ("efficientnet", "EfficientNetImageProcessor", {"size": {"height": 32, "width": 32}}),
    ("efficientnet", "EfficientNetImageProcessor", {"size": {"height": 32, "width": 32}, "include_top": False}),
    ("efficientnet", "EfficientNetImageProcessor", {"size": {"height": 32, "width": 32}, "rescale_offset": True}),
    ("mobilenet_v2", "MobileNetV2ImageProcessor", {"size": {"shortest_edge": 224}}),
    ("segformer", "SegformerImageProcessor", {"size": {"height": 48, "width": 32}}),
    ("vit", "ViTImageProcessor", {}),
    ("vit", "ViTImageProcessor", {"do_rescale": False}),
    ("vit", "ViTImageProcessor", {"do_normalize": False}),
    ("vit", "ViTImageProcessor", {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 0.9, 0.8]}),
]


@pytest.mark.parametrize(("model_type", "processor", "settings"), PROCESSORS)
def test_pixels_mean_what_they_mean_to_the_library(
    tmp_path: Path, model_type: str, processor: str, settings: dict[str, Any]
) -> None:
    """For an image of the size in the folder's configuration."""
    theirs = getattr(transformers, processor)(**settings)
    theirs.save_pretrained(tmp_path)
    config = transformers.AutoConfig.for_model(model_type)
    if model_type == "vit":
        config.image_size = 224
    sample, preprocessing = hugging_face_folder._images(config.to_dict(), tmp_path)
    assert isinstance(sample, ImageInput)
    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, sample.height, sample.width), generator=random, dtype=torch.uint8)
    expected = theirs(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(Normalize(preprocessing, 2)(image[None]), expected, rtol=1e-4, atol=1e-4)


def test_channels_in_another_order_are_refused(tmp_path: Path) -> None:
    uploaded(tmp_path)
    change(tmp_path / "preprocessor_config.json", do_flip_channel_order=True)
    with pytest.raises(InvalidModel, match="do_flip_channel_order"):
        read_config(tmp_path)


def test_a_crop_that_is_left_out_has_a_warning(tmp_path: Path) -> None:
    uploaded(tmp_path)
    assert hugging_face_folder.oddities(tmp_path) == []
    change(tmp_path / "preprocessor_config.json", do_center_crop=True, crop_size={"height": 32, "width": 32})
    (told,) = hugging_face_folder.oddities(tmp_path)
    assert "crops the centre" in told


@pytest.mark.parametrize("name", ["", "a\0", "a\ud800", "a" * 1025])
def test_a_name_that_no_class_can_have_is_refused(tmp_path: Path, name: str) -> None:
    uploaded(tmp_path, id2label={"0": "cat", "1": name, "2": "eel", "3": "fox", "4": "gnu"})
    with pytest.raises(InvalidModel):
        read_config(tmp_path)
