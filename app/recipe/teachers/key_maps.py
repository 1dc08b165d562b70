"""Key maps of common networks, by name: `key_map: torchvision-resnet`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator

from app.recipe.teachers.key_map import KeyMap

KeyMapName = Literal["torchvision-resnet"]


def _key_map(*renames: tuple[str, str]) -> KeyMap:
    return KeyMap.model_validate({"rename": [{"from": old, "to": new} for old, new in renames]})


KEY_MAPS: dict[KeyMapName, KeyMap] = {
    "torchvision-resnet": _key_map(
        ("conv1.", "resnet.embedder.embedder.convolution."),
        ("bn1.", "resnet.embedder.embedder.normalization."),
        ("layer{i}.{j}.downsample.0.", "resnet.encoder.stages.{i-1}.layers.{j}.shortcut.convolution."),
        ("layer{i}.{j}.downsample.1.", "resnet.encoder.stages.{i-1}.layers.{j}.shortcut.normalization."),
        ("layer{i}.{j}.conv{k}.", "resnet.encoder.stages.{i-1}.layers.{j}.layer.{k-1}.convolution."),
        ("layer{i}.{j}.bn{k}.", "resnet.encoder.stages.{i-1}.layers.{j}.layer.{k-1}.normalization."),
        ("fc.", "classifier.1."),
    )
}
"""`torchvision-resnet`: resnet18, 34, 50, 101 and 152 of torchvision to `ResNetForImageClassification` of the
Transformers library. torchvision has the stride of a bottleneck in its 3x3 convolution, as has that library with
`downsample_in_bottleneck: false`, its default."""


def _by_name(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value not in KEY_MAPS:
        raise ValueError(f"{value!r} is no known key map; accepted: {', '.join(get_args(KeyMapName))}")
    return KEY_MAPS[value]


AnyKeyMap = Annotated[KeyMap, BeforeValidator(_by_name, json_schema_input_type=KeyMap | KeyMapName)]
"""A key map, or the name of one of `KEY_MAPS`."""
