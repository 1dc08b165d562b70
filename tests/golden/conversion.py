"""Conversion of a vision transformer with layer norms into equal ones with root mean square norms."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from app.recipe.students.architectures import Vit
from app.recipe.students.conversion import Convert
from app.recipe.students.converted import converted
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing
from tests.golden import Case
from tests.golden.comparison import Comparison
from worker.students.convert import compressed, recentred, vit_state, weights_of
from worker.students.model import Model

KIND = "convert"
LAYERS = {
    "att_in": "attention.qkv",
    "att_out": "attention.out",
    "mlp_in": "feed_forward.0",
    "mlp_out": "feed_forward.2",
}


def preln_convert(case: Case) -> Iterator[Comparison]:
    """The patches are pixels of as many channels, and the class token has no position."""
    teacher = _model(case)
    images = case.inputs["x"].transpose(1, 2).unflatten(-1, (2, 2))
    yield Comparison(KIND, "out_pre_ln", teacher.network(images), case.outputs["out_pre_ln"])
    state = recentred(vit_state(teacher))
    yield from _weights(case, "zm", state, ("att_out", "mlp_out"), ("weight", "bias"))
    state = compressed(state)
    yield from _weights(case, "compressed", state, ("att_out", "mlp_out"), ("weight", "bias"))
    yield from _weights(case, "compressed", state, ("att_in", "mlp_in"), ("weight",))
    for form, output in (("pre-rmsnorm", "out_pre_rms"), ("pre-crmsnorm", "out_pre_crms")):
        spec = Convert.model_validate({"architecture": "convert", "to": form})
        config = teacher.config.model_copy(update={"architecture": converted(spec, teacher.config)})
        student = Model(config).double().requires_grad_(False)
        student.network.load_state_dict(weights_of(teacher, spec, student.network.state_dict()))
        yield Comparison(KIND, output, student.network(images), case.outputs[output])


def _model(case: Case) -> Model:
    hyper, given = case.hyper, case.inputs
    network = Vit(patch_size=1, width=hyper["dim"], depth=hyper["depth"], heads=hyper["heads"])
    channels = given["x"].shape[-1]
    config = ModelConfig(
        architecture=network,
        input=ImageInput(channels=channels, height=2, width=2),
        preprocessing=Preprocessing(mean=[0.0] * channels, std=[1.0] * channels),
        classes=hyper["num_classes"],
    )
    model = Model(config).double().requires_grad_(False)
    state = {
        "embed.weight": given["patch_linear_weight"][..., None, None],
        "embed.bias": given["patch_linear_bias"],
        "class_token": given["cls_token"],
        "positions": torch.cat([torch.zeros_like(given["cls_token"]), given["pos_embedding"]], 1),
    }
    for part in ("weight", "bias"):
        state[f"head.{part}"] = given[f"cls_head_linear_{part}"]
        for number in range(hyper["depth"]):
            for theirs, ours in LAYERS.items():
                state[f"blocks.{number}.{ours}.{part}"] = given[f"{theirs}_linear_{part}"][number]
    model.network.load_state_dict(model.network.state_dict() | state)
    return model


def _weights(
    case: Case, stage: str, state: dict[str, Tensor], layers: tuple[str, ...], parts: tuple[str, ...]
) -> Iterator[Comparison]:
    blocks = range(case.hyper["depth"])
    for layer in layers:
        for part in parts:
            name = f"{stage}_{layer}_linear_{part}"
            found = torch.stack([state[f"blocks.{number}.{LAYERS[layer]}.{part}"] for number in blocks])
            yield Comparison(KIND, name, found, case.outputs[name])
