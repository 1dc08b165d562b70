"""Networks of the Transformers library, built from plain configurations and called with one tensor.

The network is the library's own module, with its names of modules and weights; only its call is ours.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from app.recipe.students.architectures import Transformers
from app.recipe.students.model import ImageInput, Input, ModelConfig, TextInput
from app.recipe.students.pooling import Embedding
from worker.errors import UserError
from worker.kernels.linear import as_autocast
from worker.outputs import HiddenStates
from worker.students.leftovers import leftovers
from worker.students.pooling import pool
from worker.transformers_library import blaming_the_config, library

ONE_FILE = "1000GB"
GENERATION = "generation_config.json"
"""What the library writes beside a decoder, for its `generate`."""
SLACK = 1_000_000
"""Weights that a file may lack before its network is built at all, so that each one can be named."""
UNUSED = "pooler."
"""Begins the names of a layer that an encoder of vectors does not have, although its file may."""


class Misfit(Exception):
    """Weights don't fit the network; the text names the first of them."""


def build(
    student: Transformers, sample: Input, outputs: int, embedding: Embedding | None = None, *, per_token: bool = False
) -> nn.Module:
    """A fresh network: pixels (N, C, H, W) float or token ids (N, S) int64 to logits or numbers (N, outputs), to
    vectors of this width as `embedding` describes, or to (N, S, outputs): with `per_token` logits of each token, of a
    decoder at every token those of the next one.

    Tokens that are `pad` are not attended to; a network that tells parts of a text apart is told them by `separator`.
    Raises UserError (`invalid_architecture`) when the library can't build it.
    """
    with blaming_the_config(student):
        config = _library_config(student, sample, outputs)
        kind = _network_class(config, student, sample, embedding, per_token=per_token)
        if embedding is not None and config.hidden_size != outputs:
            raise ValueError(f"its vectors have {config.hidden_size} numbers, not {outputs}")
        network: nn.Module = kind._from_config(config, **_options(config, student))
    return network


def from_state(config: ModelConfig, state: Mapping[str, Tensor]) -> tuple[nn.Module, list[str]]:
    """The network of `config` with stored weights, under the library's present or former names, in float32; and the
    names of those that were passed over, because its pretraining had left them.

    Raises Misfit, or UserError as `build` does.
    """
    network, found = _loaded(config, state)
    ignored = _leftovers(network, found)
    _require_all({**found, "unexpected_keys": set(found["unexpected_keys"]) - set(ignored)})
    return network, ignored


def _leftovers(network: Any, found: Mapping[str, Any]) -> list[str]:
    table = library().models.auto.modeling_auto
    return leftovers(found["unexpected_keys"], network.config, network.base_model_prefix, table)


@torch.no_grad()
def start_from(network: nn.Module, config: ModelConfig, state: Mapping[str, Tensor]) -> list[str]:
    """Copy stored weights into a fresh `network` of `config`. What a network of one answer has behind its body stays
    fresh where the stored one has another answer, or none. Returns names as `from_state` does; raises Misfit, or
    UserError as `build` does."""
    loaded, found = _loaded(config, state)
    ignored = _leftovers(loaded, found)
    found = {**found, "unexpected_keys": set(found["unexpected_keys"]) - set(ignored)}
    wrong = {key: [each for each in found[key] if not _is_answer(each, loaded, config)] for key in _FAULTS}
    _require_all({**found, **wrong})
    fresh = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    stored = loaded.state_dict()
    for name, tensor in network.state_dict().items():
        if name not in fresh:
            tensor.copy_(stored[name])
    return ignored


_FAULTS = ("missing_keys", "mismatched_keys", "unexpected_keys")


def _is_answer(fault: Any, network: Any, config: ModelConfig) -> bool:
    """Whether a fault is about a tensor that makes the answer to another question than the job's."""
    name: str = fault if isinstance(fault, str) else fault[0]
    behind = config.has_head and not name.startswith(f"{network.base_model_prefix}.")
    return behind or UNUSED in name


def _loaded(config: ModelConfig, state: Mapping[str, Tensor]) -> tuple[nn.Module, Mapping[str, Any]]:
    """The network with what fits of `state`, and what does not."""
    student = config.architecture
    assert isinstance(student, Transformers)
    _require_enough(config, state)
    with blaming_the_config(student):
        described = _library_config(student, config.input, config.outputs)
        if config.embedding is not None and _without_pooler(_bare_class(described)):
            state = {name: tensor for name, tensor in state.items() if not name.startswith(UNUSED)}
        per_token = config.task_spec.per_token
        kind = _network_class(described, student, config.input, config.embedding, per_token=per_token)
        options = {"output_loading_info": True, "ignore_mismatched_sizes": True, **_options(described, student)}
        return kind.from_pretrained(None, config=described, state_dict=dict(state), **options)  # type: ignore[no-any-return]


def save(network: nn.Module, config: ModelConfig, folder: Path) -> None:
    """Write the library's `config.json`, with the names of the classes, and `model.safetensors` into `folder`."""
    described: Any = network.config
    if config.has_head:
        _name_answers(described, config)
    library()
    network.save_pretrained(folder, max_shard_size=ONE_FILE)  # type: ignore[operator]  # of PreTrainedModel


def _name_answers(described: Any, config: ModelConfig) -> None:
    names = config.class_names or [f"LABEL_{number}" for number in range(config.outputs)]
    described.id2label = dict(enumerate(names))
    described.label2id = {name: number for number, name in enumerate(names)}
    described.problem_type = config.task_spec.problem_type


def _library_config(student: Transformers, sample: Input, outputs: int) -> Any:
    given = {"architectures": [], **student.config}
    model_type = given.pop("model_type")
    known = library().AutoConfig.for_model(model_type)
    given |= _from_input(sample, known, given)
    _require_room(student, given, known, sample)
    if student.decodes:
        return library().AutoConfig.for_model(model_type, **{**given, **_ends(given, sample)})
    return library().AutoConfig.for_model(model_type, **given, num_labels=outputs)


def _ends(given: Mapping[str, Any], sample: Input) -> dict[str, Any]:
    """Ids that `generate` looks at. None is padding: its embedding would not learn, and what fills up a sequence is the
    token that ends texts."""
    ends = {"bos_token_id": None, "eos_token_id": sample.pad if isinstance(sample, TextInput) else None}
    return {"pad_token_id": None} | {name: value for name, value in ends.items() if given.get(name) is None}


def _from_input(sample: Input, known: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What of the input the network's configuration has a word for; `known` holds that configuration's defaults.

    A network that numbers positions from the padding's id on keeps the id that it was given: its tokenizer may pad
    with another token, which the mask alone minds.
    """
    if isinstance(sample, TextInput):
        told = given.get("pad_token_id") if counts_from_padding(str(known.model_type)) else None
        found: dict[str, Any] = {"vocab_size": sample.vocabulary, "pad_token_id": sample.pad if told is None else told}
    elif isinstance(sample, ImageInput):
        sides = [sample.height, sample.width]
        square = sides[0] == sides[1] and isinstance(getattr(known, "image_size", None), int)
        found = {"num_channels": sample.channels, "image_size": sides[0] if square else sides}
    else:
        raise ValueError("it takes no tables")
    return {name: value for name, value in found.items() if hasattr(known, name)}


def _require_room(student: Transformers, given: Mapping[str, Any], known: Any, sample: Input) -> None:
    """Positions that a text may have; RoBERTa and its kin number them from the padding's id on."""
    told = given.get("n_positions", getattr(known, "max_position_embeddings", None))  # as GPT-2 calls them
    positions = given.get("max_position_embeddings", told)
    if not isinstance(sample, TextInput) or not isinstance(positions, int) or positions < 1:
        return
    needed = sample.length + first_position(student.model_type, given.get("pad_token_id") or 0)
    if positions < needed:
        raise UserError(
            "invalid_architecture",
            f"it has {positions} positions, and texts of {sample.length} tokens need {needed}",
            "student.config.max_position_embeddings",
        )


def first_position(model_type: str, pad: int) -> int:
    """Positions that come before the first token's; `pad` is the id in the network's configuration."""
    if model_type == "mpnet":  # whose library class has the number itself
        return 2
    return pad + 1 if counts_from_padding(model_type) else 0


def counts_from_padding(model_type: str) -> bool:
    """Whether a network numbers positions from the padding's id in its configuration on."""
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
    """The library's bare encoder, from token ids to vectors of texts."""
    base = _bare_class(config)
    kinds, options = _kinds_of_parts(base, config), _without_pooler(base)
    assert isinstance(sample, TextInput)

    def init(self: Any, config: Any) -> None:
        base.__init__(self, config, **options)

    def forward(self: Any, samples: Tensor) -> Tensor:
        states = base.forward(self, **_text_arguments(samples, sample, kinds)).last_hidden_state
        return pool(states, samples != sample.pad, embedding)

    return type(base.__name__, (base,), {"__init__": init, "forward": forward})


def _bare_class(config: Any) -> Any:
    return library().models.auto.modeling_auto.MODEL_MAPPING[type(config)]


def _without_pooler(base: Any) -> dict[str, Any]:
    """What leaves the layer behind the first token out; empty where a network has none, or can't do without."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(base.__init__).parameters else {}


def _network_class(
    config: Any, student: Transformers, sample: Input, embedding: Embedding | None, *, per_token: bool
) -> Any:
    """The library's class, called with one tensor and answering with one; it has the same name, which is stored."""
    if embedding is not None:
        return _encoder_class(config, sample, embedding)
    base = _base_class(config, student, per_token=per_token)
    kinds = _kinds_of_parts(base, config)

    def forward(self: Any, samples: Tensor) -> Tensor:
        if student.decodes:
            following: Tensor = base.forward(self, **_decoder_arguments(samples)).logits
            return following
        if not isinstance(sample, TextInput):
            answer: Tensor = base.forward(self, pixel_values=samples).logits
            return answer
        scores: Tensor = base.forward(self, **_text_arguments(samples, sample, kinds)).logits
        return scores

    return type(base.__name__, (base,), {"forward": forward})


def hidden_states(network: Any, tokens: Tensor) -> HiddenStates:
    """What a decoder's last layer is given for token ids (N, S); all of it in the dtype of an autocast around the call.

    There is no mask: a token sees all that come before it.
    """
    hidden = network.base_model(**_decoder_arguments(tokens)).last_hidden_state
    layer = network.get_output_embeddings()
    return HiddenStates(*as_autocast(hidden, layer.weight, layer.bias))


def decode_step(network: Any, tokens: Tensor, memory: Any = None) -> tuple[HiddenStates, Any]:
    """The same for token ids (N, S) that come behind all that `memory` has the keys and values of; and the memory, now
    with theirs: it is the library's own, and changes in place. None: there is nothing before them.

    Nothing is forgotten, also where attention reaches back so far only: the library would cut what it keeps by a
    `sliding_window` of the configuration even where the network has none.
    """
    memory = library().DynamicCache() if memory is None else memory
    said = network.base_model(input_ids=tokens, past_key_values=memory, use_cache=True)
    layer = network.get_output_embeddings()
    return HiddenStates(*as_autocast(said.last_hidden_state, layer.weight, layer.bias)), memory


def _decoder_arguments(tokens: Tensor) -> dict[str, Any]:
    """Without a mask, the library looks at the positions' values, which a dry run does not have."""
    rows, length = tokens.shape
    mask = {"attention_mask": torch.zeros(rows, 1, length, length, device="meta")} if tokens.is_meta else {}
    return {"input_ids": tokens, "use_cache": False, **mask}


def tells_parts_apart(student: Transformers) -> bool:
    """Whether a network of texts reads of each token which part of the text it belongs to."""
    config = library().AutoConfig.for_model(**{"architectures": [], **student.config})
    return _kinds_of_parts(_base_class(config, student), config) > 1


def _kinds_of_parts(base: Any, config: Any) -> int:
    takes_them = "token_type_ids" in inspect.signature(base.forward).parameters
    return int(getattr(config, "type_vocab_size", 0)) if takes_them else 0


def _text_arguments(tokens: Tensor, sample: TextInput, kinds: int) -> dict[str, Tensor]:
    if tokens.is_meta:  # the library looks for padding in the mask's values, which a dry run does not have
        return {"input_ids": tokens}
    seen = tokens != sample.pad
    arguments = {"input_ids": tokens, "attention_mask": seen.long()}
    if kinds > 1 and sample.separator is not None:
        ends = (tokens == sample.separator).long()
        arguments["token_type_ids"] = (ends.cumsum(1) - ends).clamp(max=kinds - 1) * seen
    return arguments


def _options(config: Any, student: Transformers) -> dict[str, Any]:
    fused = _base_class(config, student)._supports_sdpa
    return {"dtype": torch.float32, "attn_implementation": "sdpa" if fused else "eager"}


def _require_enough(config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """A description of far more weights than there are costs no memory: the network is built without any first."""
    with torch.device("meta"):
        answer = config.outputs, config.embedding
        network = build(config.architecture, config.input, *answer, per_token=config.task_spec.per_token)  # type: ignore[arg-type]
    needed = sum(parameter.numel() for parameter in network.parameters())
    stored = sum(tensor.numel() for tensor in state.values())
    if needed > 2 * stored + SLACK:
        raise Misfit(f"holds {stored} weights, the configuration describes {needed}")


def _require_all(found: Mapping[str, Any]) -> None:
    for name in sorted(found["missing_keys"]):
        raise Misfit(f"lacks the tensor {name!r}")
    for name, stored, expected in sorted(found["mismatched_keys"]):
        raise Misfit(f"tensor {name!r} has shape {tuple(stored)}, not {tuple(expected)}")
    for name in sorted(found["unexpected_keys"]):
        raise Misfit(f"has a tensor {name!r} that the architecture has no place for")
    for message in found["error_msgs"]:
        raise Misfit(message)
