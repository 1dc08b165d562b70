"""Networks that reconstruct the features of a stored model, from the descriptions of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from app.recipe.problem import Problem
from app.recipe.students.architectures import (
    CifarResNet,
    DualEncoder,
    InpFormer,
    InpFormerNetwork,
    Mlp,
    Network,
    TextTransformer,
    Vit,
    WideResNet,
)
from app.recipe.students.inputs import ImageInput
from app.recipe.students.model import ModelConfig
from app.recipe.students.module_paths import module_paths, suggestions
from app.recipe.students.reconstruction_settings import Reconstruction
from app.recipe.students.shapes import STAGES, WRN_BASE


class FeatureShape(NamedTuple):
    """Shape of an encoder's output at some module."""

    width: int
    positions: int
    """Tokens of parts of the image, or pixels of a map."""


def with_encoder(student: InpFormer, stored: ModelConfig) -> InpFormerNetwork | None:
    """The network of `student` on a stored model; none: that is no encoder of images."""
    network = stored.architecture
    if isinstance(network, Mlp | TextTransformer | InpFormerNetwork | DualEncoder) or not isinstance(
        stored.input, ImageInput
    ):
        return None
    settings = {name: getattr(student, name) for name in Reconstruction.model_fields}
    return InpFormerNetwork(**settings, encoder=network, encoder_outputs=stored.outputs)


def encoder_problems(student: InpFormer, stored: ModelConfig) -> Iterator[Problem]:
    """Problems of a stored model, and of the modules of it, as encoder of a student."""
    network = with_encoder(student, stored)
    if network is None:
        found = f"is a model of type {stored.architecture.architecture} for {stored.task}, which has no features to"
        yield Problem(f"student.{student.source}", f"{found} reconstruct", "a model of images with maps or tokens")
        return
    known = module_paths(network.encoder)
    for group, paths in enumerate(student.layers):
        for place, path in enumerate(paths):
            if known is not None and path not in known:
                found, accepted = f"the encoder has no module {path!r}", ", ".join(suggestions(path, known))
                yield Problem(f"student.layers[{group}][{place}]", found, f"a path such as {accepted}")
    yield from _shape_problems(network, stored.input)


def _shape_problems(network: InpFormerNetwork, image: object) -> Iterator[Problem]:
    """Problems of shapes that are known without building the encoder."""
    if not isinstance(image, ImageInput):
        return
    shapes = {path: _output_shape(network.encoder, path, image) for path in network.paths}
    known = {path: shape for path, shape in shapes.items() if shape is not None}
    if len(set(known.values())) > 1:
        listed = ", ".join(f"{path}: {shape.width} x {shape.positions}" for path, shape in known.items())
        yield Problem("student.layers", f"have features of different shapes ({listed})", "layers of one shape")
    elif known and (width := next(iter(known.values())).width) % network.heads:
        yield Problem("student.heads", f"{network.heads} does not divide the width {width}", "a divisor of it")


def feature_shape(network: InpFormerNetwork, image: ImageInput) -> FeatureShape | None:
    """Shape of the features of the first layer; none: it is only known after building the encoder."""
    return _output_shape(network.encoder, network.paths[0], image)


def _output_shape(encoder: Network, path: str, image: ImageInput) -> FeatureShape | None:
    """Shape of the output of a block or stage; none: it is only known after building the encoder."""
    kind, *numbers = path.split(".")
    if isinstance(encoder, Vit) and kind == "blocks" and len(numbers) == 1:
        return FeatureShape(encoder.width, (image.height // encoder.patch_size) * (image.width // encoder.patch_size))
    if not isinstance(encoder, CifarResNet | WideResNet) or kind != "stages" or len(numbers) > 2:
        return None
    if not numbers or not numbers[0].isdigit() or (stage := int(numbers[0])) >= STAGES:
        return None
    base = encoder.width if isinstance(encoder, CifarResNet) else WRN_BASE * encoder.widen
    height, width = (-(-side // 2**stage) for side in (image.height, image.width))
    return FeatureShape(base * 2**stage, height * width)
