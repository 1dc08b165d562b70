"""The job: everything that a client may say when it asks for a model."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints

from app.recipe.base import Positive, Spec
from app.recipe.card import Card
from app.recipe.data.sources import AnyData, Table
from app.recipe.diagnostics import Diagnostic
from app.recipe.losses import Loss
from app.recipe.methods import Method
from app.recipe.methods.supervised import Supervised
from app.recipe.optimizers import AdamW, Constant, Optimizer, Schedule
from app.recipe.stage import StageSpec
from app.recipe.students.architectures import Pretrained, Student
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
ExportFormat = Literal["safetensors", "onnx", "onnx-int8", "torch-export"]


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
    """How often the state of training is saved; whichever comes first counts."""

    every_steps: int | None = Field(None, ge=1)
    """Optimizer steps between two checkpoints."""
    every_seconds: Positive | None = 60.0
    """Seconds between two checkpoints."""


class Recipe(Spec):
    """Losses, optimizer and schedule: how the student is trained."""

    losses: list[Loss] = Field(min_length=1, max_length=16)
    """Terms of the objective; their weighted sum is minimised."""
    stages: list[StageSpec] = Field(default=[], max_length=8)
    """What comes before this main training, in this order."""
    method: Method = Supervised()
    """How the main training takes its steps: on the data alone (`supervised`), or by a program that changes the loop,
    such as texts that the student (`on-policy`) or a teacher (`sequence-level`) generates for it. Stages before it are
    always supervised."""
    optimizer: Optimizer = AdamW()
    """What turns gradients into steps; none given: what the student wants, as `validate` tells, and this one for a
    convolutional network from scratch."""
    schedule: Schedule = Constant()
    """How the learning rate changes over the training; none given: what the student wants, as of the optimizer."""
    epochs: int = Field(10, ge=1, le=100_000)
    """Passes over the training set; none given: 3 of a pretrained transformer, 10 of any other student."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps after which training ends, whatever `epochs` says."""
    batch_size: int = Field(128, ge=1, le=1_048_576)
    """Samples per optimizer step."""
    accumulate: int = Field(1, ge=1, le=1024)
    """Micro-batches that one batch is split into; lowers memory, leaves a step unchanged (but batch norm
    sees each part alone)."""
    clip_norm: Positive | None = None
    """Largest global norm of the gradient; none: not clipped."""
    ema_decay: float | None = Field(None, gt=0.0, lt=1.0)
    """Decay of an exponential moving average of the weights, normalised to the steps done; it is then what is evaluated
    and exported."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass: bf16 runs under autocast, the weights stay fp32."""
    channels_last: bool = False
    """Lays images and convolutions of student and teachers out with the channels last, which tensor cores and many CPUs
    prefer."""
    compile: bool = False
    """Compiles the student for training (`torch.compile`); the first step waits for it, a minute for a deep network.
    On a GPU its launches are then replayed as CUDA graphs, unless there are micro-batches or losses look inside it."""
    checkpoint: Checkpointing = Checkpointing()
    """How often the state of training is saved."""

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
    """How the student is judged."""

    every_epochs: int = Field(1, ge=1)
    """Epochs between two evaluations; the last epoch is always evaluated."""
    ece_bins: int = Field(15, ge=1, le=1000)
    """Confidence bins of the calibration errors: equally wide ones, and ones with equally many samples."""
    prompts: int = Field(3, ge=0, le=64)
    """For causal-lm: beginnings of held-out texts that student and teacher continue, each time with the likeliest
    token, side by side in the report."""
    prompt_tokens: int = Field(16, ge=1, le=4096)
    """Tokens of such a beginning."""
    new_tokens: int = Field(48, ge=1, le=4096)
    """Tokens that are written behind it; fewer where the model takes no more."""
    nme_points: Annotated[Annotated[list[PointNumber], Field(max_length=2)] | None, AfterValidator(_differ)] = None
    """Numbers, from 0, of the two points whose distance the errors of keypoints are divided by; of 68 facial points 36
    and 45 are the outer corners of the eyes. None: the root of the area of the smallest upright box around them all."""
    keep: Literal["last", "best"] = "last"
    """Which weights are exported: those after the last step, or those of the evaluated epoch that was best by the
    task's main metric (accuracy and then nll, entity_f1 of tags that mark entities, rmse, nme, perplexity, or of
    embeddings spearman, without scores mrr). The report has both."""
    require_teacher: RequiredMetrics | None = None
    """What each teacher must come to on the held-out samples before training begins, by the names of the task's
    metrics, such as `{accuracy: 0.5}`: at least so much of a share or a correlation, at most so much of an error.
    A teacher that falls short ends the job (`weak_teacher`). None: a teacher that is hardly better than no teacher is
    warned of, and teaches."""
    diagnostics: list[Diagnostic] = Field(default=[], max_length=8)
    """Analyses of the exported student beyond these metrics, for the report: figures, tables and pictures."""


class Resources(Spec):
    """Where the job may run, and how long."""

    queue: Queue = "any"
    """Kind of machine."""
    processes: int = Field(1, ge=1, le=64)
    """Processes of one machine that train together. Each takes its share of every batch, so that batches, their order
    and the step are those of a single process (but batch norm sees each share alone). Each holds all samples."""
    nodes: int = Field(1, ge=1, le=1024)
    """Machines that have so many processes each; for workers that others help (`STILLHOUSE_WORKER_NODES`)."""
    sharding: Sharding = "none"
    """What each of several processes holds of a model: the whole of it, or with `fsdp` a part of every weight, of its
    gradient and optimizer state, and of the teachers' weights."""
    max_seconds: Positive = 86_400.0
    """Longest time of training over all attempts, in seconds; after that the job fails with its deadline."""
    max_queue_seconds: Positive = 604_800.0
    """Longest wait for a worker, in seconds; after that the job expires."""
    max_attempts: int = Field(3, ge=1, le=100)
    """Failures of attempts after which the job fails. Pauses, hand-backs and attempts that something outside of the job
    ended (a lost machine, a killed process) don't count."""

    @property
    def size(self) -> int:
        """Processes that train together, on all machines."""
        return self.nodes * self.processes


class JobSpec(Spec):
    """A distillation job, or a plain supervised one when it has no teacher."""

    task: TaskName = "image-classification"
    """What the student learns to do."""
    name: Name | None = None
    """Name to find the job by; names may repeat."""
    labels: Labels = {}
    """Free key-value pairs to find the job by."""
    data: AnyData
    """What is trained and evaluated on."""
    teacher: Teacher | None = None
    """The model to learn from."""
    teachers: list[Teacher] = Field(default=[], max_length=8)
    """Several models to learn from, instead of `teacher`."""
    teacher_weighting: Weighting = "fixed"
    """How several teachers share a loss: by their weights alone, or also by how sure each is of a sample: the weight is
    multiplied by exp(-entropy) of its prediction. Shares add up to 1."""
    teacher_cache: TeacherCache = DenseCache()
    """What of the teachers' answers the worker keeps, for later epochs and for other jobs with the same teacher and
    samples. Losses that look at a teacher's activations have it run on every batch, and nothing of it is kept."""
    student: Student
    """The network that learns."""
    student_image_size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    """Height and width of the images that the student sees, in pixels, which they are resized to; none: those of the
    data, or of the teacher that a student starts from. Teachers see the size that they were trained on."""
    embedding: Embedding | None = None
    """For the task `embedding`: how the student makes one vector of a text; none: as the teacher that it is a smaller
    copy of, else the mean of its tokens."""
    recipe: Recipe
    """How the student is trained."""
    evaluation: EvaluationSpec = EvaluationSpec()
    """How the student is judged."""
    export: Annotated[list[ExportFormat], Field(max_length=8), AfterValidator(_go_together)] | None = None
    """Formats of the exported student: `torch-export` for `torch.export.load`; `onnx-int8` is the ONNX graph with
    weights of 8 bits, whose answers differ a little (the report says by how much). None: safetensors and ONNX, of a
    network of the zoo `torch-export` too; what can't hold the student is left out with a warning."""
    card: Card = Card()
    """What the model card tells that nobody can measure."""
    resources: Resources = Resources()
    """Where the job may run, and how long."""
    priority: int = Field(50, ge=0, le=100)
    """Higher runs first within a queue."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of all that is drawn at random; none: one is drawn and recorded."""

    def settled(self, seed: int, day: date) -> Self:
        """The same with what was left open: the seed, and the day that chat templates are told."""
        settled = self.model_copy(update={"seed": seed})
        dated = "data.chat_date" in self.task_spec.options
        if dated and isinstance(self.data, Table) and self.data.chat_date is None:
            settled = settled.model_copy(update={"data": self.data.model_copy(update={"chat_date": day})})
        return settled

    @property
    def task_spec(self) -> TaskSpec:
        """What the contract knows of its task."""
        return task_of(self.task)

    @property
    def all_teachers(self) -> list[Teacher]:
        """The teacher, or all of several."""
        return self.teachers or ([self.teacher] if self.teacher else [])

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
        """One of all teachers."""
        return next(teacher for teacher in self.all_teachers if teacher.name == name)

    def arithmetic_of(self, name: str) -> str:
        """In what the teacher called `name` computes: weights of fp32 under autocast are not weights of bf16, and
        another layout adds up in another order."""
        teacher = self.teacher_named(name)
        layout = ", channels last" if self.recipe.channels_last else ""
        told = f"{teacher.precision} weights" if teacher.lowered else teacher.precision or self.recipe.precision
        return told + layout

    @property
    def origins(self) -> dict[str, Origin]:
        """Stored models that the job reads, teachers before a student, by the path of the field that describes each."""
        found: dict[str, Origin] = {self.teacher_path(index): each for index, each in enumerate(self.all_teachers)}
        return found | ({"student": self.student} if isinstance(self.student, Pretrained) else {})

    @property
    def references(self) -> dict[str, str]:
        """Inputs that the service keeps, by the path of the field that names them."""
        named = {"data.train": self.data.train, "data.eval": self.data.eval}
        named |= {f"{path}.{origin.source}": origin.model for path, origin in self.origins.items()}
        return {param: reference for param, reference in named.items() if reference is not None}

    def teacher_path(self, index: int) -> str:
        """Path of the field that describes a teacher."""
        return f"teachers[{index}]" if self.teachers else "teacher"

    def teacher_param(self, index: int) -> str:
        """Path of the field that says where a teacher comes from."""
        return f"{self.teacher_path(index)}.{self.all_teachers[index].source}"

    @property
    def objectives(self) -> dict[str, list[Loss]]:
        """The losses of every stage, by the path of their field; the main training's come last."""
        stages = {f"recipe.stages[{index}].losses": stage.losses for index, stage in enumerate(self.recipe.stages)}
        return {**stages, "recipe.losses": self.recipe.losses}
