"""Jobs and inputs for the tests of a super-network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from app.recipe.job import JobSpec
from app.recipe.students.architectures import Transformers
from app.recipe.students.model import ModelConfig, TextInput
from app.recipe.students.pooling import Embedding
from app.recipe.students.searched import SearchFile
from app.recipe.students.sub_spaces import SubNetwork
from tests.kinds import BERT, WORDS, WordPiece, small_job
from tests.worker.training.builders import (
    Played,
    play,
)
from worker.data.formats.columns import TextSamples
from worker.data.tokens import train_tokenizer
from worker.protocol import Assignment, Finished
from worker.students.hugging_face_folder import write_tokenizer
from worker.students.model import Model
from worker.students.weights import save_model

Document = dict[str, Any]


SIZES: Document = {
    **{"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 32},
    **{"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}


TEACHER = SubNetwork(4, 16, 4, 32)


SPACE: Document = {"layers": [0.5, 1.0], "width": [0.5, 0.75], "ffn_ratio": [1.0, 2.0]}


SMALL: Document = {"layers": [0.25, 0.5], "width": [0.5], "ffn_ratio": [1.0]}


METHOD: Document = {"kind": "supernet", "spaces": [SPACE], "drawn": 1}
TWO: Document = {"method": {**METHOD, "spaces": [SPACE, SMALL]}, "ema_decay": 0.5, "accumulate": 2}


def projections(layer: int) -> Document:
    names = (("queries", "query"), ("keys", "key"), ("values", "value"))
    return {key: f"encoder.layer.{layer}.attention.self.{name}" for key, name in names}


def relation(**changes: Any) -> Document:
    layer = {"teacher": projections(3), "student": projections(3)}
    return {"kind": "attention-relation", "relation_heads": 2, "layer": layer, **changes}


def job(recipe: Document | None = None, **more: Any) -> Document:
    losses = [relation(), {"kind": "similarity-matrix", "compare": "mse", "weight": 0.1}]
    base = {"losses": losses, "method": METHOD, "optimizer": {"kind": "adamw", "lr": 1e-2}, **(recipe or {})}
    return small_job(base, {"architecture": "shrink"}, "embedding", **more)


def write_encoder(folder: Path) -> None:
    tokenizer = train_tokenizer(WordPiece(vocabulary=100), TextSamples(WORDS))
    config = ModelConfig(
        task="embedding",
        architecture=Transformers(config={**BERT, **SIZES}),
        input=TextInput(length=16, vocabulary=tokenizer.vocabulary, pad=tokenizer.pad, separator=tokenizer.separator),
        targets=16,
        embedding=Embedding(normalise=True),
    )
    folder.mkdir()
    torch.manual_seed(0)
    save_model(Model(config), folder)
    write_tokenizer(tokenizer, config, folder)


def staged(folder: Path, inputs: dict[str, str], document: Document) -> Assignment:
    spec = JobSpec.model_validate(document)
    return Assignment(spec=spec, inputs={name: inputs[name] for name in spec.references.values()})


def played(folder: Path, inputs: dict[str, str], document: Document) -> Played:
    found = play(staged(folder, inputs, document), folder)
    assert isinstance(found.word, Finished), found.word
    return found


def searched(folder: Path) -> SearchFile:
    return SearchFile.model_validate_json((folder / "bundle" / "search.json").read_bytes())


def plain_relation(student: list[Tensor], teacher: list[Tensor], seen: Tensor, heads: int) -> Tensor:
    """The relation objective as the paper has it, written out text by text."""
    total, count = torch.zeros((), dtype=torch.float64), int(seen.sum())
    for one, other in zip(student, teacher, strict=True):
        for row, length in enumerate(seen.sum(1).tolist()):
            for head in range(heads):
                logs = []
                for states in (one, other):
                    width = states.shape[-1] // heads
                    part = states[row, :length, head * width : (head + 1) * width]
                    logs.append((part @ part.T / width**0.5).log_softmax(-1))
                total = total + (logs[1].exp() * (logs[1] - logs[0])).sum() / (heads * count)
    return total


def sliced(whole: Model, sizes: SubNetwork) -> tuple[Any, dict[str, Tensor]]:
    """The library's encoder in these sizes, and its parameters as slices of those of `whole`, by rules of their own."""
    config = whole.network.config.__class__(**{**whole.network.config.to_dict(), **library_sizes(sizes)})  # type: ignore[operator, union-attr]
    encoder = AutoModel.from_config(config, attn_implementation="eager").double().eval()
    given, depth = dict(whole.network.named_parameters()), whole.network.config.num_hidden_layers  # type: ignore[union-attr]
    found = {}
    for name, like in encoder.named_parameters():
        if name.startswith("pooler"):
            continue
        parts = name.split(".")
        if parts[:2] == ["encoder", "layer"]:
            parts[2] = str(int(parts[2]) * depth // sizes.layers)
        tensor = given[".".join(parts)]
        found[name] = tensor[: like.shape[0]] if like.ndim == 1 else tensor[: like.shape[0], : like.shape[1]]
    return encoder, found


def library_sizes(sizes: SubNetwork) -> Document:
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    return dict(zip(keys, sizes, strict=True))


def attended(encoder: Any, parameters: dict[str, Tensor], ids: Tensor) -> list[Tensor]:
    """Queries, keys and values (B, S, D) of the last layer of the library's encoder with these parameters."""
    found: dict[str, Tensor] = {}
    attention = encoder.encoder.layer[-1].attention.self
    hooks = [
        getattr(attention, name).register_forward_hook(lambda *args, name=name: found.update({name: args[2]}))
        for name in ("query", "key", "value")
    ]
    ends = (ids == 3).long()
    parts = (ends.cumsum(1) - ends).clamp(max=1) * (ids != 0)
    arguments = {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": parts}
    torch.func.functional_call(encoder, parameters, (), arguments)
    for hook in hooks:
        hook.remove()
    return [found[name] for name in ("query", "key", "value")]
