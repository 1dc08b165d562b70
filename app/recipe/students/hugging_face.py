"""Rules of models in the Hugging Face layout: supported model types, and no keys that name code.

Transformers can download and run code that a configuration names. So configurations are read as plain data and checked
by these rules before any library reads them: in the HTTP service, while staging, and again in the trainer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from app.recipe.students.sentence_folder import ENCODER, GENERAL, MODULES, POOLING, require_modules

IMAGE_MODEL_TYPES = (
    *("beit", "bit", "convnext", "convnextv2", "cvt", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers"),
    *("efficientnet", "focalnet", "hiera", "mobilenet_v1", "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer"),
    *("pvt", "pvt_v2", "regnet", "resnet", "segformer", "swiftformer", "swin", "swinv2", "vit", "vit_msn"),
)
"""Values of `model_type` that classify images; each is built from its configuration alone."""
TEXT_MODEL_TYPES = (
    *("albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
    *("mobilebert", "modernbert", "mpnet", "nystromformer", "rembert", "roberta", "roberta-prelayernorm"),
    *("squeezebert", "xlm-roberta"),
)
"""Values of `model_type` that classify or score texts."""
DECODER_MODEL_TYPES = (
    *("gemma", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi", "phi3", "qwen2", "qwen3", "smollm3", "stablelm"),
    "starcoder2",
)
"""Values of `model_type` that generate texts; their logits are one linear layer of the last hidden states, neither
scaled nor capped."""
MODEL_TYPES = (*IMAGE_MODEL_TYPES, *TEXT_MODEL_TYPES, *DECODER_MODEL_TYPES)

MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 4 << 20
"""Most bytes of the index of shards: 40,000 tensors; models that fit a worker have some thousand."""
MAX_DEPTH = 16
"""Most nested levels of lists and objects."""
MAX_LAYERS = 1000
"""Most layers in one number: a network is built layer by layer even without memory."""
MAX_NUMBER = 2**40
"""Largest number: products of such sizes do not overflow."""

_CODE = frozenset(
    {"auto_map", "custom_generate", "custom_pipelines", "trust_remote_code", "use_kernels", "kernel_config"}
    | {"quantization_config", "compression_config", "transformers_weights", "adapter_config"}
    | {"backbone", "use_timm_backbone", "use_pretrained_backbone"}
)
"""Keys that name code, or further files to load."""
_IMPLEMENTATION = re.compile(r".*_implementation(_internal|_autoset)?")
_IMPLEMENTATIONS = (None, True, False, "eager", "sdpa")
"""Accepted implementations; any other name may be a repository with kernels."""
_DTYPES = (None, "auto", "float16", "float32", "float64", "bfloat16")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LAYERS = re.compile(r".*(layers?|blocks?|depths?|repeats|depth_coefficient|inner_group_num|hidden_groups)")
MAX_CONFIG_CHARACTERS = 65_536
SET_FROM_THE_JOB = frozenset(
    {"_name_or_path", "dtype", "id2label", "label2id", "num_labels", "problem_type", "torch_dtype"}
    | {"transformers_version"}
)
"""Keys of a Hugging Face configuration that describe a stored model or its outputs, not its network."""


def parse_object(raw: bytes, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read one JSON object with unique keys. Raises `ValueError` with the reason, for the file's owner."""
    found = _parse(raw, max_bytes)
    if not isinstance(found, dict):
        raise ValueError("is not a JSON object")
    return found


def parse_list(raw: bytes, max_bytes: int = MAX_CONFIG_BYTES) -> list[Any]:
    """Read one JSON list as `parse_object` reads an object."""
    found = _parse(raw, max_bytes)
    if not isinstance(found, list):
        raise ValueError("is not a JSON list")
    return found


def _parse(raw: bytes, max_bytes: int) -> Any:
    if len(raw) > max_bytes:
        raise ValueError(f"has {len(raw)} bytes; accepted: at most {max_bytes}")
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise ValueError("is not text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None
    except RecursionError:
        raise _too_deep() from None
    _require_depth(found)
    return found


def _too_deep() -> ValueError:
    return ValueError(f"nests deeper than {MAX_DEPTH} levels")


def _require_depth(document: Any) -> None:
    """Raise `ValueError` for too many levels; iterative, so that any depth can be checked."""
    level = [document] if isinstance(document, dict | list) else []
    for _ in range(MAX_DEPTH + 2):
        inner: list[Any] = []
        for node in level:
            inner += node.values() if isinstance(node, dict) else node
        level = [node for node in inner if isinstance(node, dict | list)]
        if not level:
            return
    raise _too_deep()


def refuse_code(document: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON document of a model unchanged, unless it names code, an unsupported model type, or excessive sizes.

    Raises `ValueError` naming the key. For every such file (`config.json`, `preprocessor_config.json`,
    `tokenizer_config.json`); `require_model_type` has the additional rule for the first.
    """
    for path, key, value in _entries(document, ""):
        if any(isinstance(text, str) and _SURROGATE.search(text) for text in (key, value)):
            raise ValueError(f"{path!a} holds half of a surrogate pair, which is no character")
        if key in _CODE and value not in (None, False):
            raise ValueError(f"{path} names code or files that would be loaded; accepted: plain settings")
        if _IMPLEMENTATION.fullmatch(key) and value not in _IMPLEMENTATIONS:
            raise ValueError(f"{path} is {value!r}; accepted: eager, sdpa")
        if key in ("dtype", "torch_dtype") and value not in _DTYPES:
            raise ValueError(f"{path} is {value!r}; accepted: float16, float32, float64, bfloat16")
        if key == "model_type" and value not in MODEL_TYPES:
            raise ValueError(f"{path} is {value!r}; accepted: {', '.join(MODEL_TYPES)}")
        _require_bounds(path, key, value)
    return document


def require_model_type(config: dict[str, Any]) -> dict[str, Any]:
    """Return a `config.json` unchanged. Raises `ValueError` unless `refuse_code` accepts it and it has a model type."""
    if "\\u0000" in json.dumps(config):
        raise ValueError("holds the character NUL")
    if "model_type" not in config:
        raise ValueError(f"model_type is missing; accepted: {', '.join(MODEL_TYPES)}")
    return refuse_code(config)


def network_alone(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of a network alone, unchanged. Raises `ValueError` as `require_model_type` does, for a key
    of `SET_FROM_THE_JOB`, and for one that is too long."""
    if keys := sorted(SET_FROM_THE_JOB & config.keys()):
        raise ValueError(f"{keys[0]} is set from the job and its data; leave it out")
    if len(json.dumps(config)) > MAX_CONFIG_CHARACTERS:
        raise ValueError(f"has more than {MAX_CONFIG_CHARACTERS} characters")
    return require_model_type(config)


def _entries(node: object, path: str, depth: int = 0) -> Iterator[tuple[str, str, object]]:
    """Path, key and value of everything in `node`; items of a list have the key of their list."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{path or 'the document'} nests deeper than {MAX_DEPTH} levels")
    if isinstance(node, Mapping):
        for key, value in node.items():
            inner = f"{path}.{key}" if path else key
            yield inner, key, value
            yield from _entries(value, inner, depth + 1)
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _entries(value, f"{path}[{number}]", depth + 1)


def _require_bounds(path: str, key: str, value: object) -> None:
    if key == "model_max_length":  # the library writes 1e30 for a tokenizer without a limit
        return
    numbers = list(_numbers(value))
    if any(not -MAX_NUMBER <= n <= MAX_NUMBER for n in numbers):
        raise ValueError(f"{path} is larger than {MAX_NUMBER}")
    if _LAYERS.fullmatch(key) and sum(abs(n) for n in numbers) > MAX_LAYERS:
        raise ValueError(f"{path} sets more than {MAX_LAYERS} layers")


def _numbers(value: object) -> Iterator[int | float]:
    """The number, or all numbers of a nested list."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("has a key that comes twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"holds {name}, which is not JSON")


MAX_DESCRIPTION_BYTES = 8 << 20
"""Most bytes of the files with class names."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")
CONFIG = "config.json"
DOCUMENTS = {
    CONFIG: MAX_DESCRIPTION_BYTES,
    "stillhouse.json": MAX_DESCRIPTION_BYTES,
    "preprocessor_config.json": MAX_CONFIG_BYTES,
    "tokenizer_config.json": MAX_CONFIG_BYTES,
    "special_tokens_map.json": MAX_CONFIG_BYTES,
    "added_tokens.json": MAX_CONFIG_BYTES,
    **dict.fromkeys((MODULES, POOLING, ENCODER, GENERAL), MAX_CONFIG_BYTES),
}
"""JSON files of a model that are checked by the rules above, with the most bytes of each."""
CARD = "README.md"
"""Model card; only its header is read, which may have the licence."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja")


def is_weights(name: str) -> bool:
    """Whether a file of this name has weights, all of them or a shard."""
    return name == WEIGHTS or _SHARD.fullmatch(name) is not None


def is_model_file(name: str) -> bool:
    """Whether a file of this name belongs to a model; no others are stored or downloaded."""
    return is_weights(name) or name in (INDEX, CARD) or name in DOCUMENTS or name in VOCABULARIES


def chosen(names: Iterable[str]) -> list[str]:
    """The model files of a folder; raises `ValueError` if some are missing."""
    found = {name for name in names if is_model_file(name)}
    if CONFIG not in found:
        raise ValueError(f"there is no {CONFIG}")
    if WEIGHTS in found:
        found = {name for name in found if name == WEIGHTS or not (is_weights(name) or name == INDEX)}
    elif INDEX not in found:
        raise ValueError(f"there are no weights as safetensors: {WEIGHTS}, or {INDEX} and its shards")
    return sorted(found)


def read_index(raw: bytes) -> dict[str, str]:
    """The shard of each tensor, by an index. Raises `ValueError`."""
    placed = parse_object(raw, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ValueError("has no weight_map")
    if wrong := [shard for shard in placed.values() if not isinstance(shard, str) or not _SHARD.fullmatch(shard)]:
        raise ValueError(f"names {str(wrong[0])[:64]!r}, which is no shard such as model-00001-of-00002.safetensors")
    return placed


def check_document(name: str, raw: bytes) -> dict[str, Any]:
    """Read one of `DOCUMENTS`; raises `ValueError` unless it has plain settings of a supported model."""
    if name == MODULES:
        return {"modules": require_modules(parse_list(raw))}
    document = parse_object(raw, DOCUMENTS[name])
    if name == CONFIG and "architecture" not in document:  # else it is this service's, or timm's
        return require_model_type(document)
    if name == GENERAL:
        document.pop("model_type", None)  # there it is the kind of encoder, which has no effect
    return refuse_code(document)
