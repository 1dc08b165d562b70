"""Sources and formats of a job's samples."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from app.recipe.base import Fraction, Reference, Spec
from app.recipe.data.augmentation import Augment
from app.recipe.data.classes import ClassName, ClassOrder
from app.recipe.data.mining import Mining
from app.recipe.data.targets import SoftLandmarks
from app.recipe.data.tokenizers import Tokenizer

Key = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00]+$")]
Shade = Annotated[int, Field(ge=0, le=255)]
Side = Annotated[int, Field(ge=1, le=4096)]
SplitName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


def _day(given: Any) -> Any:
    """Text as a date, which strict validation would only accept from JSON."""
    try:
        return date.fromisoformat(given) if isinstance(given, str) else given
    except ValueError:
        raise ValueError("is no day such as 2025-12-31") from None


Day = Annotated[date, BeforeValidator(_day)]


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("names a column twice")
    return names


def _mixes_last(steps: list[Augment]) -> list[Augment]:
    mixing = [step.mixes for step in steps]
    if mixing != sorted(mixing):
        raise ValueError("what mixes samples (mixup, cutmix, self-mix) must come last")
    return steps


Columns = Annotated[list[Key], Field(min_length=1, max_length=4096), AfterValidator(_each_once)]
MaybeColumns = Annotated[list[Key], Field(max_length=4096), AfterValidator(_each_once)]
Candidates = Annotated[list[Key], Field(max_length=2), AfterValidator(_each_once)]


ColumnsField = Literal["input_columns", "label_columns", "candidate_columns"]
"""Fields with columns, which may be others in the file to evaluate on."""


class Data(Spec):
    """Fields of all formats."""

    file_formats: ClassVar[tuple[str, ...]] = ()
    """Detected types of uploaded files of this format."""

    train: Reference
    """File with the samples to train on."""

    eval: Reference | None = None
    """File with the samples to evaluate on; none: a share of `train` is held out."""

    classes: int | None = Field(None, ge=2, le=100_000)
    """Number of classes; none: the teacher's, or as many as have names, or else the largest label plus one."""

    class_order: ClassOrder | Literal["teacher"] | None = None
    """Names of the classes in the order of their numbers. It names the labels of files with numbers, and the outputs of
    teachers without names; for files with names it selects and orders the student's classes, and further classes of a
    teacher are left out. `teacher`: the list of the (first) teacher, whose numbers are the labels. None: the names in
    the files, matched with those of teachers; if one has names and the other numbers, the job is refused."""

    eval_fraction: Fraction = 0.2
    """Share of `train` held out when `eval` is not given (stratified by class, drawn from the seed); for
    image-embedding whole classes."""

    unseen_classes: int | None = Field(None, ge=2, le=100_000)
    """For image-embedding without `eval`: number of the classes of `train`, drawn from the seed, that are not trained
    on, and whose samples are all held out for evaluation; none: `eval_fraction` of the classes."""

    normal_classes: Annotated[list[ClassName], Field(min_length=1, max_length=1000)] | None = None
    """For anomaly-detection: the classes of normal images, by name, or by number as text; images of all others are
    anomalous. None: `0`, `normal` and `good`."""

    augment: Annotated[list[Augment], Field(max_length=16), AfterValidator(_mixes_last)] = []
    """Augmentations of training samples, applied one after the other. Of several that mix samples, one is drawn for
    each sample."""

    targets_transform: SoftLandmarks | None = None
    """Transforms the training targets of keypoints and regression; evaluation targets are not changed."""

    augment_epochs: int | None = Field(None, ge=1, le=100_000)
    """Epochs after which the draws repeat, so that a teacher's outputs can be cached; none: every epoch has new
    draws."""

    further_files: ClassVar[tuple[str, ...]] = ("corpus", "label_texts")
    """Fields that name files beside those of samples, in formats that have them."""

    @classmethod
    def format_name(cls) -> str:
        """The value of `format` for this class."""
        return str(get_args(cls.model_fields["format"].annotation)[0])

    @property
    def declared_classes(self) -> int | None:
        """Number of classes from the document; none: it follows from the data or a teacher."""
        return len(self.class_order) if isinstance(self.class_order, list) else self.classes

    @property
    def holds_out(self) -> bool:
        """True if the evaluation samples are taken from `train`."""
        return self.eval is None

    @property
    def files(self) -> dict[str, str]:
        """Files to read, by the path of the field that names them."""
        named = {f"data.{name}": getattr(self, name, None) for name in ("train", "eval", *self.further_files)}
        return {param: reference for param, reference in named.items() if reference is not None}

    def at(self, param: str) -> Self:
        """The settings for the file that the field `param` names."""
        return self

    def has_pairs(self, param: str = "data.train") -> bool:
        """Whether a sample of the file that the field `param` names has two inputs."""
        return False

    def is_evaluated(self, param: str) -> bool:
        """Whether samples of the file that the field `param` names are evaluated on."""
        return param == "data.eval" or self.holds_out

    def is_labelled(self, param: str) -> bool:
        """Whether labels are read from the file that the field `param` names: not from one of a diagnostic."""
        return param.startswith("data.")

    @model_validator(mode="after")
    def _cycles_something(self) -> Self:
        if self.augment_epochs is not None and not self.augment:
            raise ValueError("augment_epochs is given, but augment is empty")
        return self


class Pictures(Data):
    """Formats of encoded images (PNG, JPEG, WebP, BMP), which are turned upright by their EXIF orientation."""

    image_size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    """Height and width, in pixels, to which images are resized; required if their sizes differ."""

    channels: Literal[1, 3] | None = None
    """1: images are read as grey, 3: as red, green and blue; none: grey if all of them are."""

    background: Annotated[list[Shade], Field(min_length=3, max_length=3)] = [255, 255, 255]
    """Red, green and blue of the background of transparent images."""


class Texts(Data):
    """Formats that may have texts."""

    tokenizer: Tokenizer | None = None
    """The student's tokenizer; none: the teacher's, or without a teacher a WordPiece tokenizer trained on the training
    texts, and for causal-lm byte pairs with capitals."""

    max_length: int = Field(128, ge=4, le=8192)
    """Most tokens of a text (or of a pair), special ones included; longer ones are truncated. For causal-lm: tokens of
    a sequence, into which texts are packed without losing any."""


class Table(Texts):
    """Formats with named columns."""

    input_columns: Columns
    """Columns of the model's inputs: one of texts, two for pairs of texts, one of images, for image-embedding also two
    for pairs of images, or any number of columns of numbers. For causal-lm one column of texts, or of chats: lists of
    messages with `role` and `content`, of which the messages of the role `assistant` are learned. For
    token-classification one column of lists of words."""

    label_columns: MaybeColumns = []
    """Columns of the targets: one of classes (whole numbers from 0, or names), or columns of numbers. For
    multi-label-classification a column of 0 and 1 for each class, with its name, or one column of lists of names;
    for token-classification one column of lists of tags, one for every word. For keypoints in the order x, y of each
    point, as fractions of the image's width and height. For image-embedding one of classes, or of pairs one of 1 if
    both images are of one class and 0 if not. For embeddings the score of a pair, or the list of the scores of all
    candidates in their order, positives first, if there are scores; for causal-lm none: a text is its own target; for
    self-supervised one of classes, for evaluation alone, or none; for anomaly-detection one of classes, or none if all
    images are normal. Required for all other tasks."""

    candidate_columns: Candidates = []
    """For embeddings: columns of lists of texts, the candidates for the query in `input_columns`: one column whose
    first text is the positive and whose others are negatives, or two, of positives and of negatives. Shorter lists are
    padded to the longest of the file. Not in CSV."""

    chat_date: Day | None = None
    """For causal-lm: the date, at midnight, for chat templates that use the current time (`strftime_now`); none: the
    date on which the job is created, which is recorded."""

    eval_input_columns: Columns | None = None
    """For embeddings: the two columns of texts in `eval`, or the one of its queries, if they differ from those of
    `train`; for image-embedding the one or two of images. None: as in `train`."""

    eval_label_columns: MaybeColumns | None = None
    """For embeddings the column of scores in `eval`, for image-embedding that of its classes or pairs, if it differs
    from that of `train`; none: as in `train`."""

    eval_candidate_columns: Candidates | None = None
    """For embeddings: the columns of candidates in `eval`, if they differ from those of `train`; an empty list: it has
    none; none: as in `train`."""

    corpus: Reference | None = None
    """For embeddings: file with further texts, one in each row, among which the queries of `eval` search; in the same
    format. None: they search among the candidates, or second texts, of `eval` alone."""

    corpus_column: Key = "text"
    """Column of the texts in `corpus`."""

    label_texts: Reference | None = None
    """For a student `dual-encoder`: file with the text of each label, one label in each row; in the same format. It may
    have more labels than the data. None: the text of a label is its name, if `student.label_texts` has no other."""

    label_text_columns: Annotated[list[Key], Field(min_length=2, max_length=2), AfterValidator(_each_once)] = [
        "label",
        "text",
    ]
    """Columns of the labels' names and of their texts in `label_texts`."""

    mining: Mining | None = None
    """For embeddings of pairs or of queries with candidates: before training, the teacher, or without one the student
    as it starts, finds hard negatives for each query of `train` among the second texts or candidates of all. They
    replace the negatives of `train`. None: there is no mining."""

    @property
    def source_columns(self) -> list[str]:
        """Columns that a model's inputs are made of."""
        return [*self.input_columns, *self.candidate_columns]

    def has_pairs(self, param: str = "data.train") -> bool:
        return len(self.at(param).input_columns) == 2

    def at(self, param: str) -> Self:
        alone = {"data.corpus": [self.corpus_column], "data.label_texts": self.label_text_columns}
        if param in alone:
            columns: dict[str, Any] = {"input_columns": alone[param], "label_columns": [], "candidate_columns": []}
            return self.model_copy(update=columns)
        if not self.is_labelled(param):
            return self.model_copy(update={"label_columns": []})
        if param != "data.eval":
            return self
        own = {name: getattr(self, f"eval_{name}") for name in get_args(ColumnsField)}
        return self.model_copy(update={field: names for field, names in own.items() if names is not None})

    def field(self, name: ColumnsField, param: str) -> str:
        """Path of the field with these columns, for the file that the field `param` names."""
        own = getattr(self, f"eval_{name}")
        return f"data.{'eval_' if param == 'data.eval' and own is not None else ''}{name}"


class ImageData(Data):
    """Images or tables of numbers in NumPy archives (`.npz`)."""

    file_formats: ClassVar[tuple[str, ...]] = ("npz",)

    format: Literal["npz"] = "npz"
    """File format: a NumPy archive with one array of samples and one of labels."""

    input_key: Key = "x"
    """Name of the array of samples: images (N, H, W) or (N, H, W, C), or rows of numbers (N, D); uint8 or floating
    point."""

    label_key: Key = "y"
    """Name of the array of labels: (N,) integers from 0 to classes - 1; for multi-label-classification (N, C) of 0 and
    1, also as booleans; for regression numbers (N,) or (N, T); for keypoints (N, K, 2), x before y, as fractions of the
    image's width and height. For self-supervised, and of normal images for anomaly-detection, a file may be without
    it."""

    second_key: Key | None = None
    """For image-embedding: name of the array of the second images of pairs, of the shape and type of the first ones;
    labels are then 1 if both images are of one class and 0 if not. None: samples are single images."""

    eval_second_key: Key | None = None
    """For image-embedding: the same for `eval`, to evaluate on pairs; none: as in `train`."""

    mask_key: Key | None = None
    """For anomaly-detection: name of the array of masks (N, H, W) in the file to evaluate on, integers or booleans that
    are not 0 at anomalous pixels; none: pixels are not evaluated."""

    layout: Literal["NHWC", "NCHW"] = "NHWC"
    """Order of the axes of a four-dimensional array of images."""

    def has_pairs(self, param: str = "data.train") -> bool:
        return self.at(param).second_key is not None

    def at(self, param: str) -> Self:
        if param != "data.eval" or self.eval_second_key is None:
            return self
        return self.model_copy(update={"second_key": self.eval_second_key})


class PictureTable(Table, Pictures):
    """Formats with named columns that may have encoded images."""

    mask_column: Key | None = None
    """For anomaly-detection: column of masks in the file to evaluate on, encoded images of the images' sizes that are
    brighter than half at anomalous pixels; none: pixels are not evaluated."""


class ParquetData(PictureTable):
    """A Parquet file. Images are columns of encoded bytes, or of structs with a field `bytes`."""

    file_formats: ClassVar[tuple[str, ...]] = ("parquet",)
    format: Literal["parquet"]
    """File format."""


class CsvData(Table):
    """Rows of text with a header line, in UTF-8, plain or packed by gzip."""

    file_formats: ClassVar[tuple[str, ...]] = ("text", "gzip")
    format: Literal["csv"]
    """File format."""
    delimiter: Literal[",", ";", "\t", "|"] = ","
    """Separator of values."""
    quoted: bool = True
    """Values may be in double quotes; false: a quote is an ordinary character."""
    label_separator: Annotated[str, Field(min_length=1, max_length=8, pattern=r"^[^\x00-\x08\x0a-\x1f]+$")] | None = (
        None
    )
    """For multi-label-classification: separator of the names of classes in one value of the label column; none: `|`. A
    value without a name is a sample without labels."""

    @property
    def separates_labels(self) -> str:
        """Separator of the names of classes."""
        return self.label_separator or "|"


class JsonlData(Table):
    """One JSON object per line, in UTF-8, plain or packed by gzip."""

    file_formats: ClassVar[tuple[str, ...]] = ("text", "gzip")
    format: Literal["jsonl"]
    """File format."""


class ImageFolderData(Pictures):
    """An archive (tar, tar.gz or zip) with a folder of images for each class; a folder's name is its class's name.

    A single folder around all others is skipped.
    """

    file_formats: ClassVar[tuple[str, ...]] = ("tar", "gzip", "zip")
    format: Literal["image-folder"]
    """File format."""


class HfData(PictureTable):
    """A data set of Hugging Face `datasets`, written by `save_to_disk` and packed as tar, tar.gz or zip."""

    file_formats: ClassVar[tuple[str, ...]] = ("tar", "gzip", "zip")
    format: Literal["hf-dataset"]
    """File format."""
    split: SplitName | None = None
    """Split to train on, of a file with several."""
    eval_split: SplitName | None = None
    """Split to evaluate on, of `eval` or else of `train`."""

    @property
    def holds_out(self) -> bool:
        return self.eval is None and self.eval_split is None


def _npz_by_default(given: Any) -> Any:
    return {"format": "npz", **given} if isinstance(given, dict) else given


AnyData = Annotated[
    Annotated[ImageData | ParquetData | CsvData | JsonlData | ImageFolderData | HfData, Field(discriminator="format")],
    BeforeValidator(_npz_by_default),
]
FORMATS: tuple[type[Data], ...] = (ImageData, ParquetData, CsvData, JsonlData, ImageFolderData, HfData)
