"""The model card (`README.md` of a bundle), for users of the model without the service."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from app.recipe.card import UNKNOWN
from app.recipe.job import JobSpec
from app.recipe.losses import Loss
from app.recipe.losses.weights import Weight
from app.recipe.optimizers import Optimizer, Schedule
from app.recipe.report import GRAPHS, Figures, columns, diagnostics, rows
from app.recipe.students.architectures import InpFormer, Shrink
from app.recipe.students.derived import derived_teacher
from app.recipe.students.model import ImageInput, ModelConfig, TableInput, TextInput
from worker.bundle.snippets import snippets
from worker.students.weights import WEIGHTS
from worker.tasks.base import Task
from worker.tasks.card import TaskCard

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

LISTED_CLASSES = 100
"""Most classes that the card lists; of more it lists the first."""
FORBIDDEN = str.maketrans({"`": "'", "|": "/", "<": "(", ">": ")"})
"""Replaces characters that would end a table cell or inline code, or begin an HTML element."""


def model_card(task: Task, job: JobSpec, config: ModelConfig, report: Figures) -> str:
    """Markdown with a YAML header: origin, training, results and use of the model."""
    threads, exported = report["train"]["threads"], report["epochs"]["kept"]
    measured = f"{report['samples']['eval']} held-out samples"
    sections = [
        f"# {job.name or config.architecture.architecture}",
        f"A `{config.architecture.architecture}` for {job.task}, {_lineage(job)}, on `{job.data.train}`.",
        *_warnings(report),
        "\n".join(_recipe(job, report)),
        "## Results",
        f"Measured on {measured}: teachers and epochs with their weights, the files of this folder after they were "
        f"loaded again. They have the weights of the {exported} epoch.",
        "\n".join(_table(columns(report))),
        "`flops` is for one sample; a multiplication and its addition count as two, elementwise work is left out. "
        f"Latencies are for one sample, on {threads} thread{'s' * (threads > 1)} of the CPU, or on the GPU if the name "
        "begins with `gpu_`.",
        "![Metrics during training](curves.png)",
        *_search(report),
        *_diagnostics(report),
        "## Use",
        *_use(task.card, job, config, report),
        *_labels(config),
        "## Made from",
        "\n".join(_sources(report)),
        "## Licence",
        "\n".join(_licence(job, report)),
    ]
    return f"---\n{_header(task, job, config, report)}\n---\n\n" + "\n\n".join(sections) + "\n"


HUB_METRICS = {"r2": "r_squared", "pearson": "pearsonr", "spearman": "spearmanr", "brier": "brier_score"}
"""Names of metrics on the hub that differ from ours."""


def _header(task: Task, job: JobSpec, config: ModelConfig, report: Figures) -> str:
    """The YAML that hubs read."""
    from huggingface_hub import ModelCardData  # a fifth of a second that training need not wait for

    pipeline, figures = task.card.pipeline_tag(config), _measured(task, report)
    optional: dict[str, Any] = {
        "base_model": [base] if (base := _base(job)) else None,
        "datasets": job.card.datasets or None,
        "library_name": task.card.library(config),
    }
    data = ModelCardData(
        license=(job.card.license or UNKNOWN).lower(),
        pipeline_tag=pipeline,
        tags=sorted({"distillation", "onnx"} & _tags(job, report)),
        metrics=list(figures),
        model_name=_plain(job.name or config.architecture.architecture),
        eval_results=_results(pipeline or job.task, report, figures, held_out=bool(job.data.eval)),
        **optional,
    )
    return data.to_yaml()


def _measured(task: Task, report: Figures) -> dict[str, float]:
    """Metrics of the exported student by their names on the hub, the main metric first."""
    student = report["student"]
    names = dict.fromkeys((task.main_metric.of(student), *task.metrics))
    return {HUB_METRICS.get(name, name): student[name] for name in names if name in student}


def _results(task: str, report: Figures, figures: Mapping[str, float], *, held_out: bool) -> list[EvalResult]:
    """One result for each metric; `held_out` if the held-out samples have a separate file."""
    from huggingface_hub import EvalResult

    name = _plain(_title(report, "data.eval" if held_out else "data.train"))
    return [
        EvalResult(task_type=task, dataset_type="held-out", dataset_name=name, metric_type=metric, metric_value=value)
        for metric, value in figures.items()
    ]


def _tags(job: JobSpec, report: Figures) -> set[str]:
    return {*(["distillation"] if job.teacher_shares else []), *(["onnx"] if "onnx" in report["student"] else [])}


def _base(job: JobSpec) -> str | None:
    """The hub's model that the student's weights were initialised from."""
    if job.student_origin is not None:
        return job.student_origin.hub
    name = None if isinstance(job.student, Shrink) and job.student.init == "fresh" else derived_teacher(job)
    return job.teacher_named(name).hub if name is not None else None


def _plain(name: str) -> str:
    """A user's text, made safe for table cells and inline code."""
    return "".join(letter if letter.isprintable() else " " for letter in name.translate(FORBIDDEN))


def _title(report: Figures, path: str) -> str:
    """Name of an input for readers."""
    source = report["sources"][path]
    return source["name"] or source["reference"]  # type: ignore[no-any-return]


def _warnings(report: Figures) -> Iterator[str]:
    """Section with the warnings of the job, if there are any."""
    if warnings := report.get("warnings"):
        yield "## Warnings"
        yield "\n".join(f"- **{_plain(each['code'])}**: {_plain(each['message'])}" for each in warnings)


def _sources(report: Figures) -> Iterator[str]:
    yield "| | name | sha256 | licence |"
    yield "|---|---|---|---|"
    for path, source in report["sources"].items():
        licence = (source["licence"] or "not known") if "licence" in source else "not known"
        name = " ".join(f"`{_plain(text)}`" for text in dict.fromkeys((source["name"], source["reference"])) if text)
        yield f"| {path} | {name} | `{source['sha256']}` | {_plain(licence)} |"


def _licence(job: JobSpec, report: Figures) -> Iterator[str]:
    if job.card.license:
        yield f"{job.card.license}, as stated by the author of the job."
    else:
        yield "Not known: the job names none, and this folder grants none."
    models = [path for path, source in report["sources"].items() if "licence" in source]
    known = [f"{path}: {_plain(licence)}" for path in models if (licence := report["sources"][path]["licence"])]
    if known:
        yield f"Known licences of the models that it was made from: {'; '.join(known)}."
    yield (
        "The use of the weights is also restricted by the terms of the training data, of the teachers if there are "
        "any, and of everything that these were made from: check them before you distribute the model."
    )


def _lineage(job: JobSpec) -> str:
    names = ", ".join(f"`{teacher.reference}`" for teacher in job.all_teachers)
    if job.trained_teacher is not None:
        names = f"{names}, which learned too" if names else "a teacher that learned with it from random weights"
    if isinstance(job.student, InpFormer):
        return f"which reconstructs the features of `{job.student.reference}`, its frozen encoder"
    start = f"started from `{job.start.reference}`, " if job.start is not None else ""
    alone = "trained on labels alone" if job.task_spec.needs_labels else "trained without labels"
    return start + (f"distilled from {names}" if names else alone)


def _recipe(job: JobSpec, report: Figures) -> Iterator[str]:
    recipe, train = job.recipe, report["train"]
    for number, stage in enumerate(recipe.stages, start=1):
        learns = "" if stage.trains == "student" else ", for the losses' own weights"
        yield f"- stage {number}: {_losses(stage.losses)}, {stage.epochs} epochs{learns}"
    yield f"- losses: {_losses(recipe.losses) or f'those of the method {recipe.method.kind}'}"
    yield f"- optimizer: {_steps(recipe.optimizer, recipe.schedule)}"
    yield f"- {train['steps']} steps of {recipe.batch_size} samples, {recipe.precision}, seed {job.seed}"
    if written := train.get("written"):
        texts = f"{written['texts']:,} texts of {written['mean_tokens']:.0f} tokens"
        yield f"- {written['steps']} of these steps on texts generated by the {written['by']}, {texts}"
    if attack := train.get("attack"):
        within = f"steps of {attack['step_size']:.4g} within {attack['bound']:.4g} of the pixels' range"
        yield f"- every batch attacked by PGD of {attack['steps']} {within}"
    if boundary := train.get("boundary"):
        share = f"{boundary['crossed_share']:.0%} of them across it"
        yield f"- {boundary['moved']:,} samples at the teacher's decision boundary, {share}"
    yield from (_fidelity(name, figures) for name, figures in train["teacher_fidelity"].items())
    yield f"- {train['seconds']:.0f} s on {train['device']}; {_arithmetic(train)}"


def _arithmetic(train: Figures) -> str:
    teachers = f", {train['teacher_flops']:.3g} of the teachers" if "teacher_flops" in train else ""
    rate = f"{train['peak_flops_per_second']:.3g} a second ({train['peak']})"
    return f"{train['student_flops']:.3g} floating-point operations of the student{teachers}, on a machine for {rate}"


def _fidelity(name: str, figures: Figures) -> str:
    """Line on the difference of a lowered teacher from its fp32 weights."""
    values = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in figures.items() if isinstance(value, float)]
    found = f"{', '.join(values)} to its weights in fp32, on {figures['samples']} held out"
    return f"- `{name}` ran in {figures['precision']}: {found}"


def _losses(terms: list[Loss]) -> str:
    return ", ".join(f"{term.kind} (weight {_weight(term.weight)})" for term in terms)


def _weight(weight: Weight) -> str:
    return f"{weight:g}" if isinstance(weight, float | int) else f"{weight.first:g} to {weight.last:g}"


def _steps(optimizer: Optimizer, schedule: Schedule) -> str:
    return f"{optimizer.kind}, learning rate {optimizer.lr:g}, {schedule.kind}"


def _table(shown: Mapping[str, Figures]) -> Iterator[str]:
    yield "| | " + " | ".join(shown) + " |"
    yield "|---" * (len(shown) + 1) + "|"
    for name, cells in rows(shown):
        yield f"| {name} | " + " | ".join(cells) + " |"


SIZES = ("layers", "width", "heads", "hidden", "parameters", "flops", "loss", "latency_ms")
"""Columns of the table of sub-networks."""


def _search(report: Figures) -> Iterator[str]:
    """Section with the Pareto front of a search among sub-networks, if there was one."""
    if not (found := report["train"].get("search")):
        return
    chosen = found["chosen"]["row"]
    rows = {f"{row['row']}{' (chosen)' * (row['row'] == chosen)}": row for row in found["front"]}
    shown = [name for name in SIZES if any(row.get(name) is not None for row in rows.values())]
    yield "## Search"
    yield (
        f"{found['rows']} sub-networks were compared by the loss of the training, on {found['samples']} held-out "
        "samples and without training any of them again. These are the Pareto front in weights, operations and loss; "
        "`search.json` has all, and the service extracts any of them by its row."
    )
    table = [f"| row | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    table += [f"| {name} | {' | '.join(_figure(row[size]) for size in shown)} |" for name, row in rows.items()]
    yield "\n".join(table)
    yield f"![Sub-networks]({found['picture']})"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _diagnostics(report: Figures) -> Iterator[str]:
    """A section for each diagnostic: its figures and its picture, or the reason why there are none."""
    for name, found, shown in diagnostics(report):
        yield f"### {name}"
        if not shown:
            yield f"Not computed: {_plain(found['left_out'])}."
            continue
        yield _samples(found["samples"])
        yield "\n".join(_table(shown))
        if found["picture"]:
            yield f"![{name}]({found['picture']})"


def _samples(used: Figures) -> str:
    """The samples that a diagnostic used, in a sentence."""
    fitted = [f"fitted on {used['fitted']} others"] if used["fitted"] else []
    held_out = [f"{used['judged']} held-out samples"] if used["judged"] else []
    training = [f"{used['training']} training samples"] if used["training"] else []
    return f"On {'; '.join([' and '.join([*held_out, *training]), *fitted])}."


def _use(card: TaskCard, job: JobSpec, config: ModelConfig, report: Figures) -> Iterator[str]:
    """Preparation of samples, inputs of the graphs, and a program for each file."""
    yield _preparation(card, config)
    graphs = {key: file for key, file in GRAPHS.items() if key in report["student"]}
    if graphs:
        name, shape, dtype = _input(card, config)
        files, output = ", ".join(f"`{file}`" for file in graphs.values()), card.output(config)
        yield f"{files}: input `{name}` {shape}, {dtype}, for any N; output {output}. Preprocessing is included."
    for kind, reason in report.get("left_out", {}).items():
        yield f"There is no {kind}: {_plain(reason)}."
    yield "Each of these programs runs in this folder without changes."
    for snippet in snippets(card, job, config, [WEIGHTS, *graphs.values()]):
        yield f"`{snippet.file}`:\n\n```python\n{snippet.code}\n```"
    yield (
        f"`{config.file_name}` is the config of the weights in `{WEIGHTS}`; `recipe.json` is the whole job, and "
        "`report.json` has all figures."
    )


def _preparation(card: TaskCard, config: ModelConfig) -> str:
    """Preprocessing of a sample, with its constants."""
    sample, scaling = config.input, config.preprocessing
    if isinstance(sample, TextInput):
        tokenizer = "`tokenizer.json` and `tokenizer_config.json` turn texts into ids"
        return f"{tokenizer}, with the tokens that begin and end a text; {card.reading(sample)}"
    assert scaling is not None
    one = "column" if isinstance(sample, TableInput) else "channel"
    numbers = f"(value × {scaling.scale:.6g} − mean) / deviation, for each {one}"
    values = "" if len(scaling.mean) > 16 else f": mean {_row(scaling.mean)}, deviation {_row(scaling.std)}"
    if isinstance(sample, TableInput):
        return f"Rows of {sample.columns} numbers become {numbers}{values}."
    sides = f"{sample.height} x {sample.width}"
    colours = {1: " of one channel", 3: " in RGB"}.get(sample.channels, f" of {sample.channels} channels")
    crop = "" if scaling.crop is None else f", of which the middle {scaling.crop:.4g} of the sides is used"
    resized = f"resized to {sides} pixels (height, width; {scaling.interpolation}, antialiased){crop}"
    return f"Images{colours} are {resized}, and their values become {numbers}{values}."


def _row(values: list[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _labels(config: ModelConfig) -> Iterator[str]:
    """Table of the classes by the numbers of their logits."""
    if config.classes is None:
        return
    yield "### Labels"
    if config.class_names is None:
        yield f"Class n is the label n of the training data, from 0 to {config.classes - 1}."
        return
    lines = ["| logit | label |", "|---|---|"]
    lines += [f"| {number} | {_plain(name)} |" for number, name in enumerate(config.class_names[:LISTED_CLASSES])]
    yield "\n".join(lines)
    if config.classes > LISTED_CLASSES:
        yield f"and so on: `{config.file_name}` names all {config.classes:,}."


def _input(card: TaskCard, config: ModelConfig) -> tuple[str, str, str]:
    """Name, shape and type of a graph's input."""
    sample = config.input
    if isinstance(sample, TextInput):
        return sample.key, *card.token_input(sample)
    values = "pixels" if isinstance(sample, ImageInput) else "numbers"
    return sample.key, f"(N, {', '.join(map(str, sample.axes))})", f"raw {values} as float32"
