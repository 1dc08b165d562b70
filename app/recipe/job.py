"""The job document."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints

from app.recipe.base import Positive, Spec
from app.recipe.card import Card
from app.recipe.data.hard_negatives import HardNegatives
from app.recipe.data.pseudo_labels import PseudoLabels
from app.recipe.data.sources import AnyData, Table
from app.recipe.diagnostics import Diagnostic
from app.recipe.losses import Loss
from app.recipe.methods import Method
from app.recipe.methods.supervised import Supervised
from app.recipe.optimizers import AdamW, Constant, Optimizer, Schedule
from app.recipe.stage import StageSpec
from app.recipe.students.architectures import DualEncoder, InpFormer, Pretrained, Student
from app.recipe.students.inputs import Side
from app.recipe.students.pooling import Embedding
from app.recipe.tasks import TaskName, task_of
from app.recipe.tasks.base import TaskSpec
from app.recipe.teachers.cache import DenseCache, TeacherCache
from app.recipe.teachers.teacher import TEACHER, Origin, Teacher, TeacherShare, Weighting

MAX_SEED = 2**63 - 1
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,63}$")]
LabelValue = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=16)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
RequiredMetrics = Annotated[dict[str, Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, max_length=16)]
Queue = Literal["any", "cpu", "gpu"]
Sharding = Literal["none", "fsdp"]
PointNumber = Annotated[int, Field(ge=0, le=32_767)]
ExportFormat = Literal["safetensors", "onnx", "onnx-int8", "torch-export", "integer", "spiking"]


def _go_together(formats: list[str]) -> list[str]:
    if "safetensors" not in formats:
        raise ValueError("must include safetensors: it is what the service keeps as the job's model")
    if "onnx-int8" in formats and "onnx" not in formats:
        raise ValueError("must include onnx where it includes onnx-int8, which is made from it")
    if len(set(formats)) != len(formats):
        raise ValueError("names a format twice")
    return formats


def _differ(numbers: list[int] | None) -> list[int] | None:
    if numbers is not None and (len(numbers) != 2 or numbers[0] == numbers[1]):
        raise ValueError("must be two different numbers")
    return numbers


class Checkpointing(Spec):
    """Intervals of checkpoints; whichever comes first counts."""

    every_steps: int | None = Field(None, ge=1)
    """Optimizer steps between two checkpoints."""
    every_seconds: Positive | None = 60.0
    """Seconds between two checkpoints."""


class Recipe(Spec):
    """Losses, optimizer and schedule: how the student is trained."""

    losses: list[Loss] = Field(default=[], max_length=16)
    """Terms of the objective; their weighted sum is minimised. At least one, or none for a method that has its own,
    which is `hpm`."""
    stages: list[StageSpec] = Field(default=[], max_length=8)
    """Stages before this main training, in this order."""
    method: Method = Supervised()
    """Method of the main training: on the data alone (`supervised`), or a program that changes the loop, such as texts
    that the student (`on-policy`) or a teacher (`sequence-level`) generates for it. Earlier stages are always
    supervised."""
    optimizer: Optimizer = AdamW()
    """Optimizer; default: by the student, as `validate` shows, and this one for a convolutional network from
    scratch."""
    schedule: Schedule = Constant()
    """Learning-rate schedule; default: by the student, as for the optimizer."""
    epochs: int = Field(10, ge=1, le=100_000)
    """Passes over the training set; default: 3 for a pretrained transformer, 10 for any other student."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps after which training ends, regardless of `epochs`."""
    batch_size: int = Field(128, ge=1, le=1_048_576)
    """Samples per optimizer step."""
    samples_per_class: int | None = Field(None, ge=2, le=1024)
    """For image-embedding: batches of `batch_size / samples_per_class` classes with so many samples of each, drawn from
    the seed; all classes are equally frequent, and in an epoch, as long as without it, a sample may appear several
    times or not at all. None: each sample once, in a random order."""
    hard_negatives: HardNegatives | None = None
    """For batches by class (`samples_per_class`): their classes are such as the student confuses. None: classes take
    turns at random."""
    pseudo_labels: PseudoLabels | None = None
    """For self-supervised with `ntxent`: batches without two images of one pseudo label; none: random batches."""
    accumulate: int = Field(1, ge=1, le=1024)
    """Micro-batches that one batch is split into; needs less memory, and does not change a step (except that batch norm
    normalises each part separately)."""
    clip_norm: Positive | None = None
    """Largest global norm of the gradient; none: not clipped."""
    ema_decay: float | None = Field(None, gt=0.0, lt=1.0)
    """Decay of an exponential moving average of the weights, normalised to the steps done; the average is then
    evaluated and exported."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass: bf16 runs under autocast, the weights stay fp32."""
    channels_last: bool = False
    """Channels-last memory format for images and convolutions of student and teachers, which is faster on tensor cores
    and many CPUs."""
    compile: bool = False
    """Compiles the student for training (`torch.compile`) before the first step, which takes a minute for a deep
    network. On a GPU its launches are replayed as CUDA graphs, unless there are micro-batches or losses on features."""
    checkpoint: Checkpointing = Checkpointing()
    """Intervals of checkpoints."""

    @property
    def views(self) -> int:
        """Augmented views of each sample in a batch: as many as the loss with the most compares."""
        objectives = [self.losses, *(stage.losses for stage in self.stages)]
        return max((term.views for losses in objectives for term in losses), default=1)

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Those of all stages, by the path of their field."""
        own = {f"recipe.stages[{index}].optimizer": stage.optimizer for index, stage in enumerate(self.stages)}
        return {"recipe.optimizer": self.optimizer} | {path: each for path, each in own.items() if each is not None}

    @property
    def main_stages(self) -> list[StageSpec]:
        """The stages of the main training: one, unless the method divides it."""
        return self.method.main_stages(self)

    @property
    def all_stages(self) -> list[StageSpec]:
        """Those that come before the main training, and its own."""
        return [*self.stages, *self.main_stages]


class EvaluationSpec(Spec):
    """Evaluation of the student."""

    every_epochs: int = Field(1, ge=1)
    """Epochs between two evaluations; the last epoch is always evaluated."""
    ece_bins: int = Field(15, ge=1, le=1000)
    """Confidence bins of the calibration errors: equally wide ones, and ones with equally many samples."""
    prompts: int = Field(3, ge=0, le=64)
    """For causal-lm: beginnings of held-out texts that student and teacher continue by greedy decoding, side by side in
    the report."""
    prompt_tokens: int = Field(16, ge=1, le=4096)
    """Tokens of each beginning."""
    new_tokens: int = Field(48, ge=1, le=4096)
    """Tokens that are generated after it; fewer if the model takes no more."""
    nme_points: Annotated[Annotated[list[PointNumber], Field(max_length=2)] | None, AfterValidator(_differ)] = None
    """Numbers, from 0, of the two points whose distance normalises the errors of keypoints; of 68 facial points 36 and
    45 are the outer corners of the eyes. None: the root of the area of the smallest upright box around all points."""
    keep: Literal["last", "best"] = "last"
    """Which weights are exported: those after the last step, or those of the evaluated epoch that was best by the
    task's main metric (accuracy and then nll, entity_f1 of tags that mark entities, rmse, nme, perplexity, of
    texts' embeddings spearman, without scores mrr, of images' map_at_r; self-supervised linear_accuracy, without
    labels view_recall_at_1; of anomalies image_auroc, without any reconstruction_cosine). The report has both."""
    require_teacher: RequiredMetrics | None = None
    """Requirements on each teacher on the held-out samples before training begins, by the names of the task's metrics,
    such as `{accuracy: 0.5}`: a minimum for shares and correlations, a maximum for errors. A teacher that does not meet
    them ends the job (`weak_teacher`). None: there is only a warning about a teacher that is hardly better than
    none."""
    diagnostics: list[Diagnostic] = Field(default=[], max_length=16)
    """Analyses of the exported student beyond these metrics, for the report: figures, tables and pictures."""


class Resources(Spec):
    """Machines and time limits of the job."""

    queue: Queue = "any"
    """Kind of machine."""
    processes: int = Field(1, ge=1, le=64)
    """Processes of one machine that train together. Each computes its share of every batch, so that batches, their
    order and the step are those of a single process (except that batch norm normalises each share separately). Each
    holds all samples."""
    nodes: int = Field(1, ge=1, le=1024)
    """Machines, each with this number of processes; for workers with helper machines (`STILLHOUSE_WORKER_NODES`)."""
    sharding: Sharding = "none"
    """Sharding over several processes: each holds the whole model, or with `fsdp` a shard of every weight, its gradient
    and optimizer state, and of the teachers' weights."""
    max_seconds: Positive = 86_400.0
    """Longest time of training over all attempts, in seconds; after that the job fails."""
    max_queue_seconds: Positive = 604_800.0
    """Longest wait for a worker, in seconds; after that the job expires."""
    max_attempts: int = Field(3, ge=1, le=100)
    """Failed attempts after which the job fails. Pauses, hand-backs and attempts that were ended from outside (a lost
    machine, a killed process) don't count."""

    @property
    def size(self) -> int:
        """Processes that train together, on all machines."""
        return self.nodes * self.processes


class JobSpec(Spec):
    """A distillation job, or a plain supervised one without a teacher."""

    task: TaskName = "image-classification"
    """Task of the student."""
    name: Name | None = None
    """Name to find the job by; names may repeat."""
    labels: Labels = {}
    """Free key-value pairs to find the job by."""
    data: AnyData
    """Training and evaluation data."""
    teacher: Teacher | None = None
    """The teacher."""
    teachers: list[Teacher] = Field(default=[], max_length=8)
    """Several teachers, instead of `teacher`."""
    teacher_weighting: Weighting = "fixed"
    """Weighting of several teachers in a loss: by their weights alone, or also by their confidence in a sample: the
    weight is multiplied by exp(-entropy) of the prediction. The resulting shares add up to 1."""
    teacher_cache: TeacherCache = DenseCache()
    """Cache of the teachers' outputs on the worker, for later epochs and for other jobs with the same teacher and
    samples. For losses on a teacher's activations the teacher runs on every batch, and nothing is cached."""
    student: Student
    """The network to train."""
    student_image_size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    """Height and width, in pixels, to which the student's images are resized; none: those of the data, or of the model
    that the student starts from. Teachers get the size that they were trained on."""
    embedding: Embedding | None = None
    """For the tasks `embedding`, `image-embedding` and `self-supervised`: the student's vector of a sample; none: as in
    the model that it starts from, else of a text the mean of its tokens, and of an image 128 numbers."""
    recipe: Recipe
    """How the student is trained."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """Evaluation of the student."""
    export: Annotated[list[ExportFormat], Field(max_length=8), AfterValidator(_go_together)] | None = None
    """Formats of the exported student: `torch-export` for `torch.export.load`; `onnx-int8` is the ONNX graph with
    weights of 8 bits, whose outputs differ slightly (the report has the difference). None: safetensors and ONNX, for a
    built-in network also `torch-export`; formats that can't represent the student are left out with a warning."""
    card: Card = Card()
    """Fields of the model card that can't be measured."""
    resources: Resources = Resources()
    """Machines and time limits of the job."""
    priority: int = Field(50, ge=0, le=100)
    """Higher runs first within a queue."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of all random draws; none: one is drawn and recorded."""

    def settled(self, seed: int, day: date) -> Self:
        """A copy with seed, and the date for chat templates, filled in."""
        settled = self.model_copy(update={"seed": seed})
        dated = "data.chat_date" in self.task_spec.options
        if dated and isinstance(self.data, Table) and self.data.chat_date is None:
            settled = settled.model_copy(update={"data": self.data.model_copy(update={"chat_date": day})})
        return settled

    @property
    def task_spec(self) -> TaskSpec:
        """Its task."""
        return task_of(self.task)

    @property
    def all_teachers(self) -> list[Teacher]:
        """The teacher, or all of several."""
        return self.teachers or ([self.teacher] if self.teacher else [])

    @property
    def declared_outputs(self) -> int | None:
        """Number of the student's outputs from the document; none: it follows from the data or a model."""
        dimensions = self.embedding.dimensions if self.embedding else None
        return self.data.declared_classes or dimensions

    @property
    def trained_teacher(self) -> str | None:
        """Name of the teacher that learns together with the student; none: all teachers stay as they are."""
        if not self.recipe.method.trains_teacher:
            return None
        return next((teacher.name for teacher in self.all_teachers), TEACHER)

    @property
    def teacher_shares(self) -> list[TeacherShare]:
        """The shares of all teachers in the losses, also of one that starts from random weights."""
        stored = [TeacherShare(teacher.name, teacher.weight) for teacher in self.all_teachers]
        return stored or ([TeacherShare(self.trained_teacher)] if self.trained_teacher else [])

    def teacher_named(self, name: str) -> Teacher:
        """The teacher called `name`."""
        return next(teacher for teacher in self.all_teachers if teacher.name == name)

    def arithmetic_of(self, name: str) -> str:
        """Arithmetic of the teacher called `name`, as text: fp32 weights under autocast differ from bf16 weights, and
        another memory format sums in another order."""
        teacher = self.teacher_named(name)
        layout = ", channels last" if self.recipe.channels_last else ""
        arithmetic = f"{teacher.precision} weights" if teacher.lowered else teacher.precision or self.recipe.precision
        return arithmetic + layout

    @property
    def origins(self) -> dict[str, Origin]:
        """Stored models that the job reads, teachers before a student, by the path of the field that describes each."""
        found: dict[str, Origin] = {self.teacher_path(index): each for index, each in enumerate(self.all_teachers)}
        return found | ({self.start_path: self.student_origin} if self.student_origin is not None else {})

    @property
    def start(self) -> Pretrained | None:
        """The stored model whose weights the student, or its encoder, starts from; none: there is no such model."""
        own = self.student.encoder if isinstance(self.student, DualEncoder) else self.student
        return own if isinstance(own, Pretrained) else None

    @property
    def student_origin(self) -> Pretrained | InpFormer | None:
        """The stored model that the student starts from, or has within it as its frozen encoder."""
        return self.student if isinstance(self.student, InpFormer) else self.start

    @property
    def start_path(self) -> str:
        """Path of the field that describes this model."""
        return "student.encoder" if isinstance(self.student, DualEncoder) else "student"

    @property
    def start_param(self) -> str:
        """Path of the field with the source of this model; if there is none, of the network."""
        return f"{self.start_path}.{self.student_origin.source}" if self.student_origin else self.start_path

    @property
    def files(self) -> dict[str, str]:
        """Files of samples, by the path of the field that names them."""
        return self.data.files | self.diagnostic_files

    @property
    def diagnostic_files(self) -> dict[str, str]:
        """Those that diagnostics name."""
        return {
            f"evaluation.diagnostics[{index}].{name}": reference
            for index, diagnostic in enumerate(self.evaluation.diagnostics)
            for name, reference in diagnostic.files.items()
        }

    @property
    def references(self) -> dict[str, str]:
        """Inputs that are stored in the service, by the path of the field that names them."""
        models = {f"{path}.{origin.source}": origin.model for path, origin in self.origins.items()}
        return self.files | {param: reference for param, reference in models.items() if reference is not None}

    def teacher_path(self, index: int) -> str:
        """Path of the field that describes a teacher."""
        return f"teachers[{index}]" if self.teachers else "teacher"

    def teacher_param(self, index: int) -> str:
        """Path of the field with a teacher's source."""
        return f"{self.teacher_path(index)}.{self.all_teachers[index].source}"

    @property
    def objectives(self) -> dict[str, list[Loss]]:
        """The losses of every stage, by the path of their field; the main training's come last."""
        stages = {f"recipe.stages[{index}].losses": stage.losses for index, stage in enumerate(self.recipe.stages)}
        return {**stages, "recipe.losses": self.recipe.losses}
