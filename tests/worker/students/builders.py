"""Small models of the Transformers library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from app.recipe.students.architectures import Transformers
from app.recipe.students.model import ImageInput, ModelConfig, Preprocessing, TextInput
from worker.students.model import Model

SIDE, LENGTH, VOCABULARY, PAD, SEPARATOR = 32, 12, 30, 1, 3
_ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
_STAGED = {"hidden_sizes": [8, 16], "depths": [1, 1]}
IMAGE_NETWORKS: dict[str, dict[str, Any]] = {
    "beit": _ENCODER | {"patch_size": 8},
    "convnext": _STAGED | {"num_stages": 2},
    "convnextv2": _STAGED | {"num_stages": 2},
    "deit": _ENCODER | {"patch_size": 8},
    "dinov2": _ENCODER | {"patch_size": 8},
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "poolformer": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "regnet": _STAGED | {"embedding_size": 8, "groups_width": 4},
    "resnet": _STAGED | {"embedding_size": 8, "layer_type": "basic"},
    "segformer": {"hidden_sizes": [8, 8, 8, 8], "decoder_hidden_size": 8, "depths": [1, 1, 1, 1]},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    "swinv2": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    "vit": _ENCODER | {"patch_size": 8},
}
_TEXT = _ENCODER | {"max_position_embeddings": 20}
TEXT_NETWORKS: dict[str, dict[str, Any]] = {
    "albert": _TEXT | {"embedding_size": 8},
    "bert": _TEXT,
    "camembert": _TEXT,
    "deberta-v2": _TEXT,
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 20},
    "electra": _TEXT | {"embedding_size": 8},
    "ernie": _TEXT,
    "modernbert": _TEXT | {"global_attn_every_n_layers": 1},
    "mpnet": _TEXT,
    "rembert": _TEXT | {"input_embedding_size": 8, "output_embedding_size": 8},
    "roberta": _TEXT,
    "xlm-roberta": _TEXT,
}


def network(model_type: str, **changes: Any) -> Transformers:
    """A network of this type, as small as its library allows."""
    sizes = {**IMAGE_NETWORKS, **TEXT_NETWORKS}[model_type]
    return Transformers(config={"model_type": model_type, **sizes, **changes})


def described(student: Transformers, outputs: int = 5, **changes: Any) -> ModelConfig:
    """A classifier of images of 32 x 32, or of texts of 12 tokens."""
    if student.reads == "images":
        sample: Any = ImageInput(channels=3, height=SIDE, width=SIDE)
        preprocessing = Preprocessing(scale=1 / 255, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.1])
    else:
        sample, preprocessing = TextInput(length=LENGTH, vocabulary=VOCABULARY, pad=PAD, separator=SEPARATOR), None
    task: Any = f"{student.reads[:-1]}-classification"
    fields = {"task": task, "input": sample, "preprocessing": preprocessing, "classes": outputs, **changes}
    return ModelConfig(architecture=student, **fields)


def model(model_type: str, **changes: Any) -> Model:
    """A model with random weights, for evaluation."""
    torch.manual_seed(0)
    return Model(described(network(model_type, **changes))).eval()


def samples(config: ModelConfig, count: int = 2) -> Tensor:
    """Raw pixels, or token ids whose second half is padding in every other text."""
    random = torch.Generator().manual_seed(1)
    if isinstance(config.input, ImageInput):
        shape = (count, config.input.channels, config.input.height, config.input.width)
        return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
    assert isinstance(config.input, TextInput)
    tokens = torch.randint(4, config.input.vocabulary, (count, config.input.length), generator=random)
    tokens[::2, LENGTH // 2 :] = PAD
    tokens[:, 3] = SEPARATOR
    return tokens


_DECODER = _ENCODER | {"max_position_embeddings": 20}
_SHARED = {"num_key_value_heads": 1}
DECODERS: dict[str, dict[str, Any]] = {
    "gemma": _DECODER | _SHARED | {"head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 20},
    "gpt_neox": _DECODER,
    "llama": _DECODER | _SHARED,
    "mistral": _DECODER | _SHARED,
    "olmo2": _DECODER | _SHARED,
    "phi": _DECODER | _SHARED,
    "phi3": _DECODER | _SHARED,
    "qwen2": _DECODER | _SHARED,
    "qwen3": _DECODER | _SHARED | {"head_dim": 8},
    "smollm3": _DECODER | _SHARED,
    "stablelm": _DECODER | _SHARED,
    "starcoder2": _DECODER | _SHARED,
}


def decoder(model_type: str, **changes: Any) -> Model:
    """A language model with random weights, for evaluation."""
    torch.manual_seed(0)
    student = Transformers(config={"model_type": model_type, **DECODERS[model_type], **changes})
    sample = TextInput(length=LENGTH, vocabulary=VOCABULARY, pad=2)
    return Model(ModelConfig(task="causal-lm", architecture=student, input=sample)).eval()
