"""The model card (`README.md` of a bundle): for people who meet the model without the service."""

from __future__ import annotations

from collections.abc import Iterator

from app.recipe.job import JobSpec
from app.recipe.losses import Loss
from app.recipe.model import ImageInput, ModelConfig, TableInput
from app.recipe.optimizers import Optimizer, Schedule
from app.recipe.report import GRAPHS, Figures, columns, rows
from app.recipe.students import Pretrained
from app.recipe.task import CAUSAL_LM
from app.recipe.weights import Weight

LICENCE = (
    "This folder grants no licence. What may be done with the weights follows from the terms of the training data, of "
    "the teachers where there are any, and of whatever these were made from: settle them before you pass the model on."
)


def model_card(job: JobSpec, config: ModelConfig, report: Figures) -> str:
    """Markdown: where the model comes from, how it was trained, what it achieves, how to use it."""
    threads, kept = report["train"]["threads"], report["epochs"]["kept"]
    measured = f"{report['samples']['eval']} held-out samples"
    sections = [
        f"# {job.name or config.architecture.architecture}",
        f"A `{config.architecture.architecture}` for {job.task}, {_lineage(job)}, on `{job.data.train}`.",
        "\n".join(_recipe(job, report)),
        "## Results",
        f"Measured on {measured}: teachers and epochs from their weights, the files of this folder as they were opened "
        f"again. These hold the weights of the {kept} epoch.",
        "\n".join(_table(report)),
        "`flops` counts one sample, a multiplication and its addition as two, elementwise work not at all. Latencies "
        f"are those of one sample, on {threads} thread{'s' * (threads > 1)} of the CPU, or where the name says so on "
        "the GPU.",
        *_warnings(report),
        "![What was measured while the model was trained](curves.png)",
        "## Use",
        *_use(config, report),
        *([GENERATE] if config.task == CAUSAL_LM else []),
        f"`{config.file_name}` describes the weights in `model.safetensors`; `recipe.json` is the whole job, and "
        "`report.json` has all figures.",
        "## Licence",
        LICENCE,
    ]
    return "\n\n".join(sections) + "\n"


def _warnings(report: Figures) -> Iterator[str]:
    """What the job was warned of."""
    if report.get("warnings"):
        yield "## Warnings"
        yield "\n".join(f"- **{told['code']}**: {told['message']}" for told in report["warnings"])


def _lineage(job: JobSpec) -> str:
    names = ", ".join(f"`{teacher.reference}`" for teacher in job.all_teachers)
    start = f"started from `{job.student.reference}`, " if isinstance(job.student, Pretrained) else ""
    return start + (f"distilled from {names}" if names else "trained on labels alone")


def _recipe(job: JobSpec, report: Figures) -> Iterator[str]:
    recipe, train = job.recipe, report["train"]
    for number, stage in enumerate(recipe.stages, start=1):
        learns = "" if stage.trains == "student" else ", for the losses' own weights"
        yield f"- stage {number}: {_losses(stage.losses)}, {stage.epochs} epochs{learns}"
    yield f"- losses: {_losses(recipe.losses)}"
    yield f"- optimizer: {_steps(recipe.optimizer, recipe.schedule)}"
    yield f"- {train['steps']} steps of {recipe.batch_size} samples, {recipe.precision}, seed {job.seed}"
    if written := train.get("written"):
        texts = f"{written['texts']:,} texts of {written['mean_tokens']:.0f} tokens"
        yield f"- {written['steps']} of these steps on texts that the {written['by']} wrote, {texts}"
    yield from (_fidelity(name, figures) for name, figures in train["teacher_fidelity"].items())
    yield f"- {train['seconds']:.0f} s on {train['device']}; {_arithmetic(train)}"


def _arithmetic(train: Figures) -> str:
    teachers = f", {train['teacher_flops']:.3g} of the teachers" if "teacher_flops" in train else ""
    rate = f"{train['peak_flops_per_second']:.3g} a second ({train['peak']})"
    return f"{train['student_flops']:.3g} floating-point operations of the student{teachers}, on a machine for {rate}"


def _fidelity(name: str, figures: Figures) -> str:
    """How a teacher of fewer bits differs from its weights."""
    told = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in figures.items() if isinstance(value, float)]
    found = f"{', '.join(told)} to its weights in fp32, on {figures['samples']} held out"
    return f"- `{name}` taught in {figures['precision']}: {found}"


def _losses(terms: list[Loss]) -> str:
    return ", ".join(f"{term.kind} (weight {_weight(term.weight)})" for term in terms)


def _weight(weight: Weight) -> str:
    return f"{weight:g}" if isinstance(weight, float | int) else f"{weight.first:g} to {weight.last:g}"


def _steps(optimizer: Optimizer, schedule: Schedule) -> str:
    return f"{optimizer.kind}, learning rate {optimizer.lr:g}, {schedule.kind}"


def _table(report: Figures) -> Iterator[str]:
    shown = columns(report)
    yield "| | " + " | ".join(shown) + " |"
    yield "|---" * (len(shown) + 1) + "|"
    for name, cells in rows(shown):
        yield f"| {name} | " + " | ".join(cells) + " |"


def _use(config: ModelConfig, report: Figures) -> Iterator[str]:
    if config.embedding is not None:
        yield SENTENCES
    name, shape, dtype = _input(config)
    output = _output(config)
    graphs = [f"`{file}`" for key, file in GRAPHS.items() if key in report["student"]]
    if graphs:
        yield f"{', '.join(graphs)}: `{name}` {shape} of {dtype} in, for any N, {output} out; preprocessing is inside."
    for key, file in GRAPHS.items():
        if key in report["student"]:
            code = TORCH if key == "torch_export" else ONNX
            yield code.format(file=file, name=name)


def _output(config: ModelConfig) -> str:
    """Name and shape of a graph's output."""
    if config.embedding is not None:
        return f"`embeddings` (N, {config.targets})"
    if config.task == CAUSAL_LM:
        return f"`logits` (N, S, {config.outputs}) of the token behind each one"
    return f"`logits` (N, {config.classes})" if config.classes else f"`outputs` (N, {config.targets})"


def _input(config: ModelConfig) -> tuple[str, str, str]:
    """Name, shape and type of a graph's input."""
    sample = config.input
    if isinstance(sample, ImageInput):
        return "images", f"(N, {sample.channels}, {sample.height}, {sample.width})", "raw pixels as float32"
    if isinstance(sample, TableInput):
        return "table", f"(N, {sample.columns})", "raw numbers as float32"
    if config.task == CAUSAL_LM:
        return "tokens", f"(N, S), S up to {sample.length},", "token ids as int64"
    return "tokens", f"(N, {sample.length})", f"token ids as int64, padded with {sample.pad}"


SENTENCES = """The library sentence-transformers opens this folder:

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer(".").encode(["a text", "another one"])
```"""
GENERATE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

reader, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")
print(reader.decode(model.generate(**reader("Once", return_tensors="pt"), max_new_tokens=50)[0]))
```"""
ONNX = """```python
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
(answers,) = session.run(None, {{"{name}": samples}})
```"""
TORCH = """```python
import torch

answers = torch.export.load("{file}").module()(samples)
```"""
