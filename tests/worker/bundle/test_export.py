"""The exported graphs, as a user would run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from app.recipe.students.architectures import Mlp
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing, TableInput, TargetScaling, TextInput
from tests.worker.training.builders import CLASSES, SIDE, play, stage
from worker.bundle.export import export_int8, export_onnx, export_program, export_weights
from worker.protocol import Finished
from worker.students.model import Model
from worker.students.weights import load_model

STUDENTS: list[dict[str, Any]] = [
    {"architecture": "mlp", "hidden": [8]},
    {"architecture": "cifar-resnet", "depth": 8, "width": 2},
    {"architecture": "vit", "patch_size": 3, "width": 8, "depth": 1, "heads": 2},
]
SLOW_STUDENTS: list[dict[str, Any]] = [
    {"architecture": "wide-resnet", "depth": 10},
    {"architecture": "cifar-vgg", "width": 4},
    {"architecture": "mobilenet-v2", "multiplier": 0.2},
    {"architecture": "shufflenet-v2", "size": "0.5x"},
]


SILU, LEAKY = {"kind": "silu"}, {"kind": "leaky-relu", "slope": 0.1}
ALL_FORMATS = ["safetensors", "onnx", "onnx-int8", "torch-export"]


@pytest.mark.parametrize(
    "student",
    [*STUDENTS, *(pytest.param(student, marks=pytest.mark.long) for student in SLOW_STUDENTS)],
    ids=lambda student: student["architecture"],
)
def test_the_graphs_take_any_number_of_raw_images(tmp_path: Path, student: dict[str, Any]) -> None:
    word = play(stage(tmp_path, student=student, export=ALL_FORMATS), tmp_path).word
    assert isinstance(word, Finished)
    files = {"model.onnx", "model.int8.onnx", "model.pt2"}
    assert files <= {artifact.name for artifact in word.artifacts}
    folder = tmp_path / "bundle"
    graph, small = (onnxruntime.InferenceSession(folder / name) for name in ("model.onnx", "model.int8.onnx"))
    program, model = torch.export.load(folder / "model.pt2").module(), load_model(folder)
    for count in (1, 3):
        images = torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, 1, SIDE, SIDE))).float()
        expected = model(images)
        assert expected.shape == (count, CLASSES)
        for answers in (torch.from_numpy(graph.run(["logits"], {"images": images.numpy()})[0]), program(images)):
            torch.testing.assert_close(answers, expected, rtol=1e-4, atol=1e-4)
        (coarse,) = small.run(["logits"], {"images": images.numpy()})
        assert np.abs(coarse - expected.numpy()).max() < 0.15 * max(1.0, float(expected.abs().max()))


LAYERED: dict[str, dict[str, Any]] = {
    "group, silu": {"architecture": "cifar-resnet", "norm": {"kind": "group", "groups": 2}, "activation": SILU},
    "layer, leaky-relu": {"architecture": "wide-resnet", "norm": {"kind": "layer"}, "activation": LEAKY},
    "rms, gelu": {"architecture": "cifar-resnet", "norm": {"kind": "rms"}, "activation": {"kind": "gelu"}},
    "none, relu": {"architecture": "cifar-resnet", "norm": {"kind": "none"}},
    "rms, linear, relu": {
        **{"architecture": "vit", "norm": {"kind": "rms"}, "attention": {"kind": "linear"}},
        "activation": {"kind": "relu"},
    },
    **{
        str(attention): {"architecture": "vit", "attention": attention}
        for attention in (
            {"kind": "sigmoid"},
            {"kind": "softplus"},
            {"kind": "soft", "ratio": 1},
            {"kind": "soft", "ratio": 1, "normalised": True},
            {"kind": "nala"},
        )
    },
}
LAYERED |= {
    f"{kind} of tokens": {"architecture": "vit", "norm": {"kind": kind}}
    for kind in ("crms", "power", "unified", "l1-layer")
}
LAYERED |= {
    f"{kind} of images": {"architecture": "cifar-resnet", "norm": {"kind": kind}}
    for kind in ("unified", "l1-batch", "l1-layer")
}
LAYERED["selu"] = {"architecture": "mlp", "activation": {"kind": "selu", "alpha_dropout": 0.2}}
LAYERED["cubic"] = {"architecture": "mlp", "activation": {"kind": "optimal-hermite"}}
LAYERED["partial rms"] = {
    **{"architecture": "vit", "norm": {"kind": "rms", "partial": 0.5, "eps_mode": "outside"}},
}
SIZES: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [8, 8]},
    "cifar-resnet": {"depth": 8, "width": 4},
    "wide-resnet": {"depth": 10},
    "vit": {"patch_size": 3, "width": 8, "depth": 2, "heads": 2},
}


@pytest.mark.parametrize("name", LAYERED)
def test_every_kind_of_layer_is_read_again_in_every_format(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        architecture={**LAYERED[name], **SIZES[LAYERED[name]["architecture"]]},
        input=ImageInput(channels=1, height=SIDE, width=SIDE),
        preprocessing=Preprocessing(scale=1 / 255, mean=[0.5], std=[0.3]),
        classes=CLASSES,
    )
    model = Model(config).eval().requires_grad_(False)
    calls = [export_weights(model, tmp_path, torch.device("cpu"))]
    assert calls[0].config == config
    calls += [export_onnx(model, tmp_path), export_program(model, tmp_path)]
    for count in (1, 5):
        images = torch.randint(0, 256, (count, 1, SIDE, SIDE)).float()
        for call in calls:
            torch.testing.assert_close(call(images), model(images), rtol=1e-4, atol=1e-4)


class Reader(nn.Module):
    """A classifier of texts: embeddings, attention that skips padding, mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5000, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0.0)
        self.head = nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        states = self.layer(self.embedding(tokens), src_key_padding_mask=padding)
        weights = (~padding).unsqueeze(-1).float()
        return self.head((states * weights).sum(1) / weights.sum(1))


def text_model() -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    described = TextInput(length=9, vocabulary=5000)
    config = ModelConfig(task="text-classification", architecture=Mlp(), input=described, classes=3)
    tokens = torch.randint(1, 5000, (3, 9))
    tokens[1, 5:] = 0
    return Model(config, Reader(), input_key="tokens:0a1b"), tokens


def table_model() -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    config = ModelConfig(
        task="regression",
        architecture=Mlp(hidden=[16]),
        input=TableInput(columns=5),
        preprocessing=Preprocessing(mean=[100.0] * 5, std=[20.0] * 5),
        targets=2,
        target_scaling=TargetScaling(mean=[1.0, -1.0], std=[3.0, 0.5]),
    )
    return Model(config), torch.randn(3, 5) * 20 + 100


@pytest.mark.parametrize(
    ("build", "name", "output"),
    [(text_model, "tokens", "logits"), (table_model, "table", "outputs")],
    ids=["text", "table"],
)
def test_graphs_accept_texts_and_tables_too(tmp_path: Path, build: Any, name: str, output: str) -> None:
    model, samples = build()
    model.eval().requires_grad_(False)
    opened = {write: write(model, tmp_path) for write in (export_onnx, export_int8, export_program)}
    for several in (samples[:1], samples, samples[:2, :6] if name == "tokens" else samples[:2]):
        expected = model(several)
        for write, call in opened.items():
            tolerance = 0.05 if write is export_int8 else 1e-5
            torch.testing.assert_close(call(several), expected, rtol=0.0, atol=tolerance)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [node.name for node in session.get_inputs()] == [name]
    assert [node.name for node in session.get_outputs()] == [output]


def test_the_graph_of_8_bits_is_smaller_if_weights_dominate_its_size(tmp_path: Path) -> None:
    model, _ = text_model()
    for write in (export_onnx, export_int8):
        write(model.eval().requires_grad_(False), tmp_path)
    assert (tmp_path / "model.int8.onnx").stat().st_size < 0.5 * (tmp_path / "model.onnx").stat().st_size


@pytest.mark.parametrize("build", [text_model, table_model], ids=["text", "table"])
def test_no_file_has_the_paths_of_the_machine(tmp_path: Path, build: Any) -> None:
    model, _ = build()
    for write in (export_onnx, export_int8, export_program):
        write(model.eval().requires_grad_(False), tmp_path)
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert b".py" not in content
        assert str(Path(__file__).parents[3]).encode() not in content


def test_exporting_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    play(stage(tmp_path, export=ALL_FORMATS), tmp_path)
    assert capfd.readouterr() == ("", "")
