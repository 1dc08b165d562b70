"""The service's responses as tables and lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.recipe import report
from stillhouse import (
    Artifact,
    CatalogOption,
    DefaultChoice,
    Estimate,
    Event,
    File,
    Job,
    Key,
    ModelFile,
    Modules,
    Remark,
    Result,
    Series,
    StoredModel,
    Validation,
)
from stillhouse.cli import results

COLOURS = {
    **{"succeeded": "green", "failed": "red", "expired": "red", "cancelled": "yellow", "cancelling": "yellow"},
    **{"running": "cyan", "leased": "cyan", "paused": "magenta", "pausing": "magenta"},
}


def table(*columns: str) -> Table:
    """A table without a frame; long cells are folded, since a truncated id is useless."""
    rows = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        rows.add_column(column, overflow="fold")
    return rows


def facts(rows: Iterable[tuple[str, object]]) -> Table:
    """Names and values, one per line; values of none are omitted."""
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        if value is not None:
            grid.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(str(value)))
    return grid


def status(job: Job) -> Text:
    """The status in its colour, with the phase of a running job."""
    phase = f" ({job.phase})" if job.phase and not job.is_final else ""
    return Text(job.status + phase, style=COLOURS.get(job.status, ""))


def jobs(items: Sequence[Job]) -> RenderableType:
    """A list of jobs."""
    rows = table("job", "name", "status", "attempt", "step", "age", "result")
    for job in items:
        summary = results.in_short(job.result) if job.result else job.reason or (failure(job) if job.error else "")
        state = (status(job), attempt(job), steps(job), age(job.created_at))
        rows.add_row(job.id, Text(job.name or ""), *state, Text(summary))
    return rows if items else Text("no jobs")


def submitted(item: Job) -> RenderableType:
    """A newly submitted job and its warnings."""
    line = f"{item.id} is {item.status}; watch it with: stillhouse watch {item.id}"
    return Group(Text(line), *remarks([warning.message for warning in _remarks(item)]))


def _remarks(item: Job) -> list[Remark]:
    waits = [Remark(code="unserved", param="resources.queue", message=item.reason)] if item.reason else []
    return [*waits, *item.warnings]


def remarks(messages: Iterable[str]) -> list[Text]:
    """Warnings, one per line."""
    return [Text.assemble(("Warning: ", "yellow"), message) for message in messages]


def job(item: Job, artifacts: Sequence[Artifact] = (), result: Result | None = None) -> RenderableType:
    """One job in full, without its spec."""
    progress = item.progress
    parts: list[RenderableType] = [
        facts(
            [
                ("job", item.id),
                ("name", item.name),
                ("status", status(item)),
                ("waits", item.reason and Text(item.reason, style="yellow")),
                ("ahead in the queue", None if item.reason else item.queue_position),
                ("step", steps(item) or None),
                ("speed", progress.samples_per_second and f"{progress.samples_per_second:,.0f} samples/s"),
                ("time left", seconds(progress.seconds_left) or None),
                ("attempt", attempts(item) or None),
                ("queue, priority", f"{item.queue}, {item.priority}"),
                ("created", moment(item.created_at)),
                ("finished", item.finished_at and moment(item.finished_at)),
                ("teacher", (item.spec.get("teacher") or {}).get("model")),
                ("model", item.model_id),
                ("cloned from", item.cloned_from),
                ("error", item.error and failure(item)),
            ]
        )
    ]
    parts += remarks(f"{warning.param} {warning.message}" for warning in item.warnings)
    if result is not None:
        parts += [Text(""), results.in_full(result)]
    if artifacts:
        parts += [Text(""), files(artifacts), Text(f"fetch them with: stillhouse download {item.id}", style="dim")]
    return Group(*parts)


def attempt(item: Job) -> str:
    """The number of the attempt, and of failed ones before it; empty before the first."""
    failed = f" ({item.failures} failed)" if item.failures else ""
    return f"{item.attempt}{failed}" if item.attempt else ""


def attempts(item: Job) -> str:
    """The attempt, and how many before it failed or were interrupted; empty before the first."""
    parts = [f"{item.attempt}"] if item.attempt else []
    if item.failures:
        parts.append(f"{item.failures} of at most {item.max_attempts} failed")
    if item.interruptions:
        parts.append(f"{item.interruptions} interrupted, not counted as failures")
    return "; ".join(parts)


def failure(item: Job) -> str:
    """Why a job failed, in one line."""
    error = item.error
    if error is None:
        return item.status
    where = f" (field {error.param})" if error.param else ""
    when = f" at step {error.step}" if error.step else ""
    return f"{error.message}{where}{when} [{error.fault}: {error.code}]"


def outcome(item: Job, result: Result | None = None) -> RenderableType:
    """How a job ended, its result, and its files."""
    name = item.name or item.id
    if item.status != "succeeded":
        ended = (f"{name} {item.status}", COLOURS.get(item.status, ""))
        return Text.assemble(ended, f": {failure(item)}" if item.error else "")
    title = Text.assemble((f"{name} succeeded", "green"))
    fetch = Text(f"fetch it with: stillhouse download {item.id}")
    return Group(title, results.in_full(result), fetch) if result else Group(title, fetch)


def still_running(jobs: Sequence[Job]) -> RenderableType:
    """A note on jobs that are no longer watched."""
    ids = " ".join(job.id for job in jobs)
    cancel = "; ".join(f"stillhouse cancel {job.id}" for job in jobs)
    state = "the job continues" if len(jobs) == 1 else "the jobs continue"
    return Text(f"No longer watching; {state}. Watch again: stillhouse watch {ids}\nCancel: {cancel}")


def files(items: Sequence[ModelFile]) -> Table:
    """Files with sizes and digests."""
    rows = table("file", "size", "sha256")
    for item in items:
        rows.add_row(Text(item.name), size(item.size), item.sha256)
    return rows


def uploaded(items: Sequence[File]) -> RenderableType:
    """A list of uploaded files."""
    rows = table("file", "name", "size", "age")
    for item in items:
        rows.add_row(item.id, Text(item.name), size(item.size), age(item.created_at))
    return rows if items else Text("no files")


def series(items: Sequence[Series], *, in_full: bool) -> RenderableType:
    """Measured series: a line for each, or all requested values."""
    if not items or not any(item.values for item in items):
        return Text("nothing was measured yet, or there is no series of this name")
    if in_full:
        rows = table("step", *(item.name for item in items))
        for step, *values in zip(items[0].steps, *(item.values for item in items), strict=False):
            rows.add_row(f"{step:,}", *(f"{value:.5g}" for value in values))
        return rows
    rows = table("series", "first", "last", "smallest", "largest", "last step")
    for item in items:
        shown = (item.values[0], item.values[-1], min(item.values), max(item.values))
        rows.add_row(item.name, *(f"{value:.5g}" for value in shown), f"{item.steps[-1]:,}")
    return rows


def module_source(found: Modules) -> str:
    """Why a list of modules is incomplete."""
    if found.source == "none":
        return "unknown until a worker has converted the weights for a job; then the job's errors suggest similar paths"
    return (
        "derived from the names of its weights: modules without weights (activations, pooling, dropout) are not listed"
    )


def event(item: Event, name: str = "") -> Text:
    """One line of the event log."""
    style = {"error": "red", "warning": "yellow"}.get(item.level, "")
    time = item.created_at.astimezone().strftime("%H:%M:%S")
    prefix = f"{name}  " if name else ""
    return Text.assemble((f"{time}  {prefix}", "dim"), (f"{item.type:<10} ", "dim"), (item.message, style))


def validation(item: Validation) -> RenderableType:
    """The resolved job with its estimates, or all its errors."""
    if not item.valid:
        rows = table("field", "error", "accepted")
        for problem in item.errors:
            rows.add_row(Text(problem.param), Text(problem.message), Text(problem.accepted or ""))
        return Group(Text("not valid", style="red"), rows)
    estimate = item.estimate
    parts: list[RenderableType] = [
        Text("valid", style="green"),
        facts(
            [
                ("steps", _steps(item)),
                ("student's parameters", item.parameters and f"{item.parameters:,}"),
                *(_memory(estimate) if estimate else ()),
                *(_time(estimate) if estimate else ()),
            ]
        ),
    ]
    if item.defaults:
        parts += [Text(""), _defaults(item.defaults)]
    return Group(*parts, *remarks(f"{warning.param} {warning.message}" for warning in item.warnings))


def _memory(estimate: Estimate) -> Iterator[tuple[str, str]]:
    yield "memory", f"about {size(estimate.memory_bytes)}, torch included"
    for device in estimate.devices:
        if device.gpu_memory_bytes is not None:
            yield "memory of a GPU", f"about {size(device.gpu_memory_bytes)}"


def _time(estimate: Estimate) -> Iterator[tuple[str, str]]:
    if estimate.seconds is None:
        yield "time", "known when a worker has read the data"
        return
    named = ("training", "evaluating", "exporting")
    parts = [f"{name} {seconds(getattr(estimate, f'{name}_seconds'))}" for name in named]
    yield "time", f"about {seconds(estimate.seconds)}: {', '.join(parts)}"
    for device in estimate.devices:
        yield f"training on a {device.device.upper()}", f"{seconds(device.training_seconds)} ({device.basis})"


def _defaults(items: Sequence[DefaultChoice]) -> RenderableType:
    """Defaults of omitted fields, and the student that they are for."""
    rows = table("chosen", "value")
    for item in items:
        value = item.value if isinstance(item.value, dict) else {"": item.value}
        rows.add_row(item.param, Text(", ".join(f"{key} {each}".strip() for key, each in value.items())))
    reasons = dict.fromkeys(item.reason for item in items)
    return Group(rows, *(Text(f"for {reason}", style="dim") for reason in reasons))


def _steps(item: Validation) -> str:
    if item.total_steps is None:
        return "known when a worker has read the data"
    return f"{item.total_steps} ({item.steps_per_epoch} per epoch)"


def models(items: Sequence[StoredModel]) -> RenderableType:
    """A list of models."""
    rows = table("model", "name", "architecture", "parameters", "made by", "age")
    for item in items:
        rows.add_row(
            item.id,
            Text(item.name or ""),
            str((item.config or {}).get("architecture", {}).get("architecture", "")),
            f"{item.parameters:,}" if item.parameters else "",
            item.job_id or "upload",
            age(item.created_at),
        )
    return rows if items else Text("no models")


def model(item: StoredModel) -> RenderableType:
    """One model in full."""
    about: list[tuple[str, object]] = [
        ("model", item.id),
        ("name", item.name),
        ("parameters", item.parameters and f"{item.parameters:,}"),
        ("made by", item.job_id or "upload"),
        ("teacher", item.teacher_id),
        ("created", moment(item.created_at)),
    ]
    parts: list[RenderableType] = [facts(about), Text(""), files(item.files)]
    if item.report:
        parts += [Text(""), figures(item.report), *diagnostics(item.report)]
    return Group(*parts)


def figures(found: dict[str, Any]) -> Table:
    """A report's figures: teachers, epochs and files side by side."""
    return _grid(report.columns(found))


def diagnostics(found: dict[str, Any]) -> Iterator[RenderableType]:
    """A report's diagnostics, each with the name of its picture."""
    for name, entry, columns in report.diagnostics(found):
        if not columns:
            yield Text.assemble("\n", (f"{name} was not computed: ", "yellow"), str(entry.get("left_out")))
            continue
        yield Text.assemble("\n", name, (f"  {picture}" if (picture := entry.get("picture")) else "", "dim"))
        yield _grid(columns)


def _grid(columns: Mapping[str, report.Figures]) -> Table:
    grid = table("", *columns)
    for name, cells in report.rows(columns):
        grid.add_row(Text(name, style="dim"), *cells)
    return grid


def keys(items: Sequence[Key]) -> RenderableType:
    """A list of keys."""
    rows = table("key", "name", "begins with", "scopes", "last used", "state")
    for item in items:
        state = "revoked" if item.revoked_at else "active"
        used = age(item.last_used_at) if item.last_used_at else "never"
        rows.add_row(item.id, Text(item.name), item.hint, ", ".join(item.scopes), used, state)
    return rows


def catalog(options: Sequence[CatalogOption]) -> RenderableType:
    """The options of a job, by group."""
    rows = table("group", "kind", "description", "paper")
    for option in options:
        rows.add_row(option.group, option.kind, Text(option.description), option.paper.url if option.paper else "")
    return rows


def steps(item: Job) -> str:
    """Steps done and in total; empty before the first."""
    total = item.progress.total_steps
    return f"{item.progress.step:,} of {total:,}" if total else ""


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def seconds(value: float | None) -> str:
    """A duration for people; empty if unknown."""
    if value is None:
        return ""
    if value < 100:
        return f"{value:.0f} s" if value >= 1 else "under 1 s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def age(time: datetime) -> str:
    """How long ago a time was."""
    elapsed = (datetime.now(UTC) - time).total_seconds()
    return seconds(max(0.0, elapsed)) if elapsed < 2 * 86_400 else f"{elapsed / 86_400:.0f} days"


def moment(time: datetime) -> str:
    """A time in the time zone of this machine."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def show(renderable: RenderableType) -> Any:
    """A function that prints to the console it is given."""
    return lambda console: console.print(renderable)
