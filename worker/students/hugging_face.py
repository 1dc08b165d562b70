"""Networks of the Transformers library, built from plain configurations and called with one tensor.

The network is the library's module, with its names of modules and weights; only its `forward` is overridden.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from app.recipe.students.architectures import Transformers
from app.recipe.students.heads import LinearHead, VqLogits
from app.recipe.students.model import ImageInput, Input, TextInput
from app.recipe.students.pooling import Embedding
from worker.errors import UserError
from worker.kernels.linear import as_autocast
from worker.outputs import HiddenStates
from worker.students.heads.vq_logits import CodebookHead
from worker.students.library_codebook import UNTIED, set_codebook
from worker.students.pooling import pool
from worker.students.replaced import replace_layers
from worker.transformers_library import blaming_the_config, library

GENERATION = "generation_config.json"
"""The library's file beside a decoder, for its `generate`."""
UNUSED = "pooler."
"""Prefix of the names of a layer that an embedding encoder does not have, although its file may."""


def build(
    student: Transformers, sample: Input, outputs: int, embedding: Embedding | None = None, *, per_token: bool = False
) -> nn.Module:
    """A fresh network: from pixels (N, C, H, W) float32 or token ids (N, S) int64 to logits or predictions
    (N, outputs), to embeddings of this width as `embedding` describes, or to (N, S, outputs): with `per_token` logits
    of each token, for a decoder at every token those of the next one. All outputs are floating.

    Tokens that are `pad` are masked; for a network with token types, `separator` ends each part of a text. Raises
    UserError (`invalid_architecture`) if the library can't build it.
    """
    with blaming_the_config(student):
        config = library_config(student, sample, outputs)
        kind = network_class(config, student, sample, embedding, per_token=per_token)
        if embedding is not None and config.hidden_size != outputs:
            raise ValueError(f"its embeddings have {config.hidden_size} dimensions, not {outputs}")
        network: nn.Module = kind._from_config(config, **options_of(config, student))
        if isinstance(student.head, VqLogits):
            set_codebook(network, student.head, outputs, decodes=student.decodes)
    return network


def library_config(student: Transformers, sample: Input, outputs: int) -> Any:
    """The library's configuration of a network with so many outputs for such samples. Raises UserError
    (`invalid_architecture`)."""
    arguments = {"architectures": [], **student.config}
    model_type = arguments.pop("model_type")
    known = library().AutoConfig.for_model(model_type)
    arguments |= _from_input(sample, known, arguments)
    _require_positions(student, arguments, known, sample)
    if student.decodes:
        untied = {} if isinstance(student.head, LinearHead) else UNTIED
        return library().AutoConfig.for_model(model_type, **{**arguments, **untied, **_ends(arguments, sample)})
    return library().AutoConfig.for_model(model_type, **arguments, num_labels=outputs)


def _ends(given: Mapping[str, Any], sample: Input) -> dict[str, Any]:
    """Ids that `generate` uses. There is no padding id, because its embedding would not be trained; sequences are
    padded with the token that ends texts."""
    ends = {"bos_token_id": None, "eos_token_id": sample.pad if isinstance(sample, TextInput) else None}
    return {"pad_token_id": None} | {name: value for name, value in ends.items() if given.get(name) is None}


def _from_input(sample: Input, known: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of the network's configuration that follow from the input; `known` has that configuration's defaults.

    A network that numbers positions from the padding id on keeps its configured id: its tokenizer may pad with another
    token, which only affects the mask.
    """
    if isinstance(sample, TextInput):
        pad = given.get("pad_token_id") if counts_from_padding(str(known.model_type)) else None
        found: dict[str, Any] = {"vocab_size": sample.vocabulary, "pad_token_id": sample.pad if pad is None else pad}
    elif isinstance(sample, ImageInput):
        sides = [sample.height, sample.width]
        square = sides[0] == sides[1] and isinstance(getattr(known, "image_size", None), int)
        found = {"num_channels": sample.channels, "image_size": sides[0] if square else sides}
    else:
        raise ValueError("it takes no tables")
    return {name: value for name, value in found.items() if hasattr(known, name)}


def _require_positions(student: Transformers, given: Mapping[str, Any], known: Any, sample: Input) -> None:
    """Raise UserError if a text may have more tokens than the network has positions; RoBERTa and its variants number
    them from the padding id on."""
    default = given.get("n_positions", getattr(known, "max_position_embeddings", None))  # as GPT-2 calls them
    positions = given.get("max_position_embeddings", default)
    if not isinstance(sample, TextInput) or not isinstance(positions, int) or positions < 1:
        return
    needed = sample.length + first_position(student.model_type, given.get("pad_token_id") or 0)
    if positions < needed:
        raise UserError(
            "invalid_architecture",
            f"it has {positions} positions; accepted for texts of {sample.length} tokens: at least {needed}",
            "student.config.max_position_embeddings",
        )


def first_position(model_type: str, pad: int) -> int:
    """Number of positions before the first token's; `pad` is the id in the network's configuration."""
    if model_type == "mpnet":  # the library's class has this number
        return 2
    return pad + 1 if counts_from_padding(model_type) else 0


def counts_from_padding(model_type: str) -> bool:
    """Whether a network numbers positions from its configuration's padding id on."""
    return model_type in ("camembert", "roberta", "roberta-prelayernorm", "xlm-roberta")


def _base_class(config: Any, student: Transformers, *, per_token: bool = False) -> Any:
    table = library().models.auto.modeling_auto
    if student.decodes:
        classes = table.MODEL_FOR_CAUSAL_LM_MAPPING
    elif per_token:
        classes = table.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    elif student.reads == "images":
        classes = table.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    else:
        classes = table.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    found = classes[type(config)]
    several = found if isinstance(found, tuple) else (found,)
    return next((kind for kind in several if kind.__name__ in config.architectures), several[0])


def _encoder_class(config: Any, sample: Input, embedding: Embedding) -> Any:
    """The library's bare encoder, from token ids (N, S) int64 to embeddings (N, D)."""
    base = bare_class(config)
    kinds, options = _kinds_of_parts(base, config), without_pooler(base)
    assert isinstance(sample, TextInput)

    def init(self: Any, config: Any) -> None:
        base.__init__(self, config, **options)

    def forward(self: Any, samples: Tensor) -> Tensor:
        states = base.forward(self, **_text_arguments(samples, sample, kinds)).last_hidden_state
        return pool(states, samples != sample.pad, embedding)

    return type(base.__name__, (base,), {"__init__": init, "forward": forward})


def bare_class(config: Any) -> Any:
    """The library's class of a network without a head, for its configuration."""
    return library().models.auto.modeling_auto.MODEL_MAPPING[type(config)]


def without_pooler(base: Any) -> dict[str, Any]:
    """Argument that leaves out the pooler of the first token; empty if a network has none, or always has one."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(base.__init__).parameters else {}


def network_class(
    config: Any, student: Transformers, sample: Input, embedding: Embedding | None, *, per_token: bool
) -> Any:
    """The library's class with one tensor as input and output; it has the same name, which is stored."""
    if embedding is not None:
        return _encoder_class(config, sample, embedding)
    base = _base_class(config, student, per_token=per_token)
    kinds = _kinds_of_parts(base, config)

    def forward(self: Any, samples: Tensor) -> Tensor:
        if student.decodes:
            next_logits: Tensor = base.forward(self, **_decoder_arguments(samples)).logits
            return next_logits
        if not isinstance(sample, TextInput):
            image_logits: Tensor = base.forward(self, pixel_values=samples).logits
            return image_logits
        logits: Tensor = base.forward(self, **_text_arguments(samples, sample, kinds)).logits
        return logits

    def init(self: Any, config: Any) -> None:
        base.__init__(self, config)
        replace_layers(self, student.replace, sample.length if isinstance(sample, TextInput) else None)

    return type(base.__name__, (base,), {"__init__": init, "forward": forward})


def hidden_states(network: Any, tokens: Tensor) -> HiddenStates:
    """Inputs of a decoder's last layer, and its parameters, for token ids (N, S) int64; all in the dtype of the
    surrounding autocast.

    There is no padding mask: a token attends to all tokens before it.
    """
    return _before_last_layer(network, network.base_model(**_decoder_arguments(tokens)).last_hidden_state)


def _before_last_layer(network: Any, hidden: Tensor) -> HiddenStates:
    layer = network.get_output_embeddings()
    codes = layer.codes if isinstance(layer, CodebookHead) else None
    return HiddenStates(*as_autocast(hidden, layer.weight, layer.bias), codes)


def decode_step(network: Any, tokens: Tensor, kv_cache: Any = None) -> tuple[HiddenStates, Any]:
    """Hidden states for token ids (N, S) int64 that follow the tokens whose keys and values are in `kv_cache`, and the
    cache with theirs added: it is the library's, and changes in place. None: there are no tokens before them.

    All keys and values are kept, even if attention has a limited range: the library would truncate its cache by a
    `sliding_window` of the configuration even if the network has none.
    """
    kv_cache = library().DynamicCache() if kv_cache is None else kv_cache
    outputs = network.base_model(input_ids=tokens, past_key_values=kv_cache, use_cache=True)
    return _before_last_layer(network, outputs.last_hidden_state), kv_cache


def _decoder_arguments(tokens: Tensor) -> dict[str, Any]:
    """Arguments with a mask for a dry run only: without one the library reads the positions' values, which a dry run
    does not have."""
    rows, length = tokens.shape
    mask = {"attention_mask": torch.zeros(rows, 1, length, length, device="meta")} if tokens.is_meta else {}
    return {"input_ids": tokens, "use_cache": False, **mask}


def has_segments(student: Transformers) -> bool:
    """Whether a network of texts has token types, for the part of the text that a token belongs to."""
    config = library().AutoConfig.for_model(**{"architectures": [], **student.config})
    return _kinds_of_parts(_base_class(config, student), config) > 1


def _kinds_of_parts(base: Any, config: Any) -> int:
    takes_them = "token_type_ids" in inspect.signature(base.forward).parameters
    return int(getattr(config, "type_vocab_size", 0)) if takes_them else 0


def _text_arguments(tokens: Tensor, sample: TextInput, kinds: int) -> dict[str, Tensor]:
    if tokens.is_meta:  # the library searches the mask's values for padding, which a dry run does not have
        return {"input_ids": tokens}
    visible = tokens != sample.pad
    arguments = {"input_ids": tokens, "attention_mask": visible.long()}
    if kinds > 1 and sample.separator is not None:
        ends = (tokens == sample.separator).long()
        arguments["token_type_ids"] = (ends.cumsum(1) - ends).clamp(max=kinds - 1) * visible
    return arguments


def options_of(config: Any, student: Transformers) -> dict[str, Any]:
    """Arguments with which the library builds a network: its dtype, and how attention is computed."""
    fused = _base_class(config, student)._supports_sdpa
    return {"dtype": torch.float32, "attn_implementation": "sdpa" if fused else "eager"}
