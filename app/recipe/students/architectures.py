"""Architectures of students, and the parameters of each."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, StringConstraints, model_validator

from app.recipe.base import Answer, InputKind, Option, Paper, TaskOption
from app.recipe.losses.base import Temperature
from app.recipe.students.conversion import Convert
from app.recipe.students.conversion import Shrink as Shrink  # both are imported from here, too
from app.recipe.students.conversion import Width as Width
from app.recipe.students.heads import LIBRARY_HEADS, Head, LinearHead, VqLogits
from app.recipe.students.hugging_face import DECODER_MODEL_TYPES, IMAGE_MODEL_TYPES, network_alone
from app.recipe.students.layers import (
    Activation,
    Attention,
    BatchNorm,
    Gelu,
    ImageNorm,
    LayerNorm,
    MlpActivation,
    Relu,
    SoftmaxAttention,
    TokenNorm,
    by_default,
)
from app.recipe.students.pooling import Pooling
from app.recipe.students.quantisation import Quantisation
from app.recipe.students.reconstruction_settings import Reconstruction
from app.recipe.students.replacements import Replacements, no_replacements
from app.recipe.students.text_transformer import TextTransformer as TextTransformer  # imported from here by all
from app.recipe.students.timm import MODEL_NAME, plain_arguments
from app.recipe.teachers.teacher import Origin


class BuiltIn(Option):
    """Base of the networks of this project."""

    quantise: Quantisation | None = Field(None, exclude_if=lambda value: value is None)
    """Quantisation of its convolutions and linear layers, in training and in the exported model; none: float32."""


class Mlp(BuiltIn):
    """Multi-layer perceptron over the flattened image: linear layers with an activation behind each but the last."""

    architecture: Literal["mlp"] = "mlp"
    hidden: list[Width] = Field(default=[64], max_length=16)
    """Width of each hidden layer, in units; an empty list gives a linear classifier."""
    activation: MlpActivation = by_default(Relu())
    """Activation after each hidden layer."""
    head: Head = by_default(LinearHead())
    """Last layer, from the features to the outputs."""


class CifarResNet(BuiltIn):
    """ResNet for small images: three stages of basic blocks, parameter-free (option A) shortcuts."""

    paper: ClassVar[Paper | None] = Paper("Deep Residual Learning for Image Recognition", "1512.03385")
    architecture: Literal["cifar-resnet"] = "cifar-resnet"
    depth: Literal[8, 14, 20, 32, 44, 56, 110] = 20
    """Number of weighted layers: 6n + 2."""
    width: Width = 16
    """Channels of the first stage; each later stage doubles them."""
    padding: Literal["end", "both"] = "end"
    """Position of a shortcut's zero channels in a wider stage: after the existing channels, or half of them before; the
    paper does not define it, and weights only work with the padding that they were trained with."""
    norm: ImageNorm = by_default(BatchNorm())
    """Norm after each convolution."""
    activation: Activation = by_default(Relu())
    """Activation after the norms; its modules are called `relu` for every kind."""
    head: Head = by_default(LinearHead())
    """Last layer, from the features to the outputs."""


class WideResNet(BuiltIn):
    """Wide residual network: pre-activation basic blocks in three stages, 1x1 shortcuts where the width changes."""

    paper: ClassVar[Paper | None] = Paper("Wide Residual Networks", "1605.07146")
    architecture: Literal["wide-resnet"] = "wide-resnet"
    depth: Literal[10, 16, 22, 28, 40] = 16
    """Number of weighted layers: 6n + 4."""
    widen: int = Field(1, ge=1, le=20)
    """Multiple of the base widths 16, 32, 64."""
    norm: ImageNorm = by_default(BatchNorm())
    """Norm before each activation."""
    activation: Activation = by_default(Relu())
    """Activation after the norms; its modules are called `relu` for every kind."""
    head: Head = by_default(LinearHead())
    """Last layer, from the features to the outputs."""


class Vit(BuiltIn):
    """Small vision transformer: patch embedding, class token, learned positions, pre-norm blocks."""

    paper: ClassVar[Paper | None] = Paper("An Image is Worth 16x16 Words", "2010.11929")
    architecture: Literal["vit"] = "vit"
    patch_size: int = Field(4, ge=1, le=64)
    """Side of a square patch, in pixels; must divide the image's height and width."""
    width: Width = 64
    """Size of a token's embedding; must be a multiple of `heads`, unless there is a `head_size`."""
    depth: int = Field(4, ge=1, le=64)
    """Number of transformer blocks."""
    heads: int = Field(4, ge=1, le=64)
    """Number of attention heads."""
    head_size: Width | None = by_default(None)
    """Numbers of a query, key or value of one head; null: `width / heads`."""
    mlp_ratio: float = Field(4.0, gt=0.0, le=16.0)
    """Width of a block's feed-forward layer as a multiple of `width`."""
    norm: TokenNorm = by_default(LayerNorm())
    """Norm before attention, the feed-forward layers and the classifier."""
    attention: Attention = by_default(SoftmaxAttention())
    """Attention between tokens."""
    activation: Activation = by_default(Gelu())
    """Activation between the two feed-forward layers of a block."""
    head: Head = by_default(LinearHead())
    """Last layer, from the features to the outputs."""


class CifarVgg(BuiltIn):
    """VGG with norms for small images: five stages of 3x3 convolutions, halved after the first three stages."""

    paper: ClassVar[Paper | None] = Paper(
        "Very Deep Convolutional Networks for Large-Scale Image Recognition", "1409.1556"
    )
    architecture: Literal["cifar-vgg"] = "cifar-vgg"
    depth: Literal[8, 11, 13, 16, 19] = 8
    """Number of weighted layers, including the paper's two fully connected ones, which small images do not need."""
    width: Width = 64
    """Channels of the first stage; the next ones have 2, 4, 8 and 8 times as many."""
    norm: ImageNorm = by_default(BatchNorm())
    """Norm after each convolution."""
    activation: Activation = by_default(Relu())
    """Activation after the norms."""
    head: Head = by_default(LinearHead())
    """Last layer, from the features to the outputs."""


class MobileNetV2(BuiltIn):
    """Inverted residual blocks for small images: a stem of stride 2, and two strides fewer than the paper's network."""

    paper: ClassVar[Paper | None] = Paper("MobileNetV2: Inverted Residuals and Linear Bottlenecks", "1801.04381")
    architecture: Literal["mobilenet-v2"] = "mobilenet-v2"
    multiplier: float = Field(0.5, ge=0.1, le=4.0)
    """Multiple of the paper's widths, rounded down."""
    expansion: int = Field(6, ge=1, le=16)
    """Channels inside a block as a multiple of its input channels."""
    norm: ImageNorm = by_default(BatchNorm())
    """Norm after each convolution."""
    activation: Activation = by_default(Relu())
    """Activation after the norms, except for the last one of a block."""
    head: Head = by_default(LinearHead())
    """Last layer, from the features to the outputs."""


class ShuffleNetV2(BuiltIn):
    """Split and shuffled channels for small images: a 1x1 stem without pooling, then the paper's three stages."""

    paper: ClassVar[Paper | None] = Paper(
        "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", "1807.11164"
    )
    architecture: Literal["shufflenet-v2"] = "shufflenet-v2"
    size: Literal["0.5x", "1x", "1.5x", "2x"] = "1x"
    """Row of the paper's table of widths."""
    norm: ImageNorm = by_default(BatchNorm())
    """Norm after each convolution."""
    activation: Activation = by_default(Relu())
    """Activation after the norms, except for those of depthwise convolutions."""
    head: Head = by_default(LinearHead())
    """Last layer, from the features to the outputs."""


class Transformers(Option):
    """A network of the Transformers library, built from its configuration; that library can load its weights."""

    architecture: Literal["transformers"] = "transformers"
    config: Annotated[dict[str, JsonValue], AfterValidator(network_alone)]
    """A `config.json` in the Hugging Face layout, as an object: `model_type` and values that differ from its defaults.
    Values that follow from the data (classes and their names, channels, vocabulary, size of the images) are left out;
    `student_image_size` is the size to which images are resized."""
    head: Head = by_default(LinearHead())
    """Last layer, from the hidden states to the logits of classes or tokens."""
    replace: Replacements = no_replacements()
    """Layers that are built as another kind, in this order; the Transformers library can't load the weights then."""

    @model_validator(mode="after")
    def _has_a_head(self) -> Self:
        if not isinstance(self.head, LIBRARY_HEADS):
            found = f"{self.head.kind} is not for networks of the Transformers library"
            raise ValueError(f"head: {found}; accepted: linear, vq-logits")
        return self

    @property
    def model_type(self) -> str:
        """Type of the network in the library."""
        return str(self.config["model_type"])

    @property
    def reads(self) -> Literal["images", "texts"]:
        """Kind of its samples."""
        return "images" if self.model_type in IMAGE_MODEL_TYPES else "texts"

    @property
    def decodes(self) -> bool:
        """Whether it predicts the next token at every token of a text; else it has one output for a whole sample."""
        return self.model_type in DECODER_MODEL_TYPES


class Timm(Option):
    """A network of the library timm, by its name; that library can load its weights. Needs a worker with timm."""

    architecture: Literal["timm"] = "timm"
    model: Annotated[str, StringConstraints(pattern=MODEL_NAME)]
    """Its name in the library, such as `resnet18` or `convnext_atto`, without a tag of weights; the worker refuses
    names that its version of the library does not have."""
    args: Annotated[dict[str, JsonValue], AfterValidator(plain_arguments)] = {}
    """Arguments of the network that differ from its defaults. Classes, channels and size of the images follow from the
    data."""


class Pretrained(Option, Origin):
    """A stored model that is trained further: its network, weights and preprocessing.

    If its outputs differ from the job's, its last layer is initialised.
    """

    architecture: Literal["pretrained"] = "pretrained"
    replace: Replacements = no_replacements()
    """Layers of a network of the Transformers library that are built as another kind, behind those that already are."""


LabelText = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class DualEncoder(TaskOption):
    """One encoder for texts and for the texts of labels: the logit of a label is the cosine of both vectors, divided by
    the temperature.

    All labels, or `labels_per_step` of them, are encoded in every step, with gradient. The exported model has their
    vectors, and encodes texts alone.
    """

    paper: ClassVar[Paper | None] = Paper("Dual-Encoders for Extreme Multi-Label Classification", "2310.10636")
    answers: ClassVar[frozenset[Answer]] = frozenset({"labels"})
    reads: ClassVar[tuple[InputKind, ...]] = ("texts",)
    architecture: Literal["dual-encoder"] = "dual-encoder"
    encoder: Annotated[Transformers | Pretrained, Field(discriminator="architecture")]
    """A network of the Transformers library that encodes texts, from its configuration; or a stored one, whose weights
    it starts from: an encoder, a classifier of texts, or the encoder of another `dual-encoder`."""
    pooling: Pooling | None = None
    """The vector of a text: the `mean` of the tokens that aren't padding, special ones included, or the first one
    (`cls`); divided by its length. None: as in the stored encoder, else the mean."""
    temperature: Temperature = 0.05
    """Divides the cosines."""
    labels_per_step: Annotated[int, Field(ge=2, le=1 << 24)] | None = Field(
        None, exclude_if=lambda value: value is None
    )
    """Labels that are encoded in a step of the training: those of the batch's samples, and others up to this number,
    drawn anew for every step. The losses are then of these labels alone. None: all of them."""
    label_texts: Annotated[dict[str, LabelText], Field(max_length=1000)] = {}
    """Texts of labels, by the names of the classes; the text of any other class is its name. A text that is longer than
    `data.max_length` tokens loses its end."""

    @model_validator(mode="after")
    def _encodes_texts(self) -> Self:
        network = self.encoder
        if isinstance(network, Transformers) and (network.reads != "texts" or network.decodes):
            raise ValueError(f"encoder: {network.model_type} does not encode texts")
        if network.replace:
            raise ValueError("encoder: replace is not for the encoder of a dual-encoder; accepted: none")
        return self


class InpFormer(Reconstruction, Origin):
    """INP-Former on a stored model: that is the teacher, and stays as it is within the student as its encoder.

    Few prototypes of an image are extracted from the encoder's tokens by cross-attention. A decoder reconstructs the
    encoder's features by attention to them alone, so that it can't pass anomalies on.
    """

    architecture: Literal["inp-former"] = "inp-former"


ZOO = (Mlp, CifarResNet, WideResNet, CifarVgg, MobileNetV2, ShuffleNetV2, Vit, TextTransformer)
"""Networks whose cost is counted from their description."""
ImageEncoder = Annotated[
    CifarResNet | WideResNet | CifarVgg | MobileNetV2 | ShuffleNetV2 | Vit | Transformers | Timm,
    Field(discriminator="architecture"),
]
"""Networks with tokens or maps of an image."""


class InpFormerNetwork(Reconstruction):
    """The network of an `inp-former`, with its encoder."""

    architecture: Literal["inp-former"] = "inp-former"
    encoder: ImageEncoder
    """The frozen network, which is stored with the others' weights."""
    encoder_outputs: int = Field(ge=1)
    """Number of outputs of that network, which are not used."""


Network = Annotated[
    Mlp
    | CifarResNet
    | WideResNet
    | CifarVgg
    | MobileNetV2
    | ShuffleNetV2
    | Vit
    | TextTransformer
    | Transformers
    | Timm
    | DualEncoder
    | InpFormerNetwork,
    Field(discriminator="architecture"),
]
"""Networks that can be built from their description."""


def opens_in_a_library(network: Network) -> bool:
    """Whether a public library can load the weights of a network."""
    return isinstance(network, Timm) or (isinstance(network, Transformers) and not network.replace)


def codebook_of(network: object) -> VqLogits | None:
    """The head of a network or a student, if it is a codebook."""
    head = network.head if isinstance(network, (*ZOO, Transformers)) else None
    return head if isinstance(head, VqLogits) else None


def reads_texts(network: Network) -> bool:
    """Whether the samples of a network are texts."""
    of_the_library = isinstance(network, Transformers) and network.reads == "texts"
    return of_the_library or isinstance(network, DualEncoder | TextTransformer)


Student = Annotated[
    Mlp
    | CifarResNet
    | WideResNet
    | CifarVgg
    | MobileNetV2
    | ShuffleNetV2
    | Vit
    | TextTransformer
    | Transformers
    | Timm
    | Shrink
    | Convert
    | InpFormer
    | Pretrained
    | DualEncoder,
    Field(discriminator="architecture"),
]
"""Students of a job."""
STUDENTS: tuple[type[Option], ...] = (*ZOO, Transformers, Timm, Shrink, Convert, InpFormer, Pretrained, DualEncoder)
