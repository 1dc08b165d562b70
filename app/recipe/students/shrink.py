"""Networks of students that are smaller copies of a teacher, and the parts of it: pure arithmetic on descriptions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args

from app.recipe.job import JobSpec
from app.recipe.students.architectures import (
    CifarResNet,
    Network,
    Shrink,
    Transformers,
    Vit,
    WideResNet,
    codebook_of,
)
from app.recipe.students.layers import NormSpec
from app.recipe.students.model import ModelConfig
from app.recipe.students.shapes import WRN_BASE, basic_blocks, feed_forward_width
from app.recipe.students.started import Unshrinkable as Unshrinkable  # imported from here by the rules
from app.recipe.students.sub_spaces import SubNetwork


class Encoder(NamedTuple):
    """Keys of a model type's sizes in its configuration, and their defaults."""

    layers: str = "num_hidden_layers"
    width: str = "hidden_size"
    heads: str = "num_attention_heads"
    hidden: str = "intermediate_size"
    defaults: tuple[int, int, int, int] = (12, 768, 12, 3072)
    """A feed-forward width of 0 is four times the width."""
    shared: int | None = None
    """Default number of heads of keys and values, each shared by several heads of queries; none: as many as of
    queries."""
    size: int | None = None
    """Default size of a head; none: the heads make up the width."""
    free: bool = False
    """Whether a configuration can set the size of a head, so that heads need not make up the width."""
    divides: bool = False
    """Whether the library still requires that the number of heads divides the width."""
    gated: bool = False
    """Whether a feed-forward layer has a third matrix, for its gates."""

    def sizes(self, config: dict[str, Any]) -> tuple[int, int, int, int]:
        """Layers, width, heads and feed-forward width. Raises `Unshrinkable`."""
        named = zip(self[:4], self.defaults, strict=True)
        depth, width, heads, hidden = (whole_size(config, name, default) for name, default in named)
        return depth, width, heads, hidden or 4 * width


def whole_size(config: Mapping[str, Any], name: str, default: int) -> int:
    """A size from a configuration, or `default`. Raises `Unshrinkable` if it is no whole number above 0."""
    size = config.get(name) or default
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        found = f"is shrink, and the teacher's configuration has {size!r} as {name}"
        raise Unshrinkable("architecture", found, "a teacher whose sizes are whole numbers")
    return size


class Heads(NamedTuple):
    """Attention heads that are kept in each layer, by their numbers in the teacher."""

    queries: list[int]
    shared: list[int]
    """Heads of keys and values."""
    of: int
    """Number of the teacher's heads."""
    of_shared: int
    size: int


LAYER = re.compile(r"^(blocks\.|stages\.\d+\.|(?:.+\.)?(?:layers?|h)\.)(\d+)(\..+)$")
"""Prefix, layer number and rest of a weight's name, in this project's and the library's networks."""
_BERT = Encoder()
ONE_TO_ONE = ("gpt2", "gpt_neox")
"""Decoders whose configurations have no heads that share keys and values."""
SHARED_HEADS, HEAD_SIZE = "num_key_value_heads", "head_dim"
PER_LAYER = ("layer_types", "no_rope_layers")
"""Keys of a configuration with a list of one value per layer."""
ENCODERS: dict[str, Encoder] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "vit", "deit"), _BERT),
    "electra": Encoder(defaults=(12, 256, 4, 1024)),
    "distilbert": Encoder("n_layers", "dim", "n_heads", "hidden_dim", (6, 768, 12, 3072)),
    "gpt2": Encoder("n_layer", "n_embd", "n_head", "n_inner", (12, 768, 12, 0)),
    "gpt_neox": Encoder(defaults=(44, 6144, 64, 24576)),
    "gemma": Encoder(defaults=(28, 3072, 16, 24576), shared=16, size=256, free=True, gated=True),
    "llama": Encoder(defaults=(32, 4096, 32, 11008), free=True, gated=True, divides=True),
    "mistral": Encoder(defaults=(32, 4096, 32, 14336), shared=8, free=True, gated=True),
    "olmo2": Encoder(defaults=(32, 4096, 32, 11008), free=True, gated=True),
    "phi": Encoder(defaults=(24, 2048, 32, 8192), free=True),
    "phi3": Encoder(defaults=(32, 3072, 32, 8192), free=True, gated=True),
    "qwen2": Encoder(defaults=(32, 4096, 32, 22016), shared=32, free=True, gated=True),
    "qwen3": Encoder(defaults=(32, 4096, 32, 22016), shared=32, size=128, free=True, gated=True),
    "smollm3": Encoder(defaults=(36, 2048, 16, 11008), shared=4, free=True, gated=True),
    "stablelm": Encoder(defaults=(32, 2560, 32, 6912), shared=32, gated=True),
    "starcoder2": Encoder(defaults=(30, 3072, 24, 12288), shared=2, free=True),
}
"""Encoders and decoders of the Transformers library that can be shrunk."""
SLICED = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")
"""Encoders of texts whose smaller networks are leading slices of larger ones in every weight."""


def sized(student: Shrink, job: JobSpec, teacher: Network) -> Shrink:
    """`student` with the sizes that it is trained in: given, or those of the largest network that the method searches
    in its first sub-space. Raises `Unshrinkable`."""
    if not job.recipe.method.sub_spaces:
        return student
    return in_sizes(student, sub_networks(job, teacher)[0][0])


def in_sizes(student: Shrink, sizes: SubNetwork) -> Shrink:
    """`student` in the sizes of a sub-network."""
    return student.model_copy(update={"layers": sizes.layers, "width": sizes.width, "hidden": sizes.hidden})


def resized_model(config: ModelConfig, sizes: SubNetwork) -> ModelConfig:
    """Description of a model of one of `SLICED` in other sizes; embeddings are as wide as its tokens."""
    network = config.architecture
    assert isinstance(network, Transformers)  # by the caller
    keys, values = ENCODERS[network.model_type][:4], (sizes.layers, sizes.width, sizes.heads, sizes.hidden)
    smaller = Transformers(config={**network.config, **dict(zip(keys, values, strict=True))})
    targets = config.targets if config.embedding is None else sizes.width
    return config.model_copy(update={"architecture": smaller, "targets": targets})


def sub_networks(job: JobSpec, teacher: Network) -> list[list[SubNetwork]]:
    """The networks of every sub-space of the method, the largest first. Raises `Unshrinkable`."""
    _refuse_replaced(teacher)
    if not isinstance(teacher, Transformers) or teacher.model_type not in SLICED:
        name = teacher.model_type if isinstance(teacher, Transformers) else teacher.architecture
        found = f"a teacher of type {name} has no sub-networks that are leading slices"
        raise Unshrinkable("architecture", found, f"a teacher of type {', '.join(SLICED)}")
    layers, width, heads, hidden = ENCODERS[teacher.model_type].sizes(teacher.config)
    whole = SubNetwork(layers, width, heads, hidden)
    return [space.networks(whole) for space in job.recipe.method.sub_spaces]


def shrunk(student: Shrink, teacher: Network) -> Network:
    """The architecture that `student` describes. Raises `Unshrinkable`."""
    _refuse_replaced(teacher)
    if (head := codebook_of(teacher)) is not None:
        found = f"a teacher with the head {head.kind} can't be shrunk"
        raise Unshrinkable("architecture", found, "a teacher with a row of weights for every output")
    if isinstance(teacher, CifarResNet):
        return _cifar_resnet(student, teacher)
    if isinstance(teacher, WideResNet):
        return _wide_resnet(student, teacher)
    if isinstance(teacher, Vit):
        return _vit(student, teacher)
    if isinstance(teacher, Transformers) and teacher.model_type in ENCODERS:
        return _of_the_library(student, teacher)
    name = teacher.model_type if isinstance(teacher, Transformers) else teacher.architecture
    known = ", ".join(["cifar-resnet", "wide-resnet", "vit", *(name for name in ENCODERS if name != "vit")])
    raise Unshrinkable("architecture", f"a teacher of type {name} can't be shrunk", f"a teacher of type {known}")


def _refuse_replaced(teacher: Network) -> None:
    """Whether its layers have the weights of other kinds, which are not sliced. Raises `Unshrinkable`."""
    if isinstance(teacher, Transformers) and teacher.replace:
        found = "the teacher has replaced layers, whose weights are not sliced"
        raise Unshrinkable("architecture", found, "a teacher without")


def kept_layers(student: Shrink, depth: int) -> list[int]:
    """Numbers of the teacher's `depth` layers that are kept, ascending. Raises `Unshrinkable`."""
    layers = depth if student.layers is None else student.layers
    if isinstance(layers, list):
        if layers[-1] >= depth:
            raise Unshrinkable("layers", f"names layer {layers[-1]}; the teacher has {depth}", f"0 to {depth - 1}")
        return layers
    if layers > depth:
        raise Unshrinkable("layers", f"is {layers}; the teacher has {depth}", f"1 to {depth}")
    return [round(i * (depth - 1) / max(layers - 1, 1)) for i in range(layers)]


def teacher_depth(teacher: Network) -> int:
    """Layers of a teacher that can be shrunk; of a residual network, blocks of each stage."""
    if isinstance(teacher, Transformers):
        return ENCODERS[teacher.model_type].sizes(teacher.config)[0]
    if isinstance(teacher, CifarResNet | WideResNet):
        return basic_blocks(teacher)
    return teacher.depth if isinstance(teacher, Vit) else 0


def _blocks(student: Shrink, teacher: CifarResNet | WideResNet) -> int:
    for field in ("hidden", "heads"):
        if getattr(student, field) is not None:
            raise Unshrinkable(field, f"is not for {teacher.architecture}", "layers and width")
    kept = kept_layers(student, basic_blocks(teacher))
    if kept[0] != 0:
        raise Unshrinkable("layers", "leaves out the first block of a stage, which changes the width", "0, ...")
    return len(kept)


def _depth(layers: int, allowed: tuple[int, ...]) -> Any:
    if layers not in allowed:
        raise Unshrinkable("layers", f"leaves {layers} weighted layers", f"one of {', '.join(map(str, allowed))}")
    return layers


def _cifar_resnet(student: Shrink, teacher: CifarResNet) -> CifarResNet:
    allowed = get_args(CifarResNet.model_fields["depth"].annotation)
    depth = _depth(6 * _blocks(student, teacher) + 2, allowed)
    width = _narrower(student, teacher.width)
    if width < teacher.width and teacher.padding == "both":
        raise Unshrinkable("width", "moves what the teacher's shortcuts pad on both sides", str(teacher.width))
    _require_groups(teacher.norm, width)
    return CifarResNet(**{**dict(teacher), "depth": depth, "width": width})


def _require_groups(norm: NormSpec, width: int) -> None:
    if not norm.divides(width):
        found = f"is {width}, which the groups of the teacher's norm do not divide"
        raise Unshrinkable("width", found, "a multiple of its groups")


def _wide_resnet(student: Shrink, teacher: WideResNet) -> WideResNet:
    allowed = get_args(WideResNet.model_fields["depth"].annotation)
    depth = _depth(6 * _blocks(student, teacher) + 4, allowed)
    width = _narrower(student, WRN_BASE * teacher.widen)
    if width % WRN_BASE:
        raise Unshrinkable("width", f"is {width}", f"a multiple of {WRN_BASE}")
    return WideResNet(**{**dict(teacher), "depth": depth, "widen": width // WRN_BASE})


def _vit(student: Shrink, teacher: Vit) -> Vit:
    if teacher.head_size is not None:
        found = "is shrink, and the heads of the teacher, a converted one, do not make up its width"
        raise Unshrinkable("architecture", found, "the model that the teacher was converted from")
    narrower = next((field for field in ("width", "heads") if getattr(student, field) is not None), None)
    if narrower and not teacher.attention.narrows:
        found = f"is given, and attention {teacher.attention.kind} has no smaller copy of its heads"
        raise Unshrinkable(narrower, found, "null; layers and hidden can be reduced")
    heads = kept_heads(student, teacher)
    assert heads is not None
    width = _narrower(student, teacher.width)
    _require_groups(teacher.norm, width)
    hidden = _hidden(student, feed_forward_width(teacher), width, teacher.width)
    depth = len(kept_layers(student, teacher.depth))
    sizes: dict[str, Any] = {"width": width, "depth": depth, "heads": len(heads.queries), "mlp_ratio": hidden / width}
    return Vit(**{**dict(teacher), **sizes})


def _of_the_library(student: Shrink, teacher: Transformers) -> Transformers:
    encoder, heads = ENCODERS[teacher.model_type], kept_heads(student, teacher)
    assert heads is not None
    depth, whole, _, hidden = encoder.sizes(teacher.config)
    kept, width = kept_layers(student, depth), _narrower(student, whole)
    sizes = (len(kept), width, len(heads.queries), _hidden(student, hidden, width, whole))
    config: dict[str, Any] = {**teacher.config, **dict(zip(encoder[:4], sizes, strict=True))}
    if teacher.decodes and teacher.model_type not in ONE_TO_ONE:
        config[SHARED_HEADS] = len(heads.shared)
    if encoder.free and heads.size * len(heads.queries) != width:
        config[HEAD_SIZE] = heads.size
    lists = {key: config[key] for key in PER_LAYER if isinstance(config.get(key), list)}
    config |= {key: [each[layer] for layer in kept] for key, each in lists.items() if len(each) == depth}
    return Transformers(config=config)


def kept_heads(student: Shrink, teacher: Network) -> Heads | None:
    """Heads of a transformer that are kept; none: the teacher is no transformer. Raises `Unshrinkable`."""
    if isinstance(teacher, Vit):
        count = teacher.heads
        whole = Heads([], [], count, count, teacher.width // count)
        return _chosen(student, whole, teacher.width, Encoder(), teacher.architecture)
    if not isinstance(teacher, Transformers):
        return None
    encoder = ENCODERS[teacher.model_type]
    width = encoder.sizes(teacher.config)[1]
    return _chosen(student, all_heads(teacher), width, encoder, teacher.model_type)


def all_heads(network: Transformers) -> Heads:
    """Numbers and size of the heads of one of `ENCODERS`; the lists of kept heads are empty."""
    encoder, config = ENCODERS[network.model_type], dict[str, Any](network.config)
    _, width, count, _ = encoder.sizes(config)
    shared = whole_size(config, SHARED_HEADS, encoder.shared or count)
    size = whole_size(config, HEAD_SIZE, encoder.size or width // count) if encoder.free else width // count
    if size < 1:
        found = f"is shrink, and the teacher's configuration has {count} heads for a width of {width}"
        raise Unshrinkable("architecture", found, "a teacher whose heads have a width")
    return Heads([], [], count, shared, size)


def _chosen(student: Shrink, whole: Heads, width: int, encoder: Encoder, name: str) -> Heads:
    """The kept heads of `whole`, whose lists are empty; raises `Unshrinkable` if the network can't have them."""
    narrow = _narrower(student, width)
    queries, blamed = _queries(student, whole.of, width, narrow), "width" if student.heads is None else "heads"
    count = len(queries)
    if student.heads is not None and not encoder.free and count * whole.size != narrow:
        found = f"leaves {count}, and the heads of a {name}, of {whole.size} each, make up its width of {narrow}"
        raise Unshrinkable("heads", found, f"{narrow / whole.size:g} of them, or width {count * whole.size}")
    shared = _shared(queries, whole, blamed)
    if encoder.divides and narrow % count:
        raise Unshrinkable(blamed, f"leaves {count} heads for a width of {narrow}", "as many as divide the width")
    return whole._replace(queries=queries, shared=shared)


def _queries(student: Shrink, count: int, width: int, narrow: int) -> list[int]:
    if student.heads is None:
        head = width // count
        if narrow % head:
            raise Unshrinkable("width", f"is {narrow}, and a head of the teacher has {head}", f"a multiple of {head}")
        return list(range(narrow // head))
    given = student.heads if isinstance(student.heads, list) else list(range(student.heads))
    if given[-1] < count:
        return given
    if isinstance(student.heads, list):
        raise Unshrinkable("heads", f"names head {given[-1]}; the teacher has {count}", f"0 to {count - 1}")
    raise Unshrinkable("heads", f"is {student.heads}; the teacher has {count}", f"1 to {count}")


def _shared(queries: list[int], whole: Heads, blamed: str) -> list[int]:
    """Heads of keys and values for the kept heads of queries."""
    sharing = max(1, whole.of // whole.of_shared)
    counts = Counter(head // sharing for head in queries)
    if len(set(counts.values())) > 1:
        found = f"leaves {len(queries)} heads, and {sharing} share their keys: of some that share them more are left"
        raise Unshrinkable(blamed, found, f"as many of each {sharing}, such as a multiple of {sharing} leading ones")
    return sorted(counts)


def _hidden(student: Shrink, hidden: int, narrow: int, width: int) -> int:
    inner = student.hidden or max(1, hidden * narrow // width)
    if inner > hidden:
        raise Unshrinkable("hidden", f"is {inner}, wider than the teacher's {hidden}", f"1 to {hidden}")
    return inner


def _narrower(student: Shrink, width: int) -> int:
    if student.width is not None and student.width > width:
        raise Unshrinkable("width", f"is {student.width}, wider than the teacher's {width}", f"1 to {width}")
    return student.width or width
