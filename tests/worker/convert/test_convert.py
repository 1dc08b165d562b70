"""Conversion of torch's files, by the process that does it."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.recipe.students.model import ModelConfig
from app.recipe.teachers.key_map import Conversion
from worker import students
from worker.convert import Unconvertible, checkpoint, convert
from worker.students.weights import load_model

CONFIG: dict[str, Any] = {
    "architecture": {"architecture": "cifar-resnet", "depth": 8, "width": 4},
    "input": {"channels": 3, "height": 8, "width": 8},
    "preprocessing": {"mean": [0.5] * 3, "std": [0.25] * 3, "scale": 1 / 255},
    "classes": 10,
}
THEIRS = {
    "strip": ["module."],
    "drop": ["optimizer."],
    "rename": [{"from": "layer{i}.", "to": "stages.{i-1}."}, {"from": "fc.", "to": "head."}],
}


def network() -> nn.Module:
    config = ModelConfig.model_validate(CONFIG)
    torch.manual_seed(0)
    return students.build(config.architecture, config.input, config.outputs)


def theirs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of another program, without the counters that old versions lack."""
    renamed = {}
    for name, tensor in state.items():
        first, _, rest = name.partition(".")
        if first == "stages":
            stage, _, rest = rest.partition(".")
            first = f"layer{int(stage) + 1}"
        renamed[f"module.{'fc' if first == 'head' else first}.{rest}"] = tensor
    return {name: tensor for name, tensor in renamed.items() if not name.endswith("num_batches_tracked")}


def order(**fields: Any) -> dict[str, Any]:
    return {"checkpoint_key": "state_dict", "key_map": THEIRS, **fields}


def saved(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def folder_with(folder: Path, content: bytes, conversion: dict[str, Any] | None = None) -> Path:
    Conversion.model_validate(conversion or {})
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "convert.json").write_text(json.dumps(conversion or {}))
    (folder / "weights.pt").write_bytes(content)
    return folder


async def refusal(folder: Path, content: bytes, conversion: dict[str, Any] | None = None) -> str:
    """What the confined process says of a file."""
    with pytest.raises(Unconvertible) as caught:
        await convert(folder_with(folder, content, conversion))
    assert not (folder / "model.safetensors").exists()
    return str(caught.value)


def refused(folder: Path, content: bytes, conversion: dict[str, Any] | None = None) -> str:
    """What is said of a file within this process, which starts sooner."""
    expected = checkpoint.expected_tensors(ModelConfig.model_validate(CONFIG))
    order, target = Conversion.model_validate(conversion or {}), folder / "model.safetensors"
    (folder / "weights.pt").write_bytes(content)
    with pytest.raises(Unconvertible) as caught:
        checkpoint.convert(folder / "weights.pt", order, expected, target)
    assert not target.exists()
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
async def test_weights_of_another_program_become_ours(tmp_path: Path, zipped: bool) -> None:
    state = network().state_dict()
    content = {"epoch": 3, "state_dict": {**theirs(state), "module.optimizer.step": torch.ones(2)}}
    await convert(folder_with(tmp_path, saved(content, _use_new_zipfile_serialization=zipped), order()))
    loaded = load_model(tmp_path).network.state_dict()
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[name], state[name]) for name in state)


async def test_a_file_that_is_the_weights_themselves_needs_no_order(tmp_path: Path) -> None:
    state = network().state_dict()
    await convert(folder_with(tmp_path, saved(state)))
    assert torch.equal(load_model(tmp_path).network.state_dict()["conv.weight"], state["conv.weight"])


async def test_weights_that_share_memory_or_are_transposed_are_copied(tmp_path: Path) -> None:
    state = network().state_dict()
    state["norm.weight"] = state["norm.bias"] = torch.ones(4)
    state["conv.weight"] = state["conv.weight"].transpose(2, 3)
    await convert(folder_with(tmp_path, saved(state)))
    loaded = load_model(tmp_path).network.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
async def test_a_program_in_the_file_does_not_run(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "marker"
    content = saved(
        {"state_dict": theirs(network().state_dict()), "x": Payload(marker)}, _use_new_zipfile_serialization=zipped
    )
    assert "more than tensors" in await refusal(tmp_path, content, order())
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))  # or else this test says nothing
    assert marker.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    assert "more than tensors" in refused(tmp_path, saved(network()))


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float, zipped: bool) -> None:
    content = saved(network().state_dict(), _use_new_zipfile_serialization=zipped)
    assert "damaged" in refused(tmp_path, content[: int(len(content) * kept)])


def with_storage_of(size: int) -> bytes:
    """A file whose pickle claims a storage of `size` numbers."""
    small = zipfile.ZipFile(io.BytesIO(saved({"conv.weight": torch.zeros(77)})))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in small.namelist():
            raw = small.read(name)
            claimed = b"J" + size.to_bytes(4, "little")
            archive.writestr(name, raw.replace(b"KM", claimed) if name.endswith(".pkl") else raw)
    return buffer.getvalue()


async def test_a_storage_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    content = with_storage_of(2**31 - 1)
    assert content != saved({"conv.weight": torch.zeros(77)})
    await refusal(tmp_path, content)


async def test_a_legacy_storage_that_claims_gigabytes_is_refused(tmp_path: Path) -> None:
    content = saved({"conv.weight": torch.zeros(77)}, _use_new_zipfile_serialization=False)
    assert b"KM" in content
    await refusal(tmp_path, content.replace(b"KM", b"J" + (2**31 - 1).to_bytes(4, "little")))


def test_a_tensor_that_is_large_by_its_strides_alone_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    state = network().state_dict()
    state["conv.weight"] = torch.zeros(1).expand(10**12)
    assert "'conv.weight' has shape (1000000000000,)" in refused(tmp_path, saved(state))


@pytest.mark.parametrize(
    ("content", "conversion", "said"),
    [
        (
            {"state_dict": {"a": torch.ones(1)}, "epoch": 1},
            {},
            "checkpoint_key: the file is not a dictionary of tensors; it has 'state_dict', 'epoch'",
        ),
        ({"model": {"a": torch.ones(1)}}, order(), "checkpoint_key: the file has no 'state_dict'; it has 'model'"),
        ({"state_dict": 3}, order(), "checkpoint_key: 'state_dict' is not a dictionary of tensors"),
        ([torch.ones(1)], {}, "it is list"),
        ({"state_dict": {"layer0.w": torch.ones(1)}}, order(), "key_map: {i-1} is negative for 'layer0.w'"),
        ({"a.w": torch.ones(1)}, {}, "has 'a.w', which the architecture does not have"),
    ],
)
def test_what_does_not_fit_is_said_in_the_words_of_the_request(
    tmp_path: Path, content: object, conversion: dict[str, Any], said: str
) -> None:
    assert said in refused(tmp_path, saved(content), conversion)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("head.bias", None, "lacks 'head.bias'"),
        ("head.bias", torch.ones(11), "'head.bias' has shape (11,), not (10,)"),
        ("head.bias", torch.ones(10, dtype=torch.int32), "'head.bias' has dtype torch.int32, not torch.float32"),
        ("head.bias", torch.ones(10, dtype=torch.complex64), "dtype torch.complex64"),
        ("head.bias", torch.ones(10).to_sparse(), "'head.bias' is not a plain tensor"),
        ("tail.bias", torch.ones(10), "has 'tail.bias', which the architecture does not have"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, name: str, tensor: Tensor | None, said: str) -> None:
    state = network().state_dict()
    changed = {**state, name: tensor} if tensor is not None else {key: state[key] for key in state if key != name}
    assert said in refused(tmp_path, saved(changed))
